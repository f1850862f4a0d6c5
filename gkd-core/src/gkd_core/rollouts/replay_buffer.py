"""`ReplayBuffer`: the student's texts of earlier steps, and the share of rows that have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gkd_core.config.schema import RolloutConfig
from gkd_core.rollouts.rows import RowText

GROWTH = 0.1
"""By how much an adaptive share grows at a time."""


@dataclass(frozen=True)
class KeptText:
    """A text of the student.

    Attributes:
        text: The text.
        step: The step in which the student wrote it.
    """

    text: RowText
    step: int


class ReplayBuffer:
    """The student's texts of earlier steps, on this rank, and an adaptive share of its rows.

    Args:
        config: How many are kept, and when the share grows.

    Attributes:
        texts: The texts, the oldest first.
        growth: By how much the student's share has grown.
        reference: The validation loss that later ones are compared with; None before the first.
    """

    def __init__(self, config: RolloutConfig) -> None:
        self._config = config
        self.texts: list[KeptText] = []
        self.growth = 0.0
        self.reference: float | None = None

    def writes_anew(self, chance: float, progress: float) -> bool:
        """Return whether the student writes a row of its share anew.

        Args:
            chance: A draw from 0 to 1.
            progress: The share of the stage that is done.
        """
        size = self._config.replay
        return size is None or len(self.texts) < size or chance < 1 - progress

    def add(self, text: KeptText) -> None:
        """Keep a text; the oldest one makes room for it."""
        if self._config.replay is not None:
            self.texts.append(text)
            del self.texts[: -self._config.replay]

    def draw(self, chance: float) -> KeptText:
        """Return one of the texts.

        Args:
            chance: A draw from 0 to 1.
        """
        return self.texts[int(chance * len(self.texts))]

    def note_loss(self, loss: float) -> None:
        """Increase the student's share if the validation loss has risen enough."""
        if not self._config.adaptive:
            return
        if self.reference is None:
            self.reference = loss
        elif loss >= self.reference + self._config.loss_rise:
            self.growth = min(self.growth + GROWTH, 1.0)
            self.reference = loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state to checkpoint, as JSON-serializable values; empty if it has none."""
        if self._config.replay is None and not self._config.adaptive:
            return {}
        texts = [[*_lists(kept.text), kept.step] for kept in self.texts]
        return {"texts": texts, "growth": self.growth, "reference": self.reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
        if not state:
            return
        self.texts = [KeptText(_text(*lists), step) for *lists, step in state["texts"]]
        self.growth, self.reference = state["growth"], state["reference"]


def _lists(text: RowText) -> list[list[Any]]:
    """Return a text as JSON has it: prompt, what was written and, if known, how likely.

    Earlier versions wrote the first two.
    """
    lists = [text.prompt.tolist(), text.written.tolist()]
    return lists if text.log_drawn is None else [*lists, text.log_drawn.tolist()]


def _text(prompt: Sequence[int], written: Sequence[int], drawn: Sequence[float] = ()) -> RowText:
    """Return a text from its lists."""
    log_drawn = torch.tensor(drawn, dtype=torch.float64) if drawn else None
    return RowText(_as_ids(prompt), _as_ids(written), log_drawn)


def _as_ids(tokens: Sequence[int]) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)
