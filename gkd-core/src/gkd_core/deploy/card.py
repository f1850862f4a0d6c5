"""The model card of an exported student: `README.md`, as model hubs show it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from gkd_core.contract.task import SPLITS
from gkd_core.deploy.lineage import LINEAGE, papers
from gkd_core.evaluation.statistics import LEVEL

PIPELINES = {
    "classification": "text-classification",
    "multi-label": "text-classification",
    "regression": "text-classification",
    "token-classification": "token-classification",
    "span-extraction": "question-answering",
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
    "embedding": "sentence-similarity",
}
"""The names of the kinds of task on hubs; others have no name there."""

ARCHITECTURES = {
    "albert": "ALBERT",
    "bert": "BERT",
    "deberta": "DeBERTa",
    "deberta-v2": "DeBERTa-v2",
    "distilbert": "DistilBERT",
    "electra": "ELECTRA",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX",
    "llama": "Llama",
    "mistral": "Mistral",
    "modernbert": "ModernBERT",
    "mpnet": "MPNet",
    "opt": "OPT",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "roberta": "RoBERTa",
    "xlm-roberta": "XLM-RoBERTa",
}
"""What people call the model types of transformers; others are called by their type."""

SETTINGS = {"epochs": "epochs", "batch_size": "batch size", "lr": "lr"}
"""The settings of training in the card, and what they are called there."""

UNNAMED = "not stated"


def model_card(known: Mapping[str, Any], code: str) -> str:
    """Return the model card for a lineage.

    Args:
        known: The lineage.
        code: Code that loads the model.
    """
    parts = [_head(known), "# Student model", _summary(known), *_sections(known, code)]
    return "\n\n".join(parts) + "\n"


def _head(known: Mapping[str, Any]) -> str:
    """Return the metadata that hubs read."""
    kind = known["task"]["kind"]
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["knowledge-distillation"]}
    if known["export"]["format"] == "onnx":
        head["library_name"] = "onnx"
        head["tags"].append("onnx")
    if known["license"]:
        head["license"] = known["license"]
    if kind in PIPELINES:
        head["pipeline_tag"] = PIPELINES[kind]
    teachers = known["teachers"].values()
    hub_ids = [one["model"] for one in teachers if one["origin"] == "hub"]
    if hub_ids:
        head["base_model"] = hub_ids
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _summary(known: Mapping[str, Any]) -> str:
    student = known["student"]
    taught = " and ".join(map(_taught_by, known["teachers"].values()))
    methods = " then ".join(f"`{stage['method']}`" for stage in known["stages"])
    size = "" if student["parameters"] is None else f" with {student['parameters']:,} weights"
    by = f" from {taught}" if taught else ""
    architecture = ARCHITECTURES.get(student["architecture"], student["architecture"])
    return (
        f"This is a {architecture} model{size}, distilled by {methods}{by}. Made with "
        f"gkd {known['gkd']}. License: {known['license'] or UNNAMED}."
    )


def _taught_by(teacher: Mapping[str, str]) -> str:
    """Return what a teacher is, in words."""
    model = teacher["model"]
    return {
        "task": f"the default teacher of the task ({model}), which gkd trains on its labels",
        "stage": f"the student of stage `{model}`",
        "source": f"the answers of the source `{model}`",
    }.get(teacher["origin"], f"`{model}`")


def _sections(known: Mapping[str, Any], code: str) -> Iterator[str]:
    results, found = known["results"], known["verification"]
    yield f"## Results\n\n{results['metric']} on {results['samples']:,} {results['split']} rows."
    yield _results(results)
    yield f"## This export\n\n{_verified(known['export'], found)}"
    yield f"## Use it\n\n```python\n{code}\n```"
    teachers = [f"- {name}: {_taught_by(one)}" for name, one in known["teachers"].items()]
    if teachers:
        yield "## Teacher\n\n" + "\n".join(teachers)
    yield f"## Training\n\n{_training(known)}"
    yield f"## Data\n\n{_data(known)}"
    cited = [f"- `{name}`: {paper}" for name, paper in papers(known)]
    if cited:
        yield "## Cite\n\n" + "\n".join(cited)
    yield (f"Hashes of the rows, the teacher and every file, and all settings, are in `{LINEAGE}`.")


def _results(results: Mapping[str, Any]) -> str:
    metric = results["metric"]
    lines = [
        f"| model | {metric} | {LEVEL:.0%} interval | of the teacher's | same answers | weights |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in results["models"]:
        inside = row["interval"]
        cells = [
            _plain(row["name"]),
            _number(row["metrics"].get(metric)),
            "-" if inside is None else f"{inside['low']:.4f} to {inside['high']:.4f}",
            _share(row["kept"]),
            _share(row["agreement"]),
            f"{row['parameters']:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plain(text: object) -> str:
    """Return a text that Markdown shows as it is: labels are from data of others."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(str(text).split()))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _verified(export: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the comparison of the export with the trained student."""
    what = (
        "Hugging Face directory" if export["format"] == "hf" else f"ONNX, opset {export['opset']}"
    )
    if export["quantization"]:
        what += f", {export['quantization']}"
    lines = [
        f"{what}. Compared with the trained student on {found['rows']:,} {found['split']} rows:",
        "",
        f"- largest difference of the outputs: {found['difference']:.2g}",
    ]
    if found["differing"] is not None:
        lines.append(f"- predictions that differ: {found['differing']:,}")
    lines.append(
        f"- {found['metric']}: {found['after']:.4f}{_interval(found['estimate'])}, of the student "
        f"{found['before']:.4f}"
    )
    if found["change"] is not None:
        lines.append(f"- change: {found['change']['value']:+.4f}{_interval(found['change'])}")
    lines += [f"- kept although {problem}" for problem in found["problems"]]
    if found["weak"]:
        lines.append(f"- this is weak evidence: {found['weak']}")
    return "\n".join(lines)


def _interval(estimate: Mapping[str, Any] | None) -> str:
    interval = None if estimate is None else estimate["interval"]
    if interval is None:
        return ""
    return f" ({interval['level']:.0%} interval {interval['low']:.4f} to {interval['high']:.4f})"


def _training(known: Mapping[str, Any]) -> str:
    lines = []
    for stage in known["stages"]:
        training = stage["settings"].get("training", {})
        steps = "" if stage["steps"] is None else f"{stage['steps']:,} steps, "
        told = ", ".join(
            f"{name} {training[setting]}"
            for setting, name in SETTINGS.items()
            if training.get(setting) is not None
        )
        lines.append(f"- {stage['name']}: `{stage['method']}`, {steps}{told}, seed {stage['seed']}")
    return "\n".join(lines)


def _data(known: Mapping[str, Any]) -> str:
    task, data = known["task"], known["data"]
    lines = [f"- task: {task['name']} ({task['kind']})", f"- source: {data['source']}"]
    lines += [f"- {name}: {task[name]}" for name in SPLITS if task[name]]
    for name in ("training", "validation"):
        if data[name] is not None:
            lines.append(f"- {name} rows: {data[name]:,}")
    classes = known["student"]["classes"]
    if classes:
        lines.append(f"- labels: {', '.join(map(_plain, classes))}")
    return "\n".join(lines)
