"""Answers of a teacher about all rows of a data set: for each row, each token, or each pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from gkd_core.hooks.paths import Capture

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch


@dataclass(frozen=True)
class RowValues:
    """One tensor for each row.

    Attributes:
        values: `[N, ...]`.
    """

    values: Tensor

    def at(self, batch: Batch) -> Tensor:
        """Return the tensors of the rows of a batch, `[B, ...]`."""
        return self.values[batch.rows.to(self.values.device)].to(batch.rows.device)

    def to(self, device: torch.device) -> RowValues:
        """Return them on a device."""
        return RowValues(self.values.to(device))


@dataclass(frozen=True)
class TokenValues:
    """One tensor for each token of each row.

    Attributes:
        values: `[T, ...]`, the tokens of each row together and without padding.
        starts: Index of the first token of each row, int64 `[N]`.
        spans: Whether they are distributions over the tokens of a row, which padding is not part
            of: `[B, C, S]`.
    """

    values: Tensor
    starts: Tensor
    spans: bool

    def at(self, batch: Batch) -> Tensor:
        """Return the tensors of the tokens of a batch, `[B, S, ...]`, 0 at padding; or of spans."""
        mask, device = batch.mask.to(self.values.device), batch.rows.device
        place = self.starts[batch.rows.to(mask.device), None] + mask.cumsum(1) - 1
        found = self.values[place.clamp(0, len(self.values) - 1)]
        padding = (...,) + (None,) * (found.dim() - mask.dim())
        found = found.where(mask[padding], -torch.inf if self.spans else 0).to(device)
        return found.transpose(1, 2).contiguous() if self.spans else found

    def to(self, device: torch.device) -> TokenValues:
        """Return them on a device."""
        return replace(self, values=self.values.to(device), starts=self.starts.to(device))


@dataclass(frozen=True)
class PairValues:
    """One tensor for each pair of tokens of a row.

    Attributes:
        values: `[P, ...]`, the pairs of each row together: of its first token with all, and so on.
        starts: Index of the first pair of each row, int64 `[N]`.
    """

    values: Tensor
    starts: Tensor

    def at(self, batch: Batch) -> Tensor:
        """Return the tensors of the pairs of a batch, `[B, S, S, ...]`, -inf at padding."""
        device = self.values.device
        both, starts = pairs(batch.mask.to(device)), self.starts[batch.rows.to(device)]
        ends = starts + both.sum((1, 2))
        own = zip(starts.tolist(), ends.tolist(), strict=True)
        found = self.values.new_full((*both.shape, *self.values.shape[1:]), -torch.inf)
        found[both] = torch.cat([self.values[start:end] for start, end in own])
        return found.to(batch.rows.device)

    def to(self, device: torch.device) -> PairValues:
        """Return them on a device."""
        return PairValues(self.values.to(device), self.starts.to(device))


def pairs(mask: Tensor) -> Tensor:
    """Return the pairs of positions of which neither is padding, bool `[B, S, S]`."""
    return mask[:, :, None] & mask[:, None, :]


Values: TypeAlias = RowValues | TokenValues | PairValues

Answers: TypeAlias = Mapping[Capture, Values]
"""Tensors of a teacher by what they are; under `LOGITS` perhaps what its head makes them of."""
