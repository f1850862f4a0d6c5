"""Answers of a live teacher that are computed once: its tensors of every row of a split."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gkd_core import digest
from gkd_core.data.collate import EVALUATION_EPOCH
from gkd_core.data.division import longest_first
from gkd_core.data.loader import given_batches
from gkd_core.distributed.data_parallel import collect
from gkd_core.distributed.teacher_batches import gather_teacher_batches
from gkd_core.hooks.features import Features
from gkd_core.hooks.paths import LOGITS
from gkd_core.models.content import loaded_digest
from gkd_core.teachers.answer_file import answer_file, shared
from gkd_core.teachers.answer_parts import AnswerPart, AnswerParts
from gkd_core.teachers.captured_states import as_captured
from gkd_core.teachers.teacher import batches_for

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from gkd_core.contract.batch import Batch
    from gkd_core.contract.model_info import Predicted
    from gkd_core.contract.task import TaskData
    from gkd_core.data.collate import Collator
    from gkd_core.data.encode import Encoded
    from gkd_core.hooks.extraction import Extractor
    from gkd_core.hooks.features import Answer
    from gkd_core.hooks.paths import Capture
    from gkd_core.losses.logits import Logits
    from gkd_core.teachers.values import Answers

ROWS = 64
"""Rows that a teacher is asked about at once. Rows of one length are together, in any layout."""

BYTES = 2**28
"""Bytes of the answers about such rows, if there are several. Of 64 rows of 512 tokens, the
attention of four layers of 12 heads would take 3 GiB, and as much again while it is copied."""


@dataclass(frozen=True)
class KeptAnswers:
    """Tensors of a teacher for every row of a split.

    Attributes:
        answers: The tensors; under `LOGITS` the logits or, if `factored`, the inputs of the head.
        head: The last layer of the teacher's head, if its logits are the output of a linear layer.
        factored: Whether the head is yet to be applied.
    """

    answers: Answers
    head: Callable[[Tensor], Logits] | None
    factored: bool

    @property
    def size(self) -> int:
        """Bytes that they take."""
        return sum(own.values.nbytes for own in self.answers.values())

    def have(self, captures: Collection[Capture]) -> bool:
        """Return whether all of some tensors are kept."""
        return all(capture in self.answers for capture in captures)

    def of(self, batch: Batch, captures: Collection[Capture] = (LOGITS,)) -> Features:
        """Return tensors for a batch of the rows, as the teacher reads it.

        Args:
            batch: The batch.
            captures: The tensors, which are kept.
        """
        features = Features.of({capture: self._of(capture, batch) for capture in captures})
        if LOGITS in captures and not self.factored:
            features.head = self.head
        return features

    def _of(self, capture: Capture, batch: Batch) -> Answer:
        found = self.answers[capture].at(batch)
        if capture != LOGITS:
            return as_captured(capture, found)
        if not self.factored:
            return found
        assert self.head is not None, "the head makes the logits"
        return self.head(found)


def shared_file(
    teacher: PreTrainedModel,
    encoded: Encoded,
    data: TaskData,
    precision: str,
    device: torch.device,
    captures: Collection[Capture] = (LOGITS,),
) -> Path:
    """Return the file in which all runs find what a teacher answers about the same rows.

    Its name is a hash of all that the answers depend on.

    Args:
        teacher: The teacher.
        encoded: The rows as the teacher reads them.
        data: The task that they are from.
        precision: The precision in which the teacher computes.
        device: The device on which it does.
        captures: The tensors that it is asked for.
    """
    about = [
        loaded_digest(teacher),
        encoded.tokens_hash,
        [data.rows_hash, data.kind, list(data.classes), len(encoded), ROWS],
        [precision, device.type],
        [torch.__version__, version("transformers")],
    ]
    names = sorted(map(str, captures))
    return answer_file(digest.of_value(about if names == [str(LOGITS)] else [*about, names]))


def ask_once(
    teacher: Extractor,
    student: Extractor,
    encoded: Encoded,
    collator: Collator,
    device: torch.device,
    predicted: Predicted,
    file: Path | None = None,
    captures: frozenset[Capture] = frozenset({LOGITS}),
    sizes: NDArray[np.float64] | None = None,
    check: Callable[[float], None] | None = None,
) -> KeptAnswers | None:
    """Ask a teacher about all rows; every rank calls it, and all keep all answers.

    In which batch a row is depends on the rows alone: a resumed run gets the same bits.

    Args:
        teacher: The teacher, in eval mode.
        student: The student, for the layout.
        encoded: The rows as the teacher reads them.
        collator: Makes batches of them.
        device: The device of the models.
        predicted: What has a prediction.
        file: Where they are kept for other runs too; if they are there, nobody is asked.
        captures: The tensors that it is asked for.
        sizes: Most bytes of the answers about each row; None if they are small.
        check: Told how many bytes all answers take, after the first of them; it may raise.

    Returns:
        The answers; None if one is nan or inf, if their shape depends on the batch, or if a file
        cannot be written that they need.
    """
    answer = partial(_answer, teacher, student, captures, device=device)
    most = np.zeros(len(encoded)) if sizes is None else sizes
    batches = longest_first(encoded.lengths, ROWS, most, BYTES)

    def ask() -> Answers | None:
        parts = AnswerParts(predicted, file is not None)
        for number, batch in enumerate(given_batches(encoded, collator, batches)):
            own = AnswerPart.of(answer(batch), captures, batch, predicted)
            found = collect([own] if batch.counted else [])
            if number == 0 and check is not None:
                check(_whole_size(found, most))
            if not all(parts.add(part) for part in found):
                return None
        return parts.answers()

    answers = ask() if file is None else shared(file, ask)
    if answers is None:
        return None
    if LOGITS not in captures:
        return KeptAnswers(answers, None, factored=False)
    features = answer(collator.collate(encoded, [0], EVALUATION_EPOCH))
    near = {**answers, LOGITS: answers[LOGITS].to(device)}
    return KeptAnswers(near, features.head, features.deferred is not None)


def _whole_size(found: Sequence[AnswerPart], sizes: NDArray[np.float64]) -> float:
    """Return the bytes of all answers, as those about the first rows show.

    Args:
        found: The answers about these.
        sizes: Bytes of the answers about each row, of numbers that may be wider.
    """
    taken = sum(tensor.nbytes for part in found for tensor in part.tensors.values())
    expected = sum(float(sizes[part.rows].sum()) for part in found)
    return float(sizes.sum()) * taken / expected


def _answer(
    teacher: Extractor,
    student: Extractor,
    captures: frozenset[Capture],
    batch: Batch,
    device: torch.device,
) -> Features:
    """Return tensors of this rank's batch; ranks that divide the teacher run it together."""
    batches, own = gather_teacher_batches(batch).to(device), Features()
    places = batches_for(teacher, batches, student)
    for place in places:
        features = teacher.run(captures, batches.batches[place].inputs)
        if len(places) > 1:
            features.gather()
        if place == batches.own:
            own = features
    return own
