"""Teachers that hardly do better on labeled rows than a guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from gkd_core.data.holdout import fewer
from gkd_core.evaluation.evaluate import evaluate
from gkd_core.evaluation.statistics import beats_chance
from gkd_core.hooks.extraction import Extractor
from gkd_core.models.classes import listed, names_count, teacher_classes

if TYPE_CHECKING:
    from gkd_core.contract.task import Split
    from gkd_core.kinds.task_kind import Evaluation
    from gkd_core.training.stage import Stage
    from gkd_core.training.stage_spec import StageSpec, TeacherSpec

ROWS = 256
"""Validation rows that are enough to tell a teacher from a guess."""

ACCURACY = "accuracy"
"""The metric that is a share of right rows."""

ENOUGH = 50
"""Rows from which on a share of right answers near that of a guess is told from chance."""


def hardly_better(value: float, guess: float, metric: str, rows: int) -> bool:
    """Return whether the metric of a model may well be that of a guess.

    Args:
        value: The metric.
        guess: What a guess reaches.
        metric: Its name; an accuracy must be higher than chance explains.
        rows: Number of rows that it was measured on.
    """
    if metric == ACCURACY and rows >= ENOUGH:
        return not beats_chance(round(value * rows), rows, guess)
    return value <= guess


def doubtful_teachers(stage: Stage) -> Iterator[str]:
    """Yield a warning for each teacher that is hardly better than a guess on validation rows.

    Teachers that gkd has trained for the same rows are trusted, and so are those that more
    processes share than the student. Every rank must call this.

    Args:
        stage: The stage, before it is trained.
    """
    spec = stage.spec
    rows = fewer(spec.data.validation, ROWS)
    guess = spec.kind.guess(rows.labels)
    if guess is None or not spec.reads_teachers:
        return
    layout = spec.layout
    for source, teacher in zip(spec.teachers, stage.teachers, strict=True):
        if source.is_made or not isinstance(teacher, Extractor):
            continue
        if layout.teachers[source.info.name] > layout.tensor:
            continue
        encoded, collator = spec.encode(rows, source.tokenizer), spec.collator(source.tokenizer)
        found = evaluate(teacher.model, encoded, collator, spec.kind, stage.engine.device)
        name = spec.kind.metric.name
        if hardly_better(found.metrics[name], guess, name, len(rows)):
            yield _warning(spec, source, rows, found, guess)


def _warning(
    spec: StageSpec, source: TeacherSpec, rows: Split, found: Evaluation, guess: float
) -> str:
    name = spec.kind.metric.name
    by = "the most frequent class" if spec.kind.has_classes else "a constant answer"
    return (
        f"warning: {source.setting} = '{source.model}' has {name} {found.metrics[name]:.4f} on "
        f"{len(rows):,} validation rows, and {by} alone {guess:.4f}. "
        f"{_reason(spec, source, rows, found)}"
    )


def _reason(spec: StageSpec, source: TeacherSpec, rows: Split, found: Evaluation) -> str:
    """Return the possible problem, and what to do about it."""
    classes = spec.data.classes
    unnamed = teacher_classes(source.config) is None and not names_count(classes)
    if not spec.kind.has_classes or not unnamed:
        return "Is it a teacher of this task, and are these its labels?"
    better = ""
    if isinstance(found.predictions, Tensor) and rows.labels is not None:
        better = _better_order(found.predictions.tolist(), rows.labels, classes)
    return f"Its outputs have no names and were taken in the order {listed(classes)}{better}"


def _better_order(predictions: Sequence[int], labels: Sequence[int], classes: Sequence[str]) -> str:
    """Return the order of the outputs that the labels suggest; empty if they suggest none."""
    pairs = Counter(zip(predictions, labels, strict=True))
    best = [max(range(len(classes)), key=lambda c: pairs[o, c]) for o in range(len(classes))]
    if len(set(best)) < len(classes):
        return "; task.classes names another"
    right = sum(pairs[output, label] for output, label in enumerate(best)) / len(labels)
    order = ", ".join(f'"{classes[label]}"' for label in best)
    return f"; in another one {right:.1%} are right: --set 'task.classes=[{order}]'"
