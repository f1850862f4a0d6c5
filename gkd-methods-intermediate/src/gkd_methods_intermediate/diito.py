"""DIITO: the distillation interchange intervention training objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from gkd_core.api import (
    Batch,
    Items,
    Method,
    MethodError,
    Models,
    Operation,
    OperationContext,
    Pass,
    Schedule,
    Step,
    Temperature,
    Term,
    View,
    cosine,
    hard_labels,
    layer_segments,
    same_width,
    soft_labels,
)
from gkd_methods_intermediate.interchange import (
    Moves,
    SwappedPositions,
    Transplant,
    draw_moves,
    source_of,
)

Alignment = Literal["full", "middle", "late"]


class DIITO(Method):
    """Match the teacher's answers when part of the computation comes from another sentence.

    L = alpha_ce KL_T(z_t || z_s) + alpha_mlm CE(y, z_s) + alpha_cos (1 - cos(h_s, h_t))
    + alpha_causal_ce KL_T(z_t' || z_s') + alpha_causal_cos (1 - cos(h_s', h_t')), with the soft
    labels KL_T scaled by T^2 and h the last hidden state. The prime marks a pass in which, in both
    models, the hidden states of aligned blocks at some positions are replaced by those of another
    row of the micro-batch. Aligned blocks and positions are drawn in every step.
    """

    name = "diito"
    paper = "Wu, Geiger, Rozner, Kreiss, Lu, Icard, Potts, Goodman, NAACL 2022, arXiv:2112.02505"
    needs_labels = True
    batch_coupled = True
    min_samples = 2

    class Config(Method.Config):
        """Options of `diito`."""

        alignment: Alignment = Field(
            "full",
            description="Which blocks are aligned. `full`: a student block and all teacher blocks "
            "that it replaces, drawn in every step; `middle`: the middle block of both; `late`: "
            "one of the two blocks before the last, drawn in every step.",
        )
        positions: SwappedPositions = Field(
            "consecutive",
            description="Which positions are interchanged: a `consecutive` run, `random` ones, or "
            "those that are `masked` in masked language modeling, whatever their share.",
        )
        share: float = Field(
            0.3,
            ge=0,
            le=1,
            description="Share of interchanged positions, relative to the shorter of the two rows.",
        )
        temperature: Temperature = Field(
            Schedule.parse(2.0), description="T of all soft labels; may be a schedule."
        )
        alpha_ce: Schedule = Field(
            Schedule.parse(0.25), description="Weight of the soft labels; may be a schedule."
        )
        alpha_mlm: Schedule = Field(
            Schedule.parse(0.25), description="Weight of the true labels; may be a schedule."
        )
        alpha_cos: Schedule = Field(
            Schedule.parse(0.25), description="Weight of the hidden states; may be a schedule."
        )
        alpha_causal_ce: Schedule = Field(
            Schedule.parse(0.25),
            description="Weight of the soft labels after the interchange; may be a schedule.",
        )
        alpha_causal_cos: Schedule = Field(
            Schedule.parse(0.0),
            description="Weight of the hidden states after the interchange; may be a schedule.",
        )

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._alignment: tuple[int, Sequence[int]] = (0, ())
        self._seed = 0

    def check(self, models: Models) -> None:
        """Reject depths that cannot be aligned and widths that a cosine cannot compare."""
        student, teacher = models.pair
        if not aligned_blocks(self.config.alignment, student.layers, teacher.layers):
            raise MethodError(
                "diito.alignment='late' aligns blocks before the last, but a model has one block. "
                "Use diito.alignment='full'"
            )
        if self.config.positions == "masked" and not student.is_lm:
            raise MethodError(
                "diito.positions='masked' means the tokens that masked language modeling "
                "predicts, but the task predicts classes. Use 'consecutive' or 'random'"
            )
        cosines = self.config.alpha_cos, self.config.alpha_causal_cos
        if any(weight.is_ever_nonzero for weight in cosines):
            same_width(
                models,
                self.name,
                "Give the student the teacher's hidden size, or set diito.alpha_cos=0 and "
                "diito.alpha_causal_cos=0",
            )

    def begin_step(self, step: Step) -> None:
        """Draw the blocks and the positions that are interchanged, the same for both models."""
        student, teacher = self.models.pair
        alignments = aligned_blocks(self.config.alignment, student.layers, teacher.layers)
        drawn = int(torch.randint(len(alignments), (), generator=step.generator))
        self._alignment = alignments[drawn]
        self._seed = int(torch.randint(2**62, (), generator=step.generator))

    def passes(self, models: Models, step: Step) -> Iterable[Pass]:
        """Return the pass that provides the states and the pass that receives them."""
        return [Pass("source", source_of), Pass("swapped")]

    def writes(self, models: Models, step: Step) -> Iterable[Operation]:
        """Interchange states in the blocks that were drawn."""
        student_block, teacher_blocks = self._alignment
        blocks = [("student", student_block), *(("teacher", block) for block in teacher_blocks)]
        return [
            Transplant(
                f"{side}@swapped.hidden[{block}]",
                f"{side}@source.hidden[{block}]",
                moves=self._moves,
            )
            for side, block in blocks
        ]

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both passes, and the last hidden states if they have a weight."""
        for side in ("student", "teacher"):
            yield f"{side}.logits"
            yield f"{side}@swapped.logits"
            if self.config.alpha_cos.is_ever_nonzero:
                yield f"{side}.hidden[last].normed"
            if self.config.alpha_causal_cos.is_ever_nonzero:
                yield f"{side}@swapped.hidden[last].normed"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the plain passes, the swapped passes and the labels."""
        config, labels = self.config, batch.require_labels()
        over, temperature = _predicted(batch), config.temperature.at(step)
        learned, known = student.at("swapped"), teacher.at("swapped")
        terms = {
            "soft": soft_labels(student.prediction, teacher.prediction, over, temperature),
            "hard": hard_labels(student.prediction, labels, batch.targets),
            "causal": soft_labels(learned.prediction, known.prediction, over, temperature),
        }
        if config.alpha_cos.is_ever_nonzero:
            terms["cosine"] = cosine(student.hidden.normed, teacher.hidden.normed, batch.tokens)
        if config.alpha_causal_cos.is_ever_nonzero:
            terms["causal-cosine"] = cosine(
                learned.hidden.normed, known.hidden.normed, batch.tokens
            )
        weights = {
            "soft": config.alpha_ce,
            "hard": config.alpha_mlm,
            "cosine": config.alpha_cos,
            "causal": config.alpha_causal_ce,
            "causal-cosine": config.alpha_causal_cos,
        }
        return {name: weights[name].at(step) * terms[name] for name in terms}

    def _moves(self, context: OperationContext) -> Moves:
        source = context.inputs["source"]["attention_mask"].bool()
        options = self.config.positions, self.config.share, self._seed
        return draw_moves(context.batch, source, *options)


def aligned_blocks(
    alignment: Alignment, student_layers: int, teacher_layers: int
) -> Sequence[tuple[int, Sequence[int]]]:
    """Return the possible alignments: a student block and its teacher blocks each.

    Raises:
        MethodError: The student is deeper than the teacher, so `full` cannot align it.
    """
    if alignment == "middle":
        student, teacher = (min(n // 2 + 1, n) for n in (student_layers, teacher_layers))
        return [(student, [teacher])]
    if alignment == "late":
        before = [n for n in (2, 1) if n < min(student_layers, teacher_layers)]
        return [(student_layers - n, [teacher_layers - n]) for n in before]
    return list(enumerate(layer_segments(student_layers, teacher_layers), start=1))


def _predicted(batch: Batch) -> Items:
    """Return the items with soft labels: all tokens of a language model, else the samples."""
    return batch.tokens if batch.targets.mask.dim() == 2 else batch.targets
