"""Tokenized texts, stored flat and unpadded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gkd_core import digest
from gkd_core.contract.task import Split
from gkd_core.data.array_spool import ArraySpool
from gkd_core.data.byte_offsets import cut_blocks, locate_tokens, unpreceded
from gkd_core.data.mapped_memory import parts_of, release
from gkd_core.data.row_joiner import RowJoiner, TokenizedRow
from gkd_core.data.tokenize_texts import TokenizedTexts, tokenize
from gkd_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000

TEXTS, BYTES = "texts", "bytes"
"""In `Encoded.extra` of language modeling: the row of the split that each row is from, int64 `[N]`,
and the bytes of text that the tokens to predict stand for, int64, one for each row of the split."""


@dataclass(frozen=True)
class Encoded:
    """The tokenized rows of one split.

    Attributes:
        ids: Concatenated token ids of all rows, int32.
        type_ids: Segment ids likewise, or None if the tokenizer has none.
        offsets: Start of each sequence and the end of the last, int64, one more than sequences.
        labels: Labels as the kind of task has them, such as class ids int64 `[N]` or values fp32
            `[N]`; or None.
        num_truncated: Number of sequences truncated to `max_length`.
        num_left_out: Number of rows of the split of which no token is left to be learned.
        num_long_prompts: Number of rows left out because their prompts leave no room for what
            models write.
        learned: Whether each token is learned, rather than part of a prompt, bool like `ids`; None
            if all are.
        positions: Place of each token in its own row if several rows are packed into one, int32
            like `ids`; or None.
        num_packed: Number of the rows that are packed.
        byte_offsets: Start and end of each token in the UTF-8 text of its row, int32 `[T, 2]`; -1
            for special tokens. None unless the split asks for them.
        blocks: The text of each row in language modeling; None without `byte_offsets`.
        per_row: Sequences per row, such as one for each choice; the most if `counts` differ.
        counts: Number of sequences of each row, int64 `[N]`; None if all have `per_row`.
        sources: Index of each row's source in `Models.data.sources`, int64 `[N]`, as
            `Batch.data_sources` has it; or None.
        extra: What else the kind of task needs to know of the split, by name.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32] | None
    offsets: NDArray[np.int64]
    labels: NDArray[Any] | None
    num_truncated: int
    num_left_out: int = 0
    num_long_prompts: int = 0
    learned: NDArray[np.bool_] | None = None
    positions: NDArray[np.int32] | None = None
    num_packed: int = 0
    byte_offsets: NDArray[np.int32] | None = None
    blocks: Sequence[str] | None = None
    per_row: int = 1
    counts: NDArray[np.int64] | None = None
    sources: NDArray[np.int64] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        if self.counts is not None:
            return len(self.counts)
        return (len(self.offsets) - 1) // self.per_row

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Index of the first sequence of each row, and the number of sequences, int64 `[N + 1]`."""
        if self.counts is not None:
            return np.append(0, np.cumsum(self.counts))
        return np.arange(len(self) + 1, dtype=np.int64) * self.per_row

    @cached_property
    def prompts(self) -> NDArray[np.int64] | None:
        """Number of tokens before the first that is learned in each row, int64 `[N]`; or None."""
        if self.learned is None:
            return None
        found = np.empty(len(self), np.int64)
        for first in range(0, len(self), CHUNK):
            bounds = self.offsets[first : first + CHUNK + 1]
            learned = np.flatnonzero(self.learned[bounds[0] : bounds[-1]]) + bounds[0]
            learned = np.append(learned, bounds[-1])
            begins = learned[np.searchsorted(learned, bounds[:-1])]
            found[first : first + CHUNK] = np.minimum(begins, bounds[1:]) - bounds[:-1]
            release(getattr(self.learned, "_mmap", None))
        return found

    @property
    def tokens_hash(self) -> str:
        """Hash of the tokens of all sequences and of their places."""
        arrays = (self.ids, self.type_ids, self.offsets, self.positions)
        found = (part for array in arrays if array is not None for part in parts_of(array))
        return digest.of_bytes(part.tobytes() for part in found)

    @property
    def learned_hash(self) -> str:
        """Hash of which tokens are learned."""
        found = () if self.learned is None else parts_of(self.learned)
        return digest.of_bytes(np.packbits(part).tobytes() for part in found)

    @property
    def largest_id(self) -> int:
        """The largest token id; 0 if there is no token."""
        return max((int(part.max()) for part in parts_of(self.ids)), default=0)

    @property
    def cut(self) -> str:
        """How many sequences are truncated, such as `3 of 8 texts (37.5%)`; empty if none is."""
        if not self.num_truncated:
            return ""
        total = self.num_packed or len(self.offsets) - 1
        share = self.num_truncated / total
        return f"{self.num_truncated:,} of {total:,} texts ({share:.1%})"

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of the longest sequence of each row, int64 `[N]`."""
        found = np.diff(self.offsets)
        if self.counts is None and self.per_row == 1:
            return found
        longest: NDArray[np.int64] = np.maximum.reduceat(found, self.starts[:-1])
        return longest

    def part(self, sequence: int) -> slice:
        """Return the place of a sequence in `ids`."""
        return slice(self.offsets[sequence], self.offsets[sequence + 1])

    def sequences(self, rows: Sequence[int]) -> list[int]:
        """Return the indices of the sequences of rows."""
        if self.counts is None and self.per_row == 1:
            return list(rows)
        return [n for row in rows for n in range(self.starts[row], self.starts[row + 1])]

    def with_labels(
        self, labels: NDArray[Any] | None, extra: Mapping[str, Any] | None = None
    ) -> Encoded:
        """Return the same rows with other labels."""
        return replace(self, labels=labels, extra=self.extra if extra is None else extra)

    def row(self, index: int) -> dict[str, NDArray[np.int32]]:
        """Return `input_ids` and, if any, `token_type_ids` and `byte_offsets` of a sequence."""
        part = self.part(index)
        row = {"input_ids": self.ids[part]}
        if self.type_ids is not None:
            row["token_type_ids"] = self.type_ids[part]
        if self.byte_offsets is not None:
            row["byte_offsets"] = self.byte_offsets[part]
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
    made = RowJoiner()
    for rows, cut in _samples(split, tokenizer, max_length):
        made.extend(list(map(len, rows.ids)), rows.arrays(), cut)
    return Encoded(**made.columns(), labels=labels)


