"""The order in which heads and neurons are pruned, and the resulting nested slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gkd_core.models.slicing.select import Kept
from gkd_core.models.slicing.widths import Widths
from gkd_core.students.importance import Importance


@dataclass(frozen=True)
class Ranking:
    """The order of a model's heads, or of its neurons.

    Attributes:
        order: The units of each block, most important first.
        removal: For each removal step, the block that loses its least important unit.
    """

    order: tuple[tuple[int, ...], ...]
    removal: tuple[int, ...]

    @classmethod
    def of(cls, scores: Sequence[Tensor]) -> Ranking:
        """Rank by scores: all blocks compete, and the least important units go first."""
        listed = [block.tolist() for block in scores]
        order = tuple(
            tuple(sorted(range(len(block)), key=lambda unit: (-block[unit], unit)))
            for block in listed
        )
        # Within a block, the reverse of its order, so that slices are its first entries.
        steps = sorted(
            (listed[layer][unit], layer, -place)
            for layer, units in enumerate(order)
            for place, unit in enumerate(units)
        )
        return cls(order, tuple(layer for _, layer, _ in steps))

    def counts(self, removed: int) -> tuple[int, ...]:
        """Return the number of units left in each block after a number of removals."""
        gone = Counter(self.removal[:removed])
        return tuple(len(units) - gone[layer] for layer, units in enumerate(self.order))

    def even_counts(self, share: float) -> tuple[int, ...]:
        """Return the number left in each block if each keeps the same share, at least one."""
        return tuple(max(1, round(share * len(units))) for units in self.order)

    def first(self, counts: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the most important units of each block."""
        return [units[:count] for units, count in zip(self.order, counts, strict=True)]

    def as_tree(self) -> dict[str, Any]:
        """Return the ranking in JSON-serializable form."""
        return {"order": [list(units) for units in self.order], "removal": list(self.removal)}

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> Ranking:
        """Return the ranking written by `as_tree`."""
        return cls(tuple(map(tuple, tree["order"])), tuple(tree["removal"]))


@dataclass(frozen=True)
class Slicer:
    """The nested slices of a model: a smaller slice is part of a larger one.

    `Slicer.of` makes one from the result of `measure_importance`, `widths` returns the widths of a
    slice, and `cut_ordered` cuts it out. `as_tree` and `parse` are for checkpoints.

    Attributes:
        heads: Order of the heads.
        neurons: Order of the neurons.
        multiple: The neurons of a block are a multiple of this number if they were one before.
    """

    heads: Ranking
    neurons: Ranking
    multiple: int

    @classmethod
    def of(cls, importance: Importance, multiple: int) -> Slicer:
        """Order heads and neurons by their importance.

        Args:
            importance: Scores, as `measure_importance` returns them.
            multiple: The neurons of a block remain a multiple of this number.
        """
        return cls(Ranking.of(importance.heads), Ranking.of(importance.neurons), multiple)

    def widths(self, scale: float) -> Widths:
        """Return the widths of the slice that keeps a share of all heads and all neurons.

        Heads and neurons are counted separately, over all blocks together: some blocks lose more
        than others, and may lose all.

        Args:
            scale: The share, 0 to 1.
        """
        heads = self.heads.counts(round((1 - scale) * len(self.heads.removal)))
        neurons = self.neurons.counts(round((1 - scale) * len(self.neurons.removal)))
        return Widths(heads, self._rounded(neurons))

    def even_widths(self, scale: float, heads: bool) -> Widths:
        """Return the widths of the slice that keeps a share of the neurons of each block.

        Args:
            scale: The share, 0 to 1.
            heads: Whether to keep the same share of the heads, or all of them.
        """
        counts = self.heads.even_counts(scale if heads else 1.0)
        rounded = self._rounded(self.neurons.even_counts(scale))
        least = tuple(
            count or min(self.multiple, len(units))
            for count, units in zip(rounded, self.neurons.order, strict=True)
        )
        return Widths(counts, least)

    def kept(self, widths: Widths) -> Kept:
        """Return the heads and neurons of a slice, most important first."""
        return Kept(self.heads.first(widths.heads), self.neurons.first(widths.neurons))

    def as_tree(self) -> dict[str, Any]:
        """Return the order in JSON-serializable form."""
        rankings = {"heads": self.heads.as_tree(), "neurons": self.neurons.as_tree()}
        return {**rankings, "multiple": self.multiple}

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> Slicer:
        """Return the slicer written by `as_tree`."""
        heads, neurons = Ranking.parse(tree["heads"]), Ranking.parse(tree["neurons"])
        return cls(heads, neurons, tree["multiple"])

    def _rounded(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Remove multiples of `multiple` neurons per block; a remainder below it goes as well."""
        step = self.multiple
        found = []
        for count, units in zip(counts, self.neurons.order, strict=True):
            left = len(units) - step * round((len(units) - count) / step)
            found.append(left if left >= step or left == len(units) else 0)
        return tuple(found)
