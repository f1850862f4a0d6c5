"""`CapturedStates`: tensors of a teacher's body in a cache of answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from gkd_core.errors import ConfigError
from gkd_core.hooks.paths import LOGITS, Capture, parse_path
from gkd_core.teachers.answer_form import AnswerForm, Columns, Fidelity, Size

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.hooks.features import Answer, Features
    from gkd_core.losses.logits import Logits

BY_HEAD = ("query", "key", "value")
"""Sites whose tensors are `[B, A, S, Dh]`; they are stored by token."""

BETWEEN_TOKENS = ("scores", "probs", "attention")


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
    def unit(self) -> str:
        """What most values are about."""
        by_row = self.of_logits is None or self.of_logits.unit == "row"
        return "row" if by_row and all(map(is_by_row, self.states)) else "token"

    def is_by_token(self, column: str) -> bool:
        """Return whether a column has a value for each token, and not one for each row."""
        if column in self.names:
            return not is_by_row(capture_of(column))
        return self.of_logits is not None and self.of_logits.is_by_token(column)

    def size(self, info: ModelInfo) -> Size:
        """Return the bytes of the tensors."""
        made = Size(0) if self.of_logits is None else self.of_logits.size(info)
        for capture in self.states:
            own = capture.bytes(info, 1, 1, self._width)
            made += Size(0, own) if is_by_row(capture) else Size(own)
        return made

    def stored(self, features: Features, batch: Batch) -> Columns:
        """Return the tensors, heads of a token together."""
        found = {} if self.of_logits is None else self.of_logits.stored(features, batch)
        states = {str(each): self._rounded(by_token(each, features[each])) for each in self.states}
        return {**found, **states}

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
        computed = by_token(capture, features[capture]).float()
        lost = columns[str(capture)].float() - computed
        if not is_by_row(capture):
            computed, lost = computed[batch.mask], lost[batch.mask]
        return float((lost.square().mean() / computed.square().mean().clamp(min=1e-30)).sqrt())


def capture_of(name: str) -> Capture:
    """Return the capture with a name, as in `hidden[4]|cls`."""
    path = parse_path(f"teacher.{name}", "a cache of answers")
    layer = int(path.index[0]) if path.index else None
    return Capture(path.site, layer, path.normed, path.reduce)


def is_by_row(capture: Capture) -> bool:
    """Return whether there is one value of a capture for each row, and not for each token."""
    return bool(capture.reduce) or capture.site == "pooled"


def check_storable(captures: Iterable[Capture]) -> None:
    """Reject captures that cannot be stored.

    Args:
        captures: What methods read of the teacher.

    Raises:
        ConfigError: Names one, and says why.
    """
    for capture in captures:
        if capture.site in BETWEEN_TOKENS:
            raise ConfigError(
                f"teacher.{capture} cannot be stored: it grows with the square of a text's length. "
                "Leave out the method that reads it, or train with the teacher"
            )


def names_of(captures: Iterable[Capture]) -> tuple[str, ...]:
    """Return the names of captures besides the logits, in their order."""
    return tuple(str(capture) for capture in sorted(captures, key=str) if capture != LOGITS)


def by_token(capture: Capture, tensor: Tensor) -> Tensor:
    """Return a captured tensor with the positions second: `[B, S, ...]`, or `[B, D]`."""
    return tensor.transpose(1, 2) if capture.site in BY_HEAD else tensor


def as_captured(capture: Capture, stored: Tensor) -> Tensor:
    """Return a tensor as a forward pass captures it."""
    return stored.transpose(1, 2) if capture.site in BY_HEAD else stored
