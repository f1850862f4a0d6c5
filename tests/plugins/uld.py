"""ULD: predictions of any two vocabularies, compared after sorting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.api import Batch, Method, Models, Step, Term, View, hookimpl


class ULD(Method):
    """Compare the sorted probabilities of both models.

    The Wasserstein distance of two distributions over different vocabularies, if all pairs of
    tokens are equally far apart, is the L1 distance of their sorted probabilities. The first target
    of the student is compared with the teacher's first, the second with its second, and so on;
    targets that the other model lacks do not count.
    """

    name = "uld"
    paper = "Boizard, El Haddad, Hudelot, Colombo, TMLR 2025, arXiv:2402.12030"
    kinds = ("causal-lm",)
    aligns = True

    def items(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the targets that both models have."""
        teacher = self.models.pair[1].name
        return {teacher: _first(batch.targets.mask, batch.view(teacher).targets.mask.sum(1))}

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the predictions of the targets that both models have."""
        name = teacher.model.name
        over = batch.items(name)
        theirs = _first(batch.view(name).targets.mask, over.mask.sum(1))
        learned, known = _sorted(student.logits[over.mask]), _sorted(teacher.logits[theirs])
        width = max(learned.shape[-1], known.shape[-1])
        distances = (_widen(learned, width) - _widen(known, width)).abs().sum(-1)
        values = distances.new_zeros(over.mask.shape).masked_scatter(over.mask, distances)
        return {"uld": Term(values, over)}


def _first(mask: Tensor, count: Tensor) -> Tensor:
    """Return the first `count` items of each row of a mask."""
    return mask & (mask.cumsum(1) <= count.unsqueeze(1))


def _sorted(logits: Tensor) -> Tensor:
    """Return the probabilities in descending order, in fp32 or fp64."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).softmax(-1).sort(-1, descending=True).values


def _widen(probabilities: Tensor, width: int) -> Tensor:
    """Return probabilities with zeros for the tokens that a vocabulary lacks."""
    return functional.pad(probabilities, (0, width - probabilities.shape[-1]))


@hookimpl
def gkd_register_methods() -> list[type[Method]]:
    """Register the method."""
    return [ULD]
