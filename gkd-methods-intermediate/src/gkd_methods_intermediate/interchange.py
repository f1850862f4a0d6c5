"""Interchange of hidden states between the rows of a micro-batch at randomly drawn positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from gkd_core.api import Batch, Interchange, OperationContext, Step, all_samples

SwappedPositions = Literal["consecutive", "random", "masked"]
Moves: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Rows, target positions, and source positions of the states moved; int64 `[N]` each."""


@dataclass(frozen=True)
class Transplant(Interchange):
    """An interchange whose source and target positions differ.

    Attributes:
        moves: Returns the rows, target positions and source positions.
    """

    moves: Callable[[OperationContext], Moves] = field(kw_only=True)

    def bind(self, context: OperationContext) -> Callable[[Tensor], Tensor]:
        """Look up the source and the moves."""
        source = super().bind(context)
        rows, filled, taken = self.moves(context)
        return lambda tensor: tensor.index_put((rows, filled), source(tensor)[rows, taken])


def source_of(batch: Batch, step: Step) -> dict[str, Tensor]:
    """Return the inputs of the pass in which each row is replaced by its source.

    The source is another row of the micro-batch, possibly on another rank.
    """
    rows = all_samples(batch.rows, batch)
    sources = source_rows(rows.values, rows.counts, rows.number)[rows.own]
    return {name: all_samples(v, batch).values[sources] for name, v in batch.inputs.items()}


def source_rows(rows: Tensor, counts: Tensor, number: int) -> Tensor:
    """Return the source row of each row of a micro-batch.

    It is the next row in dataset order, wrapping around, so that it does not depend on the order of
    the micro-batch. A single row is its own source.

    Args:
        rows: Index of each row in its dataset, int64 `[N]`.
        counts: True for valid rows, bool `[N]`.
        number: Number of valid rows.

    Returns:
        int64 `[N]`.
    """
    last = torch.iinfo(rows.dtype).max
    ordered, places = torch.where(counts, rows, last).sort(stable=True)
    following = torch.searchsorted(ordered[:number], rows, right=True) % number
    return places[following]


def draw_moves(
    batch: Batch, source: Tensor, positions: SwappedPositions, share: float, seed: int
) -> Moves:
    """Draw target positions for each row, and source positions in its source row.

    Padding is never a target or a source. The draw for a row depends only on the row, its source
    and the seed.

    Args:
        batch: The micro-batch.
        source: True where the source of each row has a token, bool `[B, S]`.
        positions: How positions are chosen.
        share: Share of the positions of the shorter row; `masked` uses all masked positions.
        seed: Equal seeds give equal moves.
    """
    fillable = (batch.targets.mask if positions == "masked" else batch.mask).cpu()
    source, moves = source.cpu(), []
    for row, number in enumerate(batch.rows.tolist()):
        generator = torch.Generator().manual_seed(seed + number)
        filled, taken = (where[row].nonzero().flatten() for where in (fillable, source))
        shorter = min(len(filled), len(taken))
        count = shorter if positions == "masked" else math.floor(share * shorter)
        draw = _run if positions == "consecutive" else _scattered
        filled, taken = (where[draw(len(where), count, generator)] for where in (filled, taken))
        moves.append(torch.stack([torch.full_like(filled, row), filled, taken]))
    rows, filled, taken = torch.cat(moves, dim=1).to(batch.rows.device)
    return rows, filled, taken


def _run(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` consecutive numbers below `size`."""
    return torch.randint(size - count + 1, (1,), generator=generator) + torch.arange(count)


def _scattered(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` distinct numbers below `size`, in ascending order."""
    return torch.randperm(size, generator=generator)[:count].sort().values
