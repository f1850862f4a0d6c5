"""The texts that each compared model wrote after the same prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gkd_core.evaluation.predictions import Predictions
from gkd_core.evaluation.samples import CHECK, MEASURES, sample_means

PROMPT = "prompt"


def side_by_side(predictions: Predictions) -> Iterator[dict[str, str]]:
    """Yield a prompt and what each model has written after it, by its name.

    Args:
        predictions: What each model says of the rows.
    """
    tables = predictions.models
    if any("generated" not in table.column_names for table in tables.values()):
        return
    prompts = next(iter(tables.values()))["prompt"].to_pylist()
    texts = {file: table["generated"].to_pylist() for file, table in tables.items()}
    for row, prompt in enumerate(prompts):
        if prompt is not None:
            yield {PROMPT: prompt} | {predictions.names[f]: t[row] for f, t in texts.items()}


def measured(predictions: Predictions) -> dict[str, Mapping[str, float]]:
    """Return the means over the answers that each model has written, and how many there are.

    Args:
        predictions: What each model says of the rows.
    """
    found: dict[str, Mapping[str, float]] = {}
    for file, table in predictions.models.items():
        names = [name for name in (*MEASURES, CHECK) if name in table.column_names]
        means = sample_means({name: table[name].to_pylist() for name in names})
        if means:
            rows = len(table["generated"].drop_null())
            found[predictions.names[file]] = means | {"rows": rows}
    return found


def in_words(means: Mapping[str, float]) -> str:
    """Return means of `measured` as text."""
    shown = {
        "rouge_l": "ROUGE-L {:.4f}",
        "exact_match": "exact match {:.1%}",
        CHECK: "right {:.1%}",
    }
    values = [text.format(means[name]) for name, text in shown.items() if name in means]
    return f"{', '.join(values)} of {means['rows']:,} written answers"
