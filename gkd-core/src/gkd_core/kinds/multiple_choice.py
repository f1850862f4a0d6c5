"""`multiple-choice`: the right one of several continuations or answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gkd_core.contract.task import Fit, Split
from gkd_core.data.columns import find_text, pick_column
from gkd_core.data.encode import Encoded, encode_samples
from gkd_core.data.labels import is_unlabeled
from gkd_core.errors import DataError
from gkd_core.kinds.metrics import Metric, accuracy
from gkd_core.kinds.task_kind import ReadRows, TaskKind, is_prepared, read_output

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.data.collate import Uncollated
    from gkd_core.data.table import Table

TEXTS = (
    ("article", "question"),
    ("passage", "question"),
    ("context", "question"),
    ("sent1", "sent2"),
    ("ctx", None),
    ("question", None),
    ("premise", None),
    ("context", None),
    ("text", None),
)
"""Usual columns of the text, and of what stands before each choice (RACE, SWAG, HellaSwag, ...)."""

LISTS = ("choices", "options", "endings", "answers")
NUMBERED = re.compile(r"(choice|ending|option|answer|sol)_?\d+", re.IGNORECASE)
ANSWERS = ("label", "answer", "answerkey")


class MultipleChoice(TaskKind):
    """The right one of several choices, each of which is read together with the text.

    A row has a text, a list of choices (or columns `ending0`, `ending1`, ...) and the number,
    letter or name of the right one. Rows may have different numbers of choices. A micro-batch of B
    rows has a sequence for each choice, and `[B, C]` logits, where C is the largest number of
    choices; those that a row lacks have the logit -inf, which no loss sees.
    """

    name = "multiple-choice"
    head = "multiple-choice head"
    metric = Metric("accuracy", True)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    markers: ClassVar[tuple[str, ...]] = ("choices",)

    @property
    def auto(self) -> Any:
        """The Auto class of models that score choices."""
        from transformers import AutoModelForMultipleChoice

        return AutoModelForMultipleChoice

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Take a list of choices, or numbered columns of them, beside the right one."""
        lists, numbered = choice_columns(table)
        if pick_column(table, config.label, ANSWERS) is None:
            return Fit.NO
        return Fit.CERTAIN if lists is not None or len(numbered) > 1 else Fit.NO

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the texts, each with its choices as `pair`, and the number of the right one."""
        train = tables["train"]
        must = self.is_labeled(train, train, config)
        splits = {
            name: self._rows(table, config, must or self.is_labeled(table, train, config))
            for name, table in tables.items()
        }
        most = max(len(choices) for split in splits.values() for choices in split.pair or ())
        return ReadRows(splits, tuple(map(str, range(most))))

    def text_columns(self, table: Table, config: TaskConfig) -> tuple[str, str | None]:
        """Return the columns of the text and of what stands before each choice."""
        if config.text is not None:
            return find_text(table, config, excluded=())
        lower = {name.lower(): name for name in table.columns}
        for text, stem in TEXTS:
            if text in lower and (stem is None or stem in lower):
                return lower[text], None if stem is None else lower[stem]
        raise DataError(
            f"{table.source} has no text column: the columns are "
            f"{', '.join(map(repr, table.columns))}. Name it with --set task.text=COLUMN"
        )

    def _rows(self, table: Table, config: TaskConfig, labeled: bool) -> Split:
        """Return the rows of a table, with the right choices or without."""
        table.check_filled()
        text, stem = self.text_columns(table, config)
        lists, numbered = choice_columns(table)
        label = pick_column(table, config.label, ANSWERS) if labeled else None
        if (labeled and label is None) or (lists is None and len(numbered) < 2):
            raise DataError(
                f"{table.source} needs a list of choices ({', '.join(LISTS)}, or ending0, ending1, "
                f"...) and the right one ({', '.join(ANSWERS)}); the columns are "
                f"{', '.join(map(repr, table.columns))}"
            )
        used = [name for name in (text, stem, lists, *numbered, label) if name is not None]
        texts, pairs, labels = [], [], []
        for number, row in table.rows(used):
            raw = row[lists] if lists else None
            options = _options(raw) if lists else [row[name] for name in numbered]
            value = 0 if label is None else row[label]
            right = _right(value, raw, len(options or ()))
            problem = _problem(row[text], options, right, value)
            if problem:
                table.faults.add(number, problem)
                continue
            start = f"{row[stem] or ''} ".lstrip() if stem else ""
            texts.append(row[text])
            pairs.append([f"{start}{option}" for option in options or ()])
            labels.append(right)
        table.faults.check()
        return Split(texts, pairs, None if label is None else labels)

    def is_labeled(self, table: Table, train: Table, config: TaskConfig) -> bool:
        """Return whether a test table says which choices are right."""
        label = pick_column(table, config.label, ANSWERS)
        return label is not None and not is_unlabeled(table.columns[label])

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize the text with each of its choices; a row has a sequence per choice.

        Raises:
            ConfigError: `max_length` leaves no room besides the special tokens.
        """
        choices = split.pair or ()
        texts = [text for text, many in zip(split.text, choices, strict=True) for _ in many]
        flat = Split(texts, [choice for many in choices for choice in many])
        encoded = encode_samples(flat, tokenizer, max_length, self.label_array(split))
        return with_choices(encoded, list(map(len, choices)), len(classes))

    def mark(self, rows: Uncollated) -> Mapping[str, Tensor]:
        """Return the mask of each row's choices, bool `[B, C]`; none if all rows have all."""
        encoded = rows.encoded
        if encoded.counts is None:
            return {}
        counts = torch.from_numpy(encoded.counts[list(rows.numbers)])
        return {"choices": torch.arange(encoded.per_row) < counts.unsqueeze(1)}

    def prepare(self, model: PreTrainedModel, classes: Sequence[str]) -> None:
        """Make the model read a sequence per choice and return `[B, C]` logits."""
        if is_prepared(model):
            return
        read_output(model, partial(_logits, len(classes)), self.markers)
        model.register_forward_pre_hook(_as_single_choices, with_kwargs=True)

    def score(self, logits: Tensor) -> Tensor:
        """Return the number of the likeliest choice of each row."""
        return logits.argmax(-1)

    def measure(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the accuracy."""
        return {
            "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
            "accuracy": accuracy(predictions, labels),
        }

    def guess(self, labels: Sequence[Any] | None) -> float | None:
        """Return the share of the most frequent place of the right choice."""
        return max(Counter(labels).values()) / len(labels) if labels else None

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return rows with a sequence per choice."""
        made = super().planned(rows * len(classes), length, token, classes)
        return replace(made, labels=np.zeros(rows, np.int64), per_row=len(classes))


def with_choices(encoded: Encoded, counts: Sequence[int], most: int) -> Encoded:
    """Return sequences as the choices of rows.

    Args:
        encoded: A sequence per choice, with the labels of the rows.
        counts: Number of choices of each row.
        most: Largest number of choices in any split; at least that of these rows is taken.
    """
    most = max(most, *counts)
    different = None if min(counts) == most else np.array(counts, np.int64)
    return replace(encoded, per_row=most, counts=different)


def by_row(scores: Tensor, width: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the scores of sequences as `[B, C]` logits; a choice that a row lacks has -inf.

    Args:
        scores: One for each sequence.
        width: C, the largest number of choices.
        inputs: Inputs with the marker `choices`, unless all rows have all choices.
    """
    choices = inputs.get("choices")
    if choices is None:
        return scores.reshape(-1, width)
    absent = scores.new_full(choices.shape, -torch.inf)
    return absent.masked_scatter(choices, scores)


def _logits(width: int, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return by_row(output.logits, width, inputs)


def _as_single_choices(
    model: PreTrainedModel, args: tuple[Any, ...], inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give each sequence to the model as a row with one choice."""
    tensors = {n: x.unsqueeze(1) if isinstance(x, Tensor) else x for n, x in inputs.items()}
    return args, tensors


def choice_columns(table: Table) -> tuple[str | None, list[str]]:
    """Return the column with lists of choices, or the numbered columns of a choice each."""
    for name in table.columns:
        values = table.columns[name][:1]
        if name.lower() in LISTS and values and _options(values[0]) is not None:
            return name, []
    return None, [name for name in table.columns if NUMBERED.fullmatch(name)]


def _options(value: Any) -> list[Any] | None:
    """Return a list of choices: a list, or an object with their `text` (CommonsenseQA)."""
    if isinstance(value, Mapping) and "answer_start" not in value:
        value = value.get("text")
    return list(value) if isinstance(value, (list, tuple)) else None


def _right(value: Any, choices: Any, count: int) -> int | None:
    """Return the number of the right choice, from 0; None if the answer names none."""
    if isinstance(choices, Mapping) and value in choices.get("label", ()):
        return list(choices["label"]).index(value)
    shown = str(value).strip()
    if shown.isdigit():
        number = int(shown)
    elif len(shown) == 1 and shown.isalpha():
        number = ord(shown.upper()) - ord("A")
    else:
        return None
    return number if number < count else None


def _problem(text: Any, options: list[Any] | None, right: int | None, value: Any) -> str:
    """Return the problem with a row; empty if there is none."""
    if not isinstance(text, str) or not text.strip():
        return "the text is empty"
    if not options or not all(isinstance(option, str) and option for option in options):
        return "a choice is empty or not a string"
    return f"the answer {value!r} is none of the {len(options)} choices" if right is None else ""
