"""The base of masked and causal clozes: the likeliest candidate for a blank in a text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.contract.batch import IGNORE, Items
from gkd_core.contract.task import Fit, Split
from gkd_core.data.columns import find_text
from gkd_core.data.encode import Encoded, join_rows
from gkd_core.data.holdout import take
from gkd_core.errors import DataError
from gkd_core.kinds.class_kind import ClassKind
from gkd_core.kinds.filled import Filled, blank_problem, differ_in_one_token, filled_rows
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
"""Tokens of a candidate in the rows that a step is planned with, where no row is known."""

PLANNED_ROWS = 256
"""Rows that are encoded to plan a step."""


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
        rows = list(filled_rows(split.text, candidates, tokenizer, max_length))
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
            scored = self.score_words(row, tokenizer) if differ_in_one_token(row) else None
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
        """Make the model return the scores of candidates, `[B, C]`.

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
        """Return rows whose blank is their first token, or their first ones."""
        own = _counts(classes)
        shape = (min(PLANNED_TOKENS, length), 1) if own else (1, len(classes))
        return self._planned(rows, length, token, classes, shape)

    def planned_for(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        rows: int,
        length: int,
        token: int,
        classes: Sequence[str],
    ) -> Encoded:
        """Return rows of which as many tokens are scored as of the first rows of a split."""
        first = take(split, range(min(PLANNED_ROWS, len(split))))
        _, tokens, width = self.encode(first, tokenizer, length, classes).extra["words"].shape
        return self._planned(rows, length, token, classes, (tokens, width))

    def _planned(
        self, rows: int, length: int, token: int, classes: Sequence[str], shape: tuple[int, int]
    ) -> Encoded:
        """Return rows with so many scored tokens, and so many words for each."""
        many = 1 if shape[1] > 1 else len(classes)
        made = TaskKind.planned(self, rows * many, length, token, classes)
        blank = np.zeros((rows * many, length), np.int64)
        blank[:, : shape[0]] = 1
        words = np.full((rows * many, *shape), token, np.int64)
        labels, extra = np.zeros(rows, np.int64), {"blank": blank.flatten(), "words": words}
        return replace(made.with_labels(labels, extra), per_row=many)


@dataclass(frozen=True)
class Scored:
    """The input of a model and its targets.

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


def _check_texts(split: Split, table: Table) -> None:
    """Raise `DataError` for texts without a blank."""
    for number, text in zip(table.numbers, split.text, strict=True):
        if problem := blank_problem(text):
            table.faults.add(number, problem)
    table.faults.check()
