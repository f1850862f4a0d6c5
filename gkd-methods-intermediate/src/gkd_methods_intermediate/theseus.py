"""BERT-of-Theseus: compression by replacing modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field

from gkd_core.api import (
    Batch,
    Method,
    MethodError,
    Models,
    Operation,
    Part,
    Schedule,
    Share,
    Step,
    Swap,
    Term,
    View,
    hard_labels,
    layer_segments,
)


class Theseus(Method):
    """Replace the teacher's blocks at random with the student's, until none is left.

    The teacher is divided into as many runs of blocks as the student has blocks. In every step,
    each run takes the place of its student block with probability 1 - p (section 3.1), where the
    replacement rate p increases (section 3.3). L = CE(y, z) of this mixture (Eq. 6); only the
    student's blocks are trained. At p = 1 the teacher is gone: this is successor fine-tuning
    (section 3.2). The student is evaluated alone.
    """

    name = "theseus"
    paper = "Xu, Zhou, Ge, Wei, Zhou, EMNLP 2020, arXiv:2002.02925"
    needs_labels = True
    borrows_blocks = True

    class Config(Method.Config):
        """Options of `theseus`."""

        rate: Share = Field(
            Schedule.parse("linear(0.3 -> 1, over=66%)"),
            description="Replacement rate: the probability that a block is the student's in a "
            "step; a schedule (the paper's curriculum) or a number (its constant rate).",
        )

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._borrowed: Sequence[int] = ()

    def check(self, models: Models) -> None:
        """Reject models whose blocks cannot exchange hidden states."""
        student, teacher = models.pair
        layer_segments(student.layers, teacher.layers)
        for what, own, known in (
            ("architecture", student.family, teacher.family),
            ("hidden size", student.hidden_size, teacher.hidden_size),
            ("head size", student.head_size, teacher.head_size),
        ):
            if own != known:
                raise MethodError(
                    f"theseus runs blocks of the teacher in the student, but the student's {what} "
                    f"is {own} and that of the teacher '{teacher.name}' {known}. Make the student "
                    "shallower only (student.layers), or use a method for narrower ones, such as "
                    "tinybert"
                )

    def lr_factors(self, models: Models, step: Step) -> Mapping[Part, float]:
        """Freeze everything outside the blocks."""
        return {"embedding": 0.0, "head": 0.0}

    def begin_step(self, step: Step) -> None:
        """Draw the blocks that are the teacher's in this step."""
        rate = self.config.rate.at(step)
        replaced = torch.rand(self.models.student.layers, generator=step.generator) < rate
        self._borrowed = [block for block, own in enumerate(replaced, start=1) if not own]

    def writes(self, models: Models, step: Step) -> Iterable[Operation]:
        """Run the teacher's blocks that were drawn in place of the student's."""
        student, teacher = models.pair
        runs = layer_segments(student.layers, teacher.layers)
        for block in self._borrowed:
            numbers = ",".join(map(str, runs[block - 1]))
            yield Swap(f"student.block[{block}]", f"teacher.block[{numbers}]")

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of the mixture; the teacher itself does not run."""
        yield "student.logits"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the prediction of the mixture with the true labels."""
        return {"theseus": hard_labels(student.prediction, batch.require_labels(), batch.targets)}
