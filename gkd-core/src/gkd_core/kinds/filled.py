"""Texts with a candidate in their blank: their tokens, and the context that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.contract.task import BLANK
from gkd_core.data.encode import CHUNK
from gkd_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Filled:
    """A text with a candidate in its blank, cut to the longest length.

    Attributes:
        ids: Its tokens, int64.
        type_ids: Segment ids, or None.
        first: Position of the candidate's first token.
        last: Position of its last token.
        end: Position after the last token that is not special.
        is_cut: Whether context was cut off.
    """

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64] | None
    first: int
    last: int
    end: int
    is_cut: bool


def filled_rows(
    texts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Iterator[list[Filled]]:
    """Yield the texts with each of their candidates."""
    for start in range(0, len(texts), CHUNK):
        rows = range(start, min(start + CHUNK, len(texts)))
        for row in rows:
            if problem := blank_problem(texts[row]):
                raise DataError(f"{problem} (row {row + 1} of its split)")
        flat = [texts[row].replace(BLANK, one) for row in rows for one in candidates[row]]
        made = tokenizer(
            flat,
            add_special_tokens=True,
            return_attention_mask=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        number = 0
        for row in rows:
            begin, found = texts[row].index(BLANK), []
            for one in candidates[row]:
                place = begin, begin + len(one)
                found.append(_Uncut.find(made, number, place, f"{one!r} (row {row + 1})"))
                number += 1
            yield _cut(found, max_length)


@dataclass(frozen=True)
class _Uncut:
    """A text with a candidate: tokens, and the positions of its parts.

    Attributes:
        ids: Its tokens, int64.
        type_ids: Segment ids, or None.
        inner: Positions of the tokens that are not special, ascending.
        blank: Positions of the candidate's tokens, ascending.
    """

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64] | None
    inner: NDArray[np.int64]
    blank: NDArray[np.int64]

    @classmethod
    def find(cls, made: Any, number: int, place: tuple[int, int], shown: str) -> _Uncut:
        """Return a text of a tokenized batch whose candidate has the given characters."""
        inner = np.flatnonzero(np.array(made["special_tokens_mask"][number]) == 0)
        offsets = np.array(made["offset_mapping"][number]).reshape(-1, 2)[inner]
        blank = inner[(offsets[:, 0] < place[1]) & (offsets[:, 1] > place[0])]
        if not len(blank):
            raise DataError(f"the tokenizer yields no tokens for the candidate {shown}")
        types = np.array(made["token_type_ids"][number]) if "token_type_ids" in made else None
        return cls(np.array(made["input_ids"][number], np.int64), types, inner, blank)


def _cut(row: Sequence[_Uncut], max_length: int) -> list[Filled]:
    """Return the candidates of a row with the same context, so that the longest one fits."""
    special = max(len(one.ids) - len(one.inner) for one in row)
    longest = max(len(one.blank) for one in row)
    room = max_length - special - longest
    if room < 1:
        raise DataError(
            f"a candidate has {longest} tokens, which leave no room for its context in "
            f"task.max_length={max_length}; increase it"
        )
    return [_cut_one(one, room) for one in row]


def _cut_one(one: _Uncut, room: int) -> Filled:
    """Return a text whose candidate has at most `room` tokens around it, the nearest ones."""
    before, after = one.inner[one.inner < one.blank[0]], one.inner[one.inner > one.blank[-1]]
    kept = min(len(before), max(room - len(after), room - room // 2))
    before, after = before[len(before) - kept :], after[: room - kept]
    start, stop = np.arange(one.inner[0]), np.arange(one.inner[-1] + 1, len(one.ids))
    positions = np.concatenate([start, before, one.blank, after, stop])
    first = len(start) + len(before)
    return Filled(
        ids=one.ids[positions],
        type_ids=None if one.type_ids is None else one.type_ids[positions],
        first=first,
        last=first + len(one.blank) - 1,
        end=first + len(one.blank) + len(after),
        is_cut=len(positions) < len(one.ids),
    )


def differ_in_one_token(row: Sequence[Filled]) -> bool:
    """Return whether the candidates have one token each, in the same place of the same context."""
    first = row[0]
    rest = np.arange(len(first.ids)) != first.first
    return all(
        one.first == one.last == first.first
        and len(one.ids) == len(first.ids)
        and np.array_equal(one.ids[rest], first.ids[rest])
        for one in row
    )


def blank_problem(text: str) -> str:
    """Return the problem with the blank of a text; empty if there is none."""
    count = text.count(BLANK)
    return "" if count == 1 else f"the text {text!r} has {count} times {BLANK}, not once"
