"""Warnings of language models that are worse than a guess, or than they were before training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gkd_core.training.checkpoint import Progress
    from gkd_core.training.stage import Stage

PERPLEXITY = "perplexity"


def poor_language_model(stage: Stage, progress: Progress) -> Iterator[str]:
    """Yield what is wrong with the student that a stage passes on, if it is a language model.

    Args:
        stage: The stage.
        progress: Its progress to the end.
    """
    metric, kept = stage.metric, stage.config.training.keep_best
    value = progress.best if kept else progress.last
    if not stage.spec.kind.is_lm or value is None:
        return
    words = stage.spec.student.labels
    rate = stage.config.training.lr
    advice = f"more steps, or another learning rate (--set training.lr=..., now {rate:g})"
    if metric.name == PERPLEXITY and value >= words:
        yield (
            f"warning: the student of stage {stage.name} is no better than a guess: perplexity "
            f"{value:,.0f} on the validation rows, and {words:,} of guessing one of its "
            f"{words:,} tokens at random. What may help: {advice}"
        )
    if progress.start is not None and metric.better(progress.start, value):
        yield (
            f"warning: the student of stage {stage.name} is worse than at its start: "
            f"{metric.name} {value:.4g} on the validation rows, {progress.start:.4g} before the "
            f"first step. What may help: {advice}"
        )
