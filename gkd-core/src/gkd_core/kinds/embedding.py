"""`embedding`: one vector per text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gkd_core.contract.task import Split
from gkd_core.data.columns import find_text, pick_column, select_texts
from gkd_core.data.encode import Encoded, encode_samples
from gkd_core.data.labels import is_unlabeled
from gkd_core.errors import DataError
from gkd_core.kinds.metrics import Metric, correlations
from gkd_core.kinds.task_kind import Evaluation, ReadRows, TaskKind, whole

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.contract.batch import Batch
    from gkd_core.data.table import Table
    from gkd_core.losses.logits import Logits

SCORES = ("score", "similarity_score", "similarity", "label")


class Embedding(TaskKind):
    """A vector for each text: the mean of the last hidden states over its tokens.

    Teachers are plain encoders or decoders, such as MiniLM sentence embedders; training needs texts
    alone, and both texts of a pair are trained on, each a row by itself; `similarity` learns the
    scores of pairs. A model is judged by pairs with a score of their similarity
    (`task.validation`): the correlation of the cosines with the scores, as in the STS tasks. The
    logits that methods see are the vectors, `[B, D]`.
    """

    name = "embedding"
    head = "body"
    metric = Metric("spearman", True)
    metrics = ("spearman", "pearson")
    predicted = "vector"
    splits_rows = True
    output = "vector"
    augments = True

    @property
    def auto(self) -> Any:
        """The Auto class of models without a head."""
        from transformers import AutoModel

        return AutoModel

    def width(self, classes: Sequence[str], config: PretrainedConfig) -> int:
        """Return the width of the vectors."""
        size: int = config.hidden_size
        return size

    def unused(self, name: str) -> bool:
        """Return whether a weight is that of a pooler, which the mean over the tokens replaces."""
        return name.startswith("pooler.")

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return texts or pairs, with the scores where there are any."""
        splits = {name: scored_rows(table, config) for name, table in tables.items()}
        judged = splits.get("validation", splits["train"])
        if judged.pair is None or judged.labels is None:
            name = tables["validation" if "validation" in tables else "train"].source
            raise DataError(
                f"{name} has no pairs with a score, by which embeddings are judged; name a "
                "file or split with them in task.validation, or the column in task.label"
            )
        return ReadRows(splits)

    def is_labeled(self, table: Table, train: Table, config: TaskConfig) -> bool:
        """Return whether a test table has scores."""
        column = pick_column(table, config.label, SCORES)
        return column is not None and not is_unlabeled(table.columns[column])

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize each text by itself: the two of a pair are rows 2i and 2i + 1.

        Raises:
            ConfigError: `max_length` leaves no room besides the special tokens.
        """
        texts = split.text if split.pair is None else interleaved(split)
        encoded = encode_samples(Split(texts), tokenizer, max_length, None)
        return encoded.with_labels(None, {"scores": split.labels})

    def logits(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of the last hidden states over the tokens that are not padding."""
        return mean_vectors(output, inputs)

    def observe(self, logits: Logits, batch: Batch) -> Any:
        """Return the vectors."""
        return whole(logits).float().cpu(), batch.rows.cpu()

    def summarize(self, parts: Sequence[Any], split: Encoded) -> Evaluation:
        """Return the correlations of the cosines of pairs with their scores."""
        vectors, rows = map(torch.cat, zip(*parts, strict=True))
        vectors = vectors[rows.argsort()]
        cosines = cosine_similarity(vectors[::2].double(), vectors[1::2].double())
        scores = torch.tensor(split.extra["scores"], dtype=torch.float64)
        loss = float((_scaled(cosines) - _scaled(scores)).square().mean())
        return Evaluation({"loss": loss, **correlations(cosines, scores)}, cosines)

    def guess(self, labels: Sequence[Any] | None) -> float | None:
        """Return 0: a constant does not correlate with anything."""
        return 0.0 if labels else None

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return rows without labels."""
        return super().planned(rows, length, token, classes).with_labels(None)


def _scaled(values: Tensor) -> Tensor:
    """Return values moved and scaled to mean 0 and length 1, so that cosines compare to scores."""
    centered = values - values.mean()
    norm = centered.norm()
    return centered / norm if norm > 0 else centered


def mean_vectors(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the last hidden states over the tokens that are not padding, `[B, D]`.

    Args:
        output: What the forward pass of a model without a head returned.
        inputs: Its inputs.
    """
    hidden: Tensor = output.last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def interleaved(split: Split) -> list[str]:
    """Return both texts of each pair, one after the other."""
    return [text for both in zip(split.text, split.pair or (), strict=True) for text in both]


def scored_rows(table: Table, config: TaskConfig) -> Split:
    """Return texts or pairs, with the scores where there are any.

    Raises:
        DataError: A column is missing, or a row is invalid.
    """
    table.check_filled()
    column = pick_column(table, config.label, SCORES)
    text, pair = find_text(table, config, excluded=() if column is None else (column,))
    if column is None:
        return select_texts(table, text, pair, None)
    scores = [_score(value) for value in table.columns[column]]
    for number, score, value in zip(table.numbers, scores, table.columns[column], strict=True):
        if score is None:
            table.faults.add(number, f"the score is {value!r}, not a number (column {column!r})")
    return select_texts(table, text, pair, scores)


def _score(value: Any) -> float | None:
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None