def encode_blocks(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokenize texts for language modeling.

    Long texts are split into blocks of at most `max_length` tokens, each with the tokenizer's
    special tokens; each block is a row, and single-token blocks are dropped. `extra` has the text
    that each block is from, `TEXTS`, and the bytes of each text, `BYTES`, without those of tokens
    that no token precedes in their block.

    Raises:
        ConfigError: `max_length` leaves no room besides the special tokens.
        DataError: No text has two tokens.
    """
    check_room(tokenizer, max_length, pair=split.pair is not None)
    made, sources = RowJoiner(), ArraySpool(np.int64)
    sizes = np.fromiter((len(text.encode()) for text in split.text), np.int64, len(split))
    for blocks in _blocks(split, tokenizer, max_length):
        np.subtract.at(sizes, [row.text for row in blocks], [row.unpreceded for row in blocks])
        rows = [row for row in blocks if len(row.ids) > 1]
        made.add(rows)
        sources.add(np.array([row.text for row in rows], np.int64))
    encoded = Encoded(**made.columns(), labels=None)
    if not len(encoded):
        raise DataError(
            "no text has two or more tokens, so there is nothing to model; give longer texts"
        )
    return replace(encoded, extra={TEXTS: sources.array(), BYTES: sizes})


def encode_targets(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokenize texts that are followed by a target text, which a language model is to write.

    A row is the text (or pair), with the special tokens that come before it, the target and the
    tokenizer's end token. A long row loses the beginning of its text first, then the end of its
    target; a token of each is always kept. Without targets, a row is a prompt: nothing is learned.

    Raises:
        ConfigError: `max_length` leaves no room besides the special tokens.
        DataError: A text or a target yields no tokens.
    """
    check_room(tokenizer, max_length, pair=split.pair is not None)
    made, sizes = RowJoiner(), np.zeros(len(split), np.int64)
    for start in range(0, len(split), CHUNK):
        part = slice(start, start + CHUNK)
        rows, sizes[part], cut = _answered(split, part, tokenizer, max_length)
        made.add(rows, cut)
    extra = {TEXTS: np.arange(len(split)), BYTES: sizes}
    return Encoded(**made.columns(), labels=None, extra=extra)


def _answered(
    split: Split, part: slice, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[TokenizedRow], list[int], int]:
    """Return rows of texts and targets, the bytes of the targets, and how many are truncated."""
    parts = [column[part] for column in (split.text, split.pair) if column is not None]
    before = _ids(list(map(" ".join, zip(*parts, strict=True))), tokenizer, special=True)
    targets, after = [""] * len(before), [np.zeros(0, np.int32)] * len(before)
    if split.target is not None:
        targets = list(split.target[part])
        after = _ids(targets, tokenizer, special=False)
    rows, cut = [], 0
    sizes = [len(target.encode()) for target in targets]
    for number, (text, target) in enumerate(zip(before, after, strict=True)):
        room = max_length - min(len(target), max_length - 1)
        kept = np.concatenate([text[-room:], target])[:max_length]
        cut += len(kept) < len(text) + len(target)
        prompt = min(len(text), room)
        rows.append(TokenizedRow(kept, None, learned=np.arange(len(kept)) >= prompt))
        if len(kept) - prompt < len(target):
            sizes[number] = len(tokenizer.decode(kept[prompt:]).encode())
    return rows, sizes, cut


def _ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: bool
) -> list[NDArray[np.int32]]:
    """Return the ids of prompts, or of targets, which the end token follows."""
    end = tokenizer.eos_token_id
    found = []
    made = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    for text, row in zip(texts, made, strict=True):
        if special and row and row[-1] == end:
            row = row[:-1]  # the text goes on
        if not row:
            raise DataError(f"the tokenizer yields no tokens for the text {text!r}; remove the row")
        found.append(np.array(row if special or end is None else [*row, end], np.int32))
    return found


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
        TokenizedRow(np.array(row, np.int32), None if types is None else np.array(types, np.int32))
        for row, types in made
    ]
    return _joined(rows, None, cut)


