"""Answers of a live teacher that are computed once: its logits of every row of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gkd_core import digest
from gkd_core.contract.model_info import Predicted
from gkd_core.data.collate import EVALUATION_EPOCH
from gkd_core.data.loader import evaluation_batches
from gkd_core.distributed.data_parallel import collect
from gkd_core.distributed.teacher_batches import gather_teacher_batches
from gkd_core.hooks.features import Features
from gkd_core.hooks.paths import LOGITS
from gkd_core.models.content import weights_hash
from gkd_core.teachers.answer_file import answer_file, shared
from gkd_core.teachers.teacher import batches_for
from gkd_core.teachers.values import RowValues, TokenValues, Values

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.task import TaskData
    from gkd_core.data.collate import Collator
    from gkd_core.data.encode import Encoded
    from gkd_core.hooks.extraction import Extractor
    from gkd_core.losses.logits import Logits

ROWS = 64
"""Rows that a teacher is asked about at once. Rows of one length are together, in any layout."""


@dataclass(frozen=True)
class KeptAnswers:
    """The logits of a teacher for every row of a split, or what its head makes them of.

    Attributes:
        values: The logits or, if `factored`, the inputs of the head.
        head: The last layer of the teacher's head, if its logits are the output of a linear layer.
        factored: Whether the head is yet to be applied.
    """

    values: Values
    head: Callable[[Tensor], Logits] | None
    factored: bool

    @property
    def size(self) -> int:
        """Bytes that they take."""
        return self.values.values.nbytes

    def of(self, batch: Batch) -> Features:
        """Return the logits for a batch of the rows, as the teacher reads it."""
        found, features = self.values.at(batch), Features()
        if self.factored:
            assert self.head is not None, "the head makes the logits"
            return Features.of({LOGITS: self.head(found)})
        features.tensors[LOGITS] = found
        features.head = self.head
        return features


@dataclass(frozen=True)
class _Answered:
    """The answers about the rows of one batch.

    Attributes:
        rows: Indices of the rows.
        values: `[B, ...]`, or `[tokens, ...]` row after row.
        lengths: Tokens of each row; None if there is one answer for each row.
    """

    rows: Sequence[int]
    values: Tensor
    lengths: Sequence[int] | None


def shared_file(
    teacher: nn.Module, encoded: Encoded, data: TaskData, precision: str, device: torch.device
) -> Path:
    """Return the file in which all runs find what a teacher answers about the same rows.

    Its name is a hash of all that the answers depend on.

    Args:
        teacher: The teacher.
        encoded: The rows as the teacher reads them.
        data: The task that they are from.
        precision: The precision in which the teacher computes.
        device: The device on which it does.
    """
    return answer_file(
        digest.of_value(
            [
                weights_hash(teacher),
                encoded.tokens_hash,
                [data.rows_hash, data.kind, list(data.classes), len(encoded), ROWS],
                [precision, device.type],
                [torch.__version__, version("transformers")],
            ]
        )
    )


def ask_once(
    teacher: Extractor,
    student: Extractor,
    encoded: Encoded,
    collator: Collator,
    device: torch.device,
    predicted: Predicted,
    file: Path | None = None,
) -> KeptAnswers | None:
    """Ask a teacher for its logits of all rows; every rank calls it, and all keep all of them.

    In which batch a row is depends on the rows alone: a resumed run gets the same bits.

    Args:
        teacher: The teacher, in eval mode.
        student: The student, for the layout.
        encoded: The rows as the teacher reads them.
        collator: Makes batches of them.
        device: The device of the models.
        predicted: What has a prediction.
        file: Where they are kept for other runs too; if they are there, nobody is asked.

    Returns:
        The answers; None if one is nan or inf, or if their shape depends on the batch.
    """
    answer = partial(_answer, teacher, student, device=device)

    def ask() -> Values | None:
        batches = evaluation_batches(encoded, collator, ROWS)
        answered = ((answer(batch), batch) for batch in batches)
        parts = [_answered(found, batch, predicted) for found, batch in answered if batch.counted]
        return _joined(collect(parts), len(encoded), predicted == "span")

    values = ask() if file is None else shared(file, ask)
    if values is None:
        return None
    features = answer(collator.collate(encoded, [0], EVALUATION_EPOCH))
    return KeptAnswers(values.to(device), features.head, features.deferred is not None)


def _answer(teacher: Extractor, student: Extractor, batch: Batch, device: torch.device) -> Features:
    """Return the logits of this rank's batch; ranks that divide the teacher run it together."""
    batches, own = gather_teacher_batches(batch).to(device), Features()
    places = batches_for(teacher, batches, student)
    for place in places:
        features = teacher.run(frozenset({LOGITS}), batches.batches[place].inputs)
        if len(places) > 1:
            features.gather()
        if place == batches.own:
            own = features
    return own


def _answered(features: Features, batch: Batch, predicted: Predicted) -> _Answered:
    found = features[LOGITS] if features.deferred is None else features.deferred.hidden
    values, rows = found.cpu(), batch.rows.tolist()
    if predicted not in ("token", "span"):
        return _Answered(rows, values, None)
    if predicted == "span":
        values = values.transpose(1, 2)
    return _Answered(rows, values[batch.mask], batch.mask.sum(1).tolist())


def _joined(parts: Sequence[_Answered], rows: int, spans: bool) -> Values | None:
    """Return the answers about all rows in their order; None if they cannot be kept."""
    if len({part.values.shape[1:] for part in parts}) > 1 or not all(map(_is_sound, parts)):
        return None
    if parts[0].lengths is None:
        order = torch.tensor([row for part in parts for row in part.rows])
        return RowValues(torch.cat([part.values for part in parts])[order.argsort()])
    lengths = torch.zeros(rows, dtype=torch.int64)
    for part in parts:
        lengths[list(part.rows)] = torch.tensor(part.lengths)
    starts = lengths.cumsum(0) - lengths
    values = parts[0].values.new_empty(int(lengths.sum()), *parts[0].values.shape[1:])
    for start, own in _rows(parts, starts):
        values[start : start + len(own)] = own
    return TokenValues(values, starts, spans)


def _is_sound(part: _Answered) -> bool:
    """Return whether nothing is nan or inf; -inf leaves out what cannot be predicted."""
    return not bool((part.values.isnan() | part.values.isposinf()).any())


def _rows(parts: Sequence[_Answered], starts: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the place of each row's first token, and the answers about its tokens."""
    for part in parts:
        assert part.lengths is not None, "answers are about tokens"
        for row, own in zip(part.rows, torch.split(part.values, list(part.lengths)), strict=True):
            yield int(starts[row]), own
