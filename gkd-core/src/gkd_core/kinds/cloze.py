"""What masked and causal clozes share: the likeliest of some candidates for a blank in a text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.contract.batch import IGNORE, Items
from gkd_core.contract.task import BLANK, Fit, Split
from gkd_core.data.columns import find_text
from gkd_core.data.encode import CHUNK, Encoded, join_rows
from gkd_core.errors import DataError
from gkd_core.kinds.class_kind import ClassKind
from gkd_core.kinds.multiple_choice import MultipleChoice, by_row, choice_columns, with_choices
from gkd_core.kinds.task_kind import (
    MarkedPass,
    ReadRows,
    TaskKind,
    is_prepared,
    read_output,
    refuse_target,
)
from gkd_core.losses import cross_entropy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.data.collate import Uncollated
    from gkd_core.data.table import Table

PLANNED_TOKENS = 4
"""Tokens of a candidate in the rows that a step is planned with, if rows have their own."""


class Cloze(MultipleChoice, ClassKind):
    """The common base of the kinds that fill in a blank.

    The score of a candidate is the mean log-probability of its tokens. If all rows have the same
    label words, of one token each, a row is one sequence; otherwise each candidate has its own.
    """

    head = "language-model head"
    has_classes = False
    pools = False
    markers = (*MultipleChoice.markers, "blank", "words")

    @abstractmethod
    def score_tokens(self, filled: Filled, tokenizer: PreTrainedTokenizerBase) -> Scored:
        """Return the input of a model for a text with a candidate, and what it predicts."""
        raise NotImplementedError

    @abstractmethod
    def score_words(
        self, filled: Sequence[Filled], tokenizer: PreTrainedTokenizerBase
    ) -> Scored | None:
        """Return one input for all candidates; None if they need their own.

        Args:
            filled: The text with each candidate, which have one token and the same context.
            tokenizer: The tokenizer.
        """
        raise NotImplementedError

    def made(self, config: PretrainedConfig) -> bool:
        """Return False: its models are those of language modeling."""
        return False

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Take no rows unasked: encoders and decoders may fill in a blank."""
        return Fit.NO

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the texts, with candidates as `pair` unless all rows have the same label words.

        Raises:
            DataError: A column is missing, or a row is invalid.
        """
        refuse_target(config, self.name)
        train = tables["train"]
        lists, numbered = choice_columns(train)
        own = lists is not None or len(numbered) > 1
        found = super().read(tables, config) if own else TaskKind.read(self, tables, config)
        for name, split in found.splits.items():
            _check_texts(split, tables[name])
        return found

    def text_columns(self, table: Table, config: TaskConfig) -> tuple[str, str | None]:
        """Return the column of the text with the blank: nothing stands before each choice."""
        text, pair = find_text(table, config, excluded=())
        if pair is not None:
            raise DataError(
                f"{table.source} has two text columns, {text!r} and {pair!r}, but a cloze is one "
                "text with a blank. Name its column with --set task.text=COLUMN"
            )
        return text, None

    def is_labeled(self, table: Table, train: Table, config: TaskConfig) -> bool:
        """Return whether a test table says which candidates are right."""
        if choice_columns(train) == (None, []):
            return TaskKind.is_labeled(self, table, train, config)
        return super().is_labeled(table, train, config)

    def shown(self, labels: Tensor | Sequence[Any], classes: Sequence[str]) -> list[Any]:
        """Return the label words; numbers of candidates if rows have their own."""
        values = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        return values if _counts(classes) else [classes[value] for value in values]

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize each text with its candidates; context furthest from the blank is cut first.

        Raises:
            DataError: A text has no blank or several, or a candidate has no tokens, or too many.
        """
        candidates = [classes] * len(split) if split.pair is None else split.pair
        rows = list(_filled_rows(split.text, candidates, tokenizer, max_length))
        cut = sum(filled.is_cut for row in rows for filled in row)
        shared = None if split.pair is not None else self._shared(rows, tokenizer)
        if shared is not None:
            return _joined(shared, cut).with_labels(self.label_array(split), _marks(shared))
        scored = [self.score_tokens(filled, tokenizer) for row in rows for filled in row]
        encoded = _joined(scored, cut).with_labels(self.label_array(split), _marks(scored))
        return with_choices(encoded, list(map(len, rows)), len(classes))

    def _shared(
        self, rows: Sequence[Sequence[Filled]], tokenizer: PreTrainedTokenizerBase
    ) -> list[Scored] | None:
        """Return one sequence per row that scores all label words, if every row allows it."""
        found: list[Scored] = []
        for row in rows:
            scored = self.score_words(row, tokenizer) if _differ_in_one_token(row) else None
            if scored is None:
                return None
            found.append(scored)
        return found

    def mark(self, rows: Uncollated) -> Mapping[str, Tensor]:
        """Return where the blank is, what its tokens are, and which candidates each row has.

        `blank` is 1 where the model predicts a scored token, int64 `[N, S]`; `words` are these
        tokens in order, int64 `[N, T, K]`: K is 1, or the number of label words.
        """
        encoded = rows.encoded
        sequences = encoded.sequences(rows.numbers)
        blank = [encoded.extra["blank"][encoded.part(n)] for n in sequences]
        words = torch.from_numpy(encoded.extra["words"][sequences])
        return {**super().mark(rows), "blank": rows.padded(blank, 0), "words": words}

    def prepare(self, model: PreTrainedModel, classes: Sequence[str]) -> None:
        """Let the model answer with the scores of candidates, `[B, C]`.

        Its head sees the states of the blank only: logits over the vocabulary are large.
        """
        if is_prepared(model):
            return
        reader = _BlankReader(len(classes))
        marked = read_output(model, reader.read, self.markers)
        head = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(partial(reader.select, marked))

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return rows whose blank is their first token."""
        own = _counts(classes)
        many = len(classes) if own else 1
        tokens = min(PLANNED_TOKENS, length) if own else 1
        made = TaskKind.planned(self, rows * many, length, token, classes)
        blank = np.zeros((rows * many, length), np.int64)
        blank[:, :tokens] = 1
        words = np.full((rows * many, tokens, 1 if own else len(classes)), token, np.int64)
        labels, extra = np.zeros(rows, np.int64), {"blank": blank.flatten(), "words": words}
        return replace(made.with_labels(labels, extra), per_row=many)


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


@dataclass(frozen=True)
class Scored:
    """What a model reads, and what it is to predict.

    Attributes:
        ids: Its tokens, int64 `[S]`.
        type_ids: Segment ids, or None.
        places: Positions whose output predicts a scored token, ascending.
        words: The tokens, int64 `[T, K]`: one for each place, or each candidate's for the only one.
    """

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64] | None
    places: Sequence[int]
    words: NDArray[np.int64]


class _BlankReader:
    """Makes the scores of candidates of a language model's output.

    Args:
        width: The largest number of candidates.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._selected = False

    def select(self, marked: MarkedPass, head: Any, args: tuple[Tensor, ...]) -> Any:
        """Give the head only the states that predict scored tokens, `[N, T, D]`."""
        blank = marked.found.get("blank")
        if blank is None or args[0].shape[:2] != blank.shape:
            return None
        self._selected = True
        return (_at_blank(args[0], marked.found), *args[1:])

    def read(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the mean log-probability of each candidate's tokens, `[B, C]`."""
        selected, self._selected = self._selected, False
        logits = output.logits if selected else _at_blank(output.logits, inputs)
        words = inputs["words"][:, : logits.shape[1]]
        if words.shape[-1] > 1:  # the label words of all rows, for which there is one place
            wide = torch.promote_types(logits.dtype, torch.float32)
            return logits[:, 0].log_softmax(-1, dtype=wide).gather(-1, words[:, 0])
        return by_row(_mean_log_probability(logits, words[..., 0]), self._width, inputs)


def _at_blank(values: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return values at the places that predict scored tokens, `[N, S, ...]` to `[N, T, ...]`."""
    count = inputs["words"].shape[1]
    # A sort has a result of known shape, which a GPU need not wait for.
    places = (inputs["blank"] == 0).long().argsort(dim=1, stable=True)[:, :count]
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _mean_log_probability(logits: Tensor, words: Tensor) -> Tensor:
    """Return the mean log-probability of the words of each sequence, `[N]`.

    Args:
        logits: `[N, T, V]`.
        words: int64 `[N, T]`, `IGNORE` after the last one.
    """
    every = torch.ones_like(words, dtype=torch.bool)
    places = Items("token", every, torch.arange(words.numel(), device=words.device))
    losses = cross_entropy(logits, words.clamp(min=0), places).values
    there = (words != IGNORE).to(losses.dtype)
    return -(losses * there).sum(1) / there.sum(1).clamp(min=1)


def _filled_rows(
    texts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Iterator[list[Filled]]:
    """Yield the texts with each of their candidates."""
    for start in range(0, len(texts), CHUNK):
        rows = range(start, min(start + CHUNK, len(texts)))
        for row in rows:
            if problem := _blank_problem(texts[row]):
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


def _differ_in_one_token(row: Sequence[Filled]) -> bool:
    """Return whether the candidates have one token each, in the same place of the same context."""
    first = row[0]
    rest = np.arange(len(first.ids)) != first.first
    return all(
        one.first == one.last == first.first
        and len(one.ids) == len(first.ids)
        and np.array_equal(one.ids[rest], first.ids[rest])
        for one in row
    )


def _joined(scored: Sequence[Scored], cut: int) -> Encoded:
    types = [one.type_ids.tolist() for one in scored if one.type_ids is not None]
    return join_rows([one.ids.tolist() for one in scored], types or None, cut)


def _marks(scored: Sequence[Scored]) -> dict[str, NDArray[np.int64]]:
    """Return where all sequences predict scored tokens, and which, as `Encoded.extra` has them."""
    most = max(len(one.places) for one in scored)
    words = np.full((len(scored), most, scored[0].words.shape[1]), IGNORE, np.int64)
    blank = []
    for line, one in zip(words, scored, strict=True):
        line[: len(one.places)] = one.words
        blank.append(np.isin(np.arange(len(one.ids)), one.places).astype(np.int64))
    return {"blank": np.concatenate(blank), "words": words}


def _counts(classes: Sequence[str]) -> bool:
    """Return whether the classes are numbers of candidates, of which each row has its own."""
    return list(classes) == list(map(str, range(len(classes))))


def _blank_problem(text: str) -> str:
    """Return what is wrong with the blank of a text; empty if nothing is."""
    count = text.count(BLANK)
    return "" if count == 1 else f"the text {text!r} has {count} times {BLANK}, not once"


def _check_texts(split: Split, table: Table) -> None:
    """Raise `DataError` for texts without a blank."""
    for number, text in zip(table.numbers, split.text, strict=True):
        if problem := _blank_problem(text):
            table.faults.add(number, problem)
    table.faults.check()
