"""Tokenized texts, stored flat and unpadded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gkd_core.contract.task import Split
from gkd_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000


@dataclass(frozen=True)
class Encoded:
    """The tokenized rows of one split.

    Attributes:
        ids: Concatenated token ids of all rows, int32.
        type_ids: Segment ids likewise, or None if the tokenizer has none.
        offsets: Start of each sequence and the end of the last, int64 `[N * per_row + 1]`.
        labels: Labels as the kind of task has them, such as class ids int64 `[N]` or values fp32
            `[N]`; or None.
        num_truncated: Number of sequences truncated to `max_length`.
        per_row: Sequences per row, such as one for each choice.
        extra: What else the kind of task needs to know of the split, by name.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32] | None
    offsets: NDArray[np.int64]
    labels: NDArray[Any] | None
    num_truncated: int
    per_row: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // self.per_row

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of the longest sequence of each row, int64 `[N]`."""
        longest: NDArray[np.int64] = np.diff(self.offsets).reshape(-1, self.per_row).max(1)
        return longest

    def part(self, sequence: int) -> slice:
        """Return the place of a sequence in `ids`."""
        return slice(self.offsets[sequence], self.offsets[sequence + 1])

    def sequences(self, rows: Sequence[int]) -> list[int]:
        """Return the indices of the sequences of rows."""
        return [row * self.per_row + number for row in rows for number in range(self.per_row)]

    def with_labels(
        self, labels: NDArray[Any] | None, extra: Mapping[str, Any] | None = None
    ) -> Encoded:
        """Return the same rows with other labels."""
        return replace(self, labels=labels, extra=self.extra if extra is None else extra)

    def row(self, index: int) -> dict[str, NDArray[np.int32]]:
        """Return the `input_ids` and, if any, the `token_type_ids` of a sequence."""
        part = self.part(index)
        row = {"input_ids": self.ids[part]}
        if self.type_ids is not None:
            row["token_type_ids"] = self.type_ids[part]
        return row


def encode_samples(
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: NDArray[Any] | None,
) -> Encoded:
    """Tokenize a split, one row per text or pair, truncated (longest first) to `max_length` tokens.

    Args:
        split: The texts.
        tokenizer: The tokenizer.
        max_length: Maximum length of a row in tokens.
        labels: The labels of the rows.

    Raises:
        ConfigError: `max_length` leaves no room besides the special tokens.
        DataError: A text yields no tokens.
    """
    check_room(tokenizer, max_length, pair=split.pair is not None)
    rows, cut = _samples(split, tokenizer, max_length)
    return _joined(rows, labels, cut)


def encode_blocks(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokenize texts for language modeling.

    Long texts are split into blocks of at most `max_length` tokens, each with the tokenizer's
    special tokens; each block is a row, and single-token blocks are dropped.

    Raises:
        ConfigError: `max_length` leaves no room besides the special tokens.
        DataError: No text has two tokens.
    """
    check_room(tokenizer, max_length, pair=split.pair is not None)
    rows = _blocks(split.text, tokenizer, max_length)
    if not rows:
        raise DataError(
            "no text has two or more tokens, so there is nothing to model; give longer texts"
        )
    return _joined(rows, None, 0)


def check_room(tokenizer: PreTrainedTokenizerBase, max_length: int, pair: bool) -> None:
    """Raise `ConfigError` if `max_length` leaves no room besides the special tokens."""
    room = max_length - tokenizer.num_special_tokens_to_add(pair=pair)
    if room < 1:
        raise ConfigError(
            f"task.max_length={max_length} leaves no room for text besides the "
            f"{max_length - room} special tokens; increase it"
        )


def join_rows(
    ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None, cut: int
) -> Encoded:
    """Return tokenized rows, without labels.

    Args:
        ids: The token ids of each row.
        type_ids: The segment ids likewise, or None.
        cut: Number of truncated rows.
    """
    kinds = [None] * len(ids) if type_ids is None else type_ids
    made = zip(ids, kinds, strict=True)
    rows = [
        _Row(np.array(row, np.int32), None if types is None else np.array(types, np.int32))
        for row, types in made
    ]
    return _joined(rows, None, cut)


def _joined(rows: Sequence[_Row], labels: NDArray[Any] | None, cut: int) -> Encoded:
    ids = np.concatenate([row.ids for row in rows])
    type_ids = [row.type_ids for row in rows if row.type_ids is not None]
    offsets = np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int64)
    return Encoded(ids, np.concatenate(type_ids) if type_ids else None, offsets, labels, cut)


class _Row(NamedTuple):
    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32] | None


def _samples(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[_Row], int]:
    """Return one row per text, and the number of truncated rows."""
    rows: list[_Row] = []
    cut = 0
    for start in range(0, len(split), CHUNK):
        chunk = list(range(start, min(start + CHUNK, len(split))))
        rows += _tokenise(split, chunk, tokenizer, max_length + 1)
        # Tokenized with room for one more token: exactly the texts that use it are truncated.
        long = [index for index in chunk if len(rows[index].ids) > max_length]
        for index, row in zip(long, _tokenise(split, long, tokenizer, max_length), strict=True):
            rows[index] = row
        cut += len(long)
    for index, row in enumerate(rows):
        if len(row.ids) == 0:
            raise DataError(
                f"the tokenizer yields no tokens for the text {split.text[index]!r} (row "
                f"{index + 1} of its split); remove the row"
            )
    return rows, cut


def _tokenise(
    split: Split, indices: Sequence[int], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[_Row]:
    if not indices:
        return []
    made = tokenizer(
        [split.text[index] for index in indices],
        None if split.pair is None else [split.pair[index] for index in indices],
        truncation="longest_first",
        max_length=max_length,
        return_attention_mask=False,
    )
    ids = [np.array(row, np.int32) for row in made["input_ids"]]
    if "token_type_ids" not in made:
        return [_Row(row, None) for row in ids]
    types = [np.array(row, np.int32) for row in made["token_type_ids"]]
    return list(map(_Row, ids, types))


def _blocks(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[_Row]:
    rows: list[_Row] = []
    for start in range(0, len(texts), CHUNK):
        made = tokenizer(
            list(texts[start : start + CHUNK]),
            return_attention_mask=False,
            return_special_tokens_mask=True,
            verbose=False,
        )
        types = made.get("token_type_ids") or [None] * len(made["input_ids"])
        for ids, type_ids, special in zip(
            made["input_ids"], types, made["special_tokens_mask"], strict=True
        ):
            positions = _block_positions(np.array(special), max_length)
            rows += [_pick(ids, type_ids, block) for block in positions if len(block) > 1]
    return rows


def _block_positions(special: NDArray[Any], max_length: int) -> list[NDArray[np.int64]]:
    """Return the token positions of each block of a text, including special tokens."""
    inner = np.flatnonzero(special == 0)
    if len(inner) == 0:
        return []
    first, end = inner[0], inner[-1] + 1
    before, after = np.arange(first), np.arange(end, len(special))
    size = max_length - len(before) - len(after)
    starts = range(first, end, size)
    return [np.r_[before, start : min(start + size, end), after] for start in starts]


def _pick(ids: list[int], type_ids: list[int] | None, positions: NDArray[np.int64]) -> _Row:
    types = None if type_ids is None else np.array(type_ids, np.int32)[positions]
    return _Row(np.array(ids, np.int32)[positions], types)
