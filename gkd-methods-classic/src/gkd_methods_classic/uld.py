"""ULD: predictions over any two vocabularies, compared after sorting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from gkd_core.api import Batch, Method, Models, Schedule, Step, Temperature, Term, View
from gkd_methods_classic.alignment import pair_in_order


class ULD(Method):
    """The distance of both models' sorted probabilities, whatever their vocabularies.

    L = sum_i |q_(i) - p_(i)|, where q_(i) and p_(i) are the i-th largest probabilities of student
    and teacher, and 0 beyond the smaller vocabulary: the Wasserstein distance of both
    distributions if all tokens are equally far apart. The n-th token of the text as the student
    reads it is compared with the n-th of the teacher. Which token has which probability plays no
    part.
    """

    name = "uld"
    paper = "Boizard, El Haddad, Hudelot, Colombo, TMLR 2025, arXiv:2402.12030"
    kinds = ("causal-lm",)
    aligns = True

    class Config(Method.Config):
        """Options of `uld`."""

        temperature: Temperature = Field(
            Schedule.parse(1.0), description="Divisor of both logits; may be a schedule."
        )

    config: Config

    def items(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the predictions of the student that the teacher has a counterpart of."""
        teacher = self.models.pair[1].name
        pairs = pair_in_order(batch, batch.view(teacher))
        mask = torch.zeros_like(batch.mask)
        mask[pairs.rows, pairs.student] = True
        return {teacher: mask}

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the predictions of each pair of tokens."""
        over = batch.items(teacher.model.name)
        pairs = pair_in_order(batch, batch.view(teacher.model.name))
        temperature = self.config.temperature.at(step)
        distances = sorted_distance(
            probabilities(student.logits[pairs.rows, pairs.student], temperature),
            probabilities(teacher.logits[pairs.rows, pairs.teacher], temperature),
        )
        values = distances.new_zeros(over.mask.shape)
        return {"uld": Term(values.index_put((pairs.rows, pairs.student), distances), over)}


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return probabilities `[..., V]`, in fp32 or fp64.

    Args:
        logits: `[..., V]`.
        temperature: Divisor of the logits.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (logits.to(dtype) / temperature).softmax(-1)


def sorted_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum of the differences of sorted probabilities, `[...]`.

    Args:
        student: `[..., V]`.
        teacher: `[..., W]`; the narrower of both is continued with zeros.
    """
    width = max(student.shape[-1], teacher.shape[-1])
    learned, known = (
        functional.pad(one.sort(-1, descending=True).values, (0, width - one.shape[-1]))
        for one in (student, teacher)
    )
    return (learned - known).abs().sum(-1)
