"""`AnswerParts`: joins what a teacher answers about one batch after the other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.contract.batch import Batch
from gkd_core.contract.model_info import Predicted
from gkd_core.data.array_spool import ArraySpool
from gkd_core.hooks.features import Features
from gkd_core.hooks.paths import LOGITS, Capture
from gkd_core.teachers.answer_form import Unit
from gkd_core.teachers.captured_states import by_unit, of_texts, unit_of
from gkd_core.teachers.values import Answers, PairValues, RowValues, TokenValues, Values


@dataclass(frozen=True)
class AnswerPart:
    """What a teacher answers about the rows of one batch.

    Attributes:
        rows: Indices of the rows.
        lengths: Tokens of each row, if it is one text.
        tensors: By capture, `[B, ...]` or, row after row, `[tokens, ...]` or `[pairs, ...]`; on the
            CPU.
    """

    rows: Sequence[int]
    lengths: Sequence[int]
    tensors: Mapping[Capture, Tensor]

    @classmethod
    def of(
        cls,
        features: Features,
        captures: frozenset[Capture],
        batch: Batch,
        predicted: Predicted,
    ) -> AnswerPart:
        """Return what a forward pass captured about the rows of a batch.

        Args:
            features: The captured tensors.
            captures: Those that are wanted.
            batch: The batch.
            predicted: What has a prediction.
        """
        found = {each: _by_item(each, features, batch, predicted) for each in captures}
        return cls(batch.rows.tolist(), batch.mask.sum(1).tolist(), found)


class AnswerParts:
    """Joins what a teacher answers about one batch after the other.

    Args:
        predicted: What has a prediction.
        on_disk: Whether large tensors wait in a file without a name, and not in memory.
    """

    def __init__(self, predicted: Predicted, on_disk: bool) -> None:
        self._predicted = predicted
        self._on_disk = on_disk
        self._rows: list[int] = []
        self._lengths: list[int] = []
        self._joined: dict[Capture, _Joined] = {}

    def add(self, part: AnswerPart) -> bool:
        """Take what is answered about the next batch.

        Returns:
            Whether it can be kept: a tensor that is nan or inf, or has another shape than those
            before, cannot be.
        """
        self._rows.extend(part.rows)
        self._lengths.extend(part.lengths)
        for capture, tensor in part.tensors.items():
            if capture not in self._joined:
                self._joined[capture] = _Joined(tensor, self._on_disk)
            joined = self._joined[capture]
            if not joined.fits(tensor) or not _is_sound(tensor):
                return False
            joined.add(tensor)
        return True

    def answers(self) -> Answers:
        """Return the answers about all rows."""
        return {
            capture: self._values(capture, joined.tensor())
            for capture, joined in self._joined.items()
        }

    def _values(self, capture: Capture, found: Tensor) -> Values:
        unit = _unit_of(capture, self._predicted)
        if unit == "row":
            return RowValues(found[torch.tensor(self._rows).argsort()])
        lengths = torch.tensor(self._lengths)
        if unit == "pair":
            return PairValues(found, self._starts(lengths.square()))
        is_span = capture == LOGITS and self._predicted == "span"
        return TokenValues(found, self._starts(lengths), is_span)

    def _starts(self, counts: Tensor) -> Tensor:
        """Return where each row starts, if rows in the order they came have so many values."""
        order = torch.tensor(self._rows)
        starts = torch.zeros_like(order)
        starts[order] = counts.cumsum(0) - counts
        return starts


class _Joined:
    """The parts of one tensor."""

    def __init__(self, first: Tensor, on_disk: bool) -> None:
        self._shape = first.shape[1:]
        self._dtype = first.dtype
        self._spool = ArraySpool(_raw(first).dtype) if on_disk else None
        self._parts: list[Tensor] = []

    def fits(self, part: Tensor) -> bool:
        return part.shape[1:] == self._shape and part.dtype == self._dtype

    def add(self, part: Tensor) -> None:
        if self._spool is None:
            self._parts.append(part)
        else:
            self._spool.add(_raw(part))

    def tensor(self) -> Tensor:
        if self._spool is None:
            return torch.cat(self._parts)
        with warnings.catch_warnings():
            # The file is only read; PyTorch warns that a tensor could be written to.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(self._spool.array()).view(self._dtype)


def _by_item(capture: Capture, features: Features, batch: Batch, predicted: Predicted) -> Tensor:
    """Return a captured tensor of each row or, row after row, its tokens or pairs; on the CPU."""
    found = _captured(capture, features, predicted).cpu()
    return of_texts(found, _unit_of(capture, predicted), batch.mask)


def _captured(capture: Capture, features: Features, predicted: Predicted) -> Tensor:
    """Return a captured tensor with the positions second, if it has any."""
    if capture != LOGITS:
        return by_unit(capture, features)
    if features.deferred is not None:
        return features.deferred.hidden
    return features[LOGITS].transpose(1, 2) if predicted == "span" else features[LOGITS]


def _unit_of(capture: Capture, predicted: Predicted) -> Unit:
    """Return what a value of a capture is about."""
    if capture == LOGITS:
        return "token" if predicted in ("token", "span") else "row"
    return unit_of(capture)


def _is_sound(tensor: Tensor) -> bool:
    """Return whether nothing is nan or inf; -inf leaves out what cannot be predicted."""
    return not bool((tensor.isnan() | tensor.isposinf()).any())


def _raw(tensor: Tensor) -> NDArray[np.generic]:
    """Return the numbers of a tensor; numpy has no bf16."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
