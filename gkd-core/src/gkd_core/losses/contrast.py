"""Contrastive losses between the items of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.contract.batch import Items
from gkd_core.losses.divergences import cross_entropy
from gkd_core.losses.logits import LinearLogits
from gkd_core.losses.term import Term


def contrast(student: Tensor, teacher: Tensor, over: Items, temperature: float = 0.1) -> Term:
    """InfoNCE: identify the teacher's vector of the same item among those of all items.

    Minus the log-probability of the item's own teacher vector, under the softmax of the cosine
    similarities to the teacher vectors of all items that count, divided by the temperature (van
    den Oord et al., 2018, Eq. 4, with in-batch negatives). With N items it is ln N for vectors that
    are all alike, and 0 for a single item. It depends on the rest of the batch: a method that uses
    it declares `batch_coupled`.

    Args:
        student: `[*items, D]`.
        teacher: `[*items, D]`, constant.
        over: The items averaged over, which are each other's negatives.
        temperature: Divisor of the similarities.

    Raises:
        ValueError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} "
            "differ in shape; a projection may be needed"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    known = teacher.detach().flatten(0, -2)[over.index].to(dtype)
    own = torch.zeros(over.mask.numel(), dtype=torch.int64, device=over.mask.device)
    own[over.index] = torch.arange(over.count, device=own.device)
    with torch.autocast(student.device.type, enabled=False):
        similarities = LinearLogits(
            functional.normalize(student.to(dtype), dim=-1) / temperature,
            functional.normalize(known, dim=-1),
            None,
        )
        return cross_entropy(similarities, own.view(over.mask.shape), over)
