"""Answers of a teacher about all rows of a data set: one for each row, or one for each token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

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
        return self.values[batch.rows]

    def to(self, device: torch.device) -> RowValues:
        """Return them on a device."""
        return RowValues(self.values.to(device))


@dataclass(frozen=True)
class TokenValues:
    """One tensor for each token of each row.

    Attributes:
        values: `[T, C]`, row after row without padding.
        starts: Index of the first token of each row, int64 `[N]`.
        spans: Whether they are distributions over the tokens of a row, which padding is not part
            of: `[B, C, S]`.
    """

    values: Tensor
    starts: Tensor
    spans: bool

    def at(self, batch: Batch) -> Tensor:
        """Return the tensors of the tokens of a batch, `[B, S, C]`, 0 at padding; or of spans."""
        mask = batch.mask
        place = self.starts[batch.rows, None] + mask.cumsum(1) - 1
        found = self.values[place.clamp(0, len(self.values) - 1)]
        found = found.where(mask[..., None], -torch.inf if self.spans else 0)
        return found.transpose(1, 2).contiguous() if self.spans else found

    def to(self, device: torch.device) -> TokenValues:
        """Return them on a device."""
        return replace(self, values=self.values.to(device), starts=self.starts.to(device))


Values: TypeAlias = RowValues | TokenValues
