"""`CapturedStates`: tensors of a teacher's body in a cache of answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gkd_core.hooks.paths import LOGITS, Capture, parse_path
from gkd_core.losses.relation import Relation
from gkd_core.losses.rules import MASKED
from gkd_core.teachers.answer_form import AnswerForm, Columns, Fidelity, Size, Unit
from gkd_core.teachers.values import pairs

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.hooks.features import Answer, Features
    from gkd_core.losses.logits import Logits

BY_HEAD = ("query", "key", "value")
"""Sites whose tensors are `[B, A, S, Dh]`; they are stored by token."""

BETWEEN_TOKENS = ("scores", "probs", "attention")
"""Sites whose scores are stored, by pair of tokens; all else follows from them."""


@dataclass(frozen=True)
class CapturedStates(AnswerForm):
    """Tensors that methods read of a teacher, and its logits if they read these as well.

    Attributes:
        names: The tensors besides the logits, as in `hidden[4]|cls`.
        of_logits: The form of the logits; None if nobody reads them.
    """

    names: tuple[str, ...]
    of_logits: AnswerForm | None
    name = "states"

    @property
    def states(self) -> tuple[Capture, ...]:
        """The tensors besides the logits."""
        return tuple(map(capture_of, self.names))

    @property
    def captures(self) -> frozenset[Capture]:
        """What the teacher is asked for."""
        return frozenset(self.states) | (frozenset({LOGITS}) if self.of_logits else frozenset())

    @property
    def has_head(self) -> bool:
        """Whether the teacher's head is stored, too."""
        return self.of_logits is not None and self.of_logits.has_head

    @property
    def unit(self) -> Unit:
        """What answers are counted in: rows, if that is what all values are about."""
        by_row = self.of_logits is None or self.of_logits.unit == "row"
        by_row = by_row and all(unit_of(each) == "row" for each in self.states)
        return "row" if by_row else "token"

    def unit_of(self, column: str) -> Unit:
        """Return what a value of a column is about."""
        if column in self.names:
            return unit_of(capture_of(column))
        assert self.of_logits is not None, "the column is of the logits"
        return self.of_logits.unit_of(column)

    def size(self, info: ModelInfo) -> Size:
        """Return the bytes of the tensors."""
        of_logits = Size(0) if self.of_logits is None else self.of_logits.size(info)
        return sum((size_of(each, info, self._width) for each in self.states), of_logits)

    def stored(self, features: Features, batch: Batch) -> Columns:
        """Return the tensors, heads of a token or pair together."""
        found = {} if self.of_logits is None else self.of_logits.stored(features, batch)
        states = {
            str(each): self._rounded(by_unit(each, features), masked=unit_of(each) == "pair")
            for each in self.states
        }
        return {**found, **states}

    def head(self, features: Features) -> Mapping[str, Tensor]:
        """Return what makes the logits of its input, if that is stored."""
        return {} if self.of_logits is None else self.of_logits.head(features)

    def logits(self, columns: Columns, head: Mapping[str, Tensor]) -> Logits:
        """Return the logits."""
        assert self.of_logits is not None, "they are stored"
        return self.of_logits.logits(columns, head)

    def answers(self, columns: Columns, head: Mapping[str, Tensor]) -> Mapping[Capture, Answer]:
        """Return the tensors, and the logits."""
        found = {} if self.of_logits is None else self.of_logits.answers(columns, head)
        states = {each: as_captured(each, columns[str(each)].float()) for each in self.states}
        return {**found, **states}

    def fidelity(self, features: Features, columns: Columns, batch: Batch) -> Fidelity:
        """Return the distance of the logits from those that were computed, and the worst tensor."""
        logits = self.of_logits
        found = Fidelity(0.0) if logits is None else logits.fidelity(features, columns, batch)
        errors = (self._error(each, features, columns, batch) for each in self.states)
        return Fidelity(found.divergence, found.tail, max(errors, default=0.0))

    def _error(self, capture: Capture, features: Features, columns: Columns, batch: Batch) -> float:
        pair = (by_unit(capture, features).float(), columns[str(capture)].float())
        computed, stored = (of_texts(each, unit_of(capture), batch.mask) for each in pair)
        seen = computed > -torch.inf
        computed, lost = computed[seen], (stored - computed)[seen]
        return float((lost.square().mean() / computed.square().mean().clamp(min=1e-30)).sqrt())


def capture_of(name: str) -> Capture:
    """Return the capture with a name, as in `hidden[4]|cls`."""
    path = parse_path(f"teacher.{name}", "a cache of answers")
    layer = int(path.index[0]) if path.index else None
    return Capture(path.site, layer, path.normed, path.reduce)


def unit_of(capture: Capture) -> Unit:
    """Return what a value of a capture besides the logits is about."""
    if capture.reduce or capture.site == "pooled":
        return "row"
    return "pair" if capture.site in BETWEEN_TOKENS else "token"


def size_of(capture: Capture, info: ModelInfo, width: int) -> Size:
    """Return the bytes that a capture takes.

    Args:
        capture: The capture.
        info: The shape of the teacher.
        width: Bytes of a value.
    """
    unit = unit_of(capture)
    if unit == "pair":
        return Size(0, pair=info.heads * width)
    own = capture.bytes(info, 1, 1, width)
    return Size(0, own) if unit == "row" else Size(own)


def names_of(captures: Iterable[Capture]) -> tuple[str, ...]:
    """Return the names of captures besides the logits, in their order."""
    return tuple(str(capture) for capture in sorted(captures, key=str) if capture != LOGITS)


def by_unit(capture: Capture, features: Features) -> Tensor:
    """Return a captured tensor as it is stored: `[B, D]`, `[B, S, ...]` or `[B, S, S, A]`.

    Of the sites between tokens it is the scores, -inf where masked.
    """
    if unit_of(capture) == "pair":
        scores = features.attention[capture].scores()
        return scores.masked_fill_(scores <= MASKED, -torch.inf).permute(0, 2, 3, 1)
    tensor = features[capture]
    return tensor.transpose(1, 2) if capture.site in BY_HEAD else tensor


def as_captured(capture: Capture, stored: Tensor) -> Tensor | Relation:
    """Return what is stored as a forward pass captures it; scores as what they follow from."""
    if unit_of(capture) == "pair":
        return Relation.of_scores(stored.permute(0, 3, 1, 2))
    return stored.transpose(1, 2) if capture.site in BY_HEAD else stored


def of_texts(stored: Tensor, unit: Unit, mask: Tensor) -> Tensor:
    """Return the values of a batch without its padding, row after row.

    Args:
        stored: The values, as in `by_unit`.
        unit: What each is about.
        mask: True at positions that are not padding, bool `[B, S]`.
    """
    if unit == "row":
        return stored
    return stored[mask if unit == "token" else pairs(mask)]
