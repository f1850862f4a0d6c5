"""Teachers whose weights are a moving average of the student's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from gkd_core.training.stage import Stage


def moving_teachers(stage: Stage) -> Iterator[tuple[str, PreTrainedModel, float]]:
    """Yield the name, the model and the rate of each teacher that follows the student."""
    for number, settings in enumerate(stage.config.teachers if stage.teachers else ()):
        if settings.follow is not None:
            yield settings.name, stage.live(number).model, settings.follow


@torch.no_grad()
def follow_student(stage: Stage) -> None:
    """Move the weights of teachers towards those of the student, after a step.

    Args:
        stage: The stage. A teacher is divided as the student is, so that their shards correspond.
    """
    for _, teacher, rate in moving_teachers(stage):
        pairs = zip(teacher.parameters(), stage.student.model.parameters(), strict=True)
        for known, learned in pairs:
            known.lerp_(learned.to(known.dtype), rate)
