"""A commented run file for a teacher and rows, with what was found out about both."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w

from gkd_core.data.holdout import take
from gkd_core.plugins import registry
from gkd_core.runs.default_method import as_built
from gkd_core.runs.resolved import resolve_run
from gkd_core.runs.run import prepare_run

if TYPE_CHECKING:
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.contract.task import Split
    from gkd_core.training.stage_spec import StageSpec

MEASURED_ROWS = 2000
"""Training rows whose lengths are measured."""

STEPS_PER_EPOCH = 10
"""Steps that an epoch should have at least, where the rows allow it."""

SMALLEST_BATCH, LARGEST_BATCH = 8, 32
MULTIPLE = 8
"""A length in tokens is rounded up to a multiple of this."""

MANY_CLASSES = 10
COMMENT = 100
"""Characters in a line of a comment."""


@dataclass(frozen=True)
class RowLengths:
    """Tokens of the training rows: of half of them, of 99 in 100, and of the longest, at most."""

    half: int
    most: int
    longest: int
    rows: int


def run_file(teacher: str, data: str, name: str) -> str:
    """Return a run file that distills a student of half the teacher's blocks.

    Args:
        teacher: Directory or hub id.
        data: File, directory or hub dataset of training rows.
        name: Name of the file, for its comments.

    Raises:
        GkdError: The teacher or the rows cannot be used.
    """
    flags = {"teachers": ([{"model": teacher}], "--teacher"), "task.train": (data, "--data")}
    chosen = {"student.layers": ("half", "gkd new-run"), "baseline": (False, "gkd new-run")}
    resolved = resolve_run(flags=flags | chosen)
    specs = prepare_run(resolved, registry())
    return _text(specs[-1], as_built(resolved, specs).stages[-1].config.method, name)


def _text(spec: StageSpec, method: str, name: str) -> str:
    given, task = spec.teachers[0], spec.config.task
    teacher, lengths = given.info, _lengths(spec)
    longest = spec.max_length if lengths is None else _suggested(lengths, spec)
    size = _batch(len(spec.data.train))
    steps = math.ceil(len(spec.data.train) / size)
    return "\n".join(
        _without_controls(line)
        for line in [
            f"# gkd explain {name}   shows what this run computes; no weight is loaded",
            f"# gkd run {name}       starts it",
            "",
            "# What the student learns from; gkd methods lists all. Terms add: 2*pkd+soft.",
            _line("method", method),
            "",
            "[teacher]",
            f"# {_shape(teacher)}.",
            _line("model", given.model),
            "",
            "[student]",
            f"# Blocks of the teacher, evenly spaced: {spec.student.layers} of {teacher.layers}. "
            "Fewer are faster, more are better.",
            _line("layers", spec.student.layers),
            "",
            "[task]",
            *(f"# {line}" for line in _rows(spec)),
            _line("train", task.train),
            _line("kind", spec.kind.name),
            *(f"# {line}" for note in spec.notes for line in textwrap.wrap(note, COMMENT)),
            *(f"# {line}" for line in _about_lengths(lengths)),
            _line("max_length", longest),
            "",
            "[training]",
            f"# {steps:,} steps per epoch. gkd plan {name} shows the memory that a step takes.",
            _line("batch_size", size),
            _line("epochs", spec.config.training.epochs),
            "# New weights (other widths, init = 'random') need a higher rate, such as 1e-3.",
            _line("lr", spec.config.training.lr),
            "",
        ]
    )


def _without_controls(line: str) -> str:
    """Return a line whose comment does not end before it does; data may have any characters."""
    return repr(line)[1:-1] if line.startswith("#") and not line.isprintable() else line


def _line(key: str, value: Any) -> str:
    return tomli_w.dumps({key: value}).rstrip("\n")


def _shape(info: ModelInfo) -> str:
    return (
        f"{info.family}: {info.layers} blocks of width {info.hidden_size:,}, {info.heads} heads, a "
        f"vocabulary of {info.vocab_size:,}, at most {info.max_length:,} tokens"
    )


def _rows(spec: StageSpec) -> list[str]:
    """Return the facts that were found about the rows."""
    data = spec.data
    held = "" if spec.config.task.validation else f" ({spec.config.task.validation_share:.0%} held)"
    tested = "none to test" if data.test is None else f"{len(data.test):,} to test"
    lines = [
        f"{len(data.train):,} rows to train on, {len(data.validation):,} to validate{held}, "
        f"{tested}. Measured by {spec.metric.name}."
    ]
    if data.train.labels is None and not spec.kind.is_lm:
        lines.append("They have no labels: the student learns from the teacher alone.")
    if data.classes and len(data.classes) <= MANY_CLASSES:
        lines.append(f"Classes: {', '.join(_counted(data.train, data.classes))}.")
    elif data.classes:
        lines.append(f"{len(data.classes):,} classes.")
    return lines


def _counted(train: Split, classes: tuple[str, ...]) -> list[str]:
    """Return the classes, with the number of rows of each where a row has one."""
    labels = train.labels or ()
    if not labels or not all(isinstance(label, int) for label in labels):
        return list(classes)
    counts = Counter(labels)
    return [f"{name} ({counts[number]:,})" for number, name in enumerate(classes)]


def _lengths(spec: StageSpec) -> RowLengths | None:
    """Measure some training rows as the models would read them; None of text without an end."""
    train = spec.data.train
    if spec.kind.is_lm and train.target is None and not train.chat:
        return None
    step = math.ceil(len(train) / MEASURED_ROWS)
    some = take(train, range(0, len(train), step))
    found = spec.kind.encode(some, spec.tokenizer, spec.readable_length, spec.data.classes).lengths
    half, most = np.percentile(found, [50, 99])
    return RowLengths(math.ceil(half), math.ceil(most), int(found.max()), len(some))


def _suggested(lengths: RowLengths, spec: StageSpec) -> int:
    """Return a length that cuts at most one row in a hundred, if the models can read it."""
    return min(spec.readable_length, math.ceil(lengths.most / MULTIPLE) * MULTIPLE)


def _about_lengths(lengths: RowLengths | None) -> list[str]:
    if lengths is None:
        return ["Tokens of a block; texts are joined and cut into blocks."]
    return [
        f"Tokens of {lengths.rows:,} rows: half have at most {lengths.half:,}, 99 in 100 at most "
        f"{lengths.most:,}, the longest {lengths.longest:,}. Longer rows are cut."
    ]


def _batch(rows: int) -> int:
    """Return the largest power of two that leaves enough steps."""
    fitting = 1 << int(math.log2(max(1, rows / STEPS_PER_EPOCH)))
    return min(LARGEST_BATCH, max(SMALLEST_BATCH, fitting))