def _joined(rows: Sequence[TokenizedRow], labels: NDArray[Any] | None, cut: int) -> Encoded:
    made = RowJoiner()
    made.add(rows, cut)
    return Encoded(**made.columns(), labels=labels)


def _samples(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[tuple[TokenizedTexts, int]]:
    """Yield one row per text, part by part, and the number of truncated rows among them."""
    located = split.byte_offsets
    for start in range(0, len(split), CHUNK):
        texts = list(split.text[start : start + CHUNK])
        pairs = None if split.pair is None else list(split.pair[start : start + CHUNK])
        rows = tokenize(texts, pairs, tokenizer, max_length + 1, located)
        # Tokenized with room for one more token: exactly the texts that use it are truncated.
        long = [number for number, row in enumerate(rows.ids) if len(row) > max_length]
        if long:
            own = None if pairs is None else [pairs[number] for number in long]
            cut = tokenize([texts[n] for n in long], own, tokenizer, max_length, located)
            rows.replace_rows(long, cut)
        for number, row in enumerate(rows.ids):
            if not row:
                raise DataError(
                    f"the tokenizer yields no tokens for the text {texts[number]!r} (row "
                    f"{start + number + 1} of its split); remove the row"
                )
        yield rows, len(long)


def _blocks(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[list[TokenizedRow]]:
    """Yield the blocks of the texts, part by part."""
    for start in range(0, len(split), CHUNK):
        rows: list[TokenizedRow] = []
        texts = list(split.text[start : start + CHUNK])
        made = tokenizer(
            texts, return_attention_mask=False, return_special_tokens_mask=True, verbose=False
        )
        types = made.get("token_type_ids") or [None] * len(made["input_ids"])
        for number, (ids, type_ids, special) in enumerate(
            zip(made["input_ids"], types, made["special_tokens_mask"], strict=True)
        ):
            positions = _block_positions(np.array(special), max_length)
            found = [_pick(ids, type_ids, block) for block in positions]
            if split.byte_offsets:
                located = locate_tokens(made.encodings[number], (texts[number],))
                cut = cut_blocks(texts[number], located, positions)
                found = [
                    TokenizedRow(row.ids, row.type_ids, *own)
                    for row, own in zip(found, cut, strict=True)
                ]
            encoding, text = made.encodings[number], texts[number]
            rows += [
                row._replace(text=start + number, unpreceded=unpreceded(text, encoding, block))
                for row, block in zip(found, positions, strict=True)
            ]
        yield rows


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


def _pick(ids: list[int], type_ids: list[int] | None, positions: NDArray[np.int64]) -> TokenizedRow:
    types = None if type_ids is None else np.array(type_ids, np.int32)[positions]
    return TokenizedRow(np.array(ids, np.int32)[positions], types)
