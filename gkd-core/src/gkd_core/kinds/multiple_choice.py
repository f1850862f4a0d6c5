"""`multiple-choice`: the right one of several continuations or answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gkd_core.contract.task import Fit, Split
from gkd_core.data.columns import find_text, pick_column
from gkd_core.data.encode import Encoded, encode_samples
from gkd_core.data.labels import is_unlabeled
from gkd_core.errors import DataError
from gkd_core.kinds.metrics import Metric
from gkd_core.kinds.task_kind import ReadRows, TaskKind, is_prepared

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
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
    letter or name of the right one. All rows have the same number of choices. A micro-batch of B
    rows has B x C sequences, and `[B, C]` logits.
    """

    name = "multiple-choice"
    head = "multiple-choice head"
    metric = Metric("accuracy", True)
    metrics = ("accuracy",)

    @property
    def auto(self) -> Any:
        """The Auto class of models that score choices."""
        from transformers import AutoModelForMultipleChoice

        return AutoModelForMultipleChoice

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Take a list of choices, or numbered columns of them, beside the right one."""
        lists, numbered = _choice_columns(table)
        if pick_column(table, config.label, ANSWERS) is None:
            return Fit.NO
        return Fit.CERTAIN if lists is not None or len(numbered) > 1 else Fit.NO

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the texts, each with its choices as `pair`, and the number of the right one."""
        splits: dict[str, Split] = {}
        count = 0
        train = tables["train"]
        must = self.is_labeled(train, train, config)
        for name, table in tables.items():
            labeled = must or self.is_labeled(table, train, config)
            splits[name] = _rows(table, config, count, labeled)
            count = count or len((splits[name].pair or [()])[0])
        return ReadRows(splits, tuple(map(str, range(count))))

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
        labels = self.label_array(split)
        encoded = encode_samples(flat, tokenizer, max_length, labels)
        return replace(encoded, per_row=len(texts) // len(split))

    def prepare(self, model: PreTrainedModel, classes: Sequence[str]) -> None:
        """Let the model read `[B x C, S]` sequences and answer with `[B, C]` logits."""
        if is_prepared(model):
            return
        model.register_forward_pre_hook(_as_single_choices, with_kwargs=True)
        count = len(classes)

        def regroup(module: Any, args: Any, inputs: Any, output: Any) -> Any:
            output.logits = output.logits.reshape(-1, count)
            return output

        model.register_forward_hook(regroup, with_kwargs=True)

    def score(self, logits: Tensor) -> Tensor:
        """Return the number of the likeliest choice of each row."""
        return logits.argmax(-1)

    def measure(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the accuracy."""
        return {
            "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
            "accuracy": float((predictions == labels).double().mean()),
        }

    def guess(self, labels: Sequence[Any] | None) -> float | None:
        """Return the share of the most frequent place of the right choice."""
        return max(Counter(labels).values()) / len(labels) if labels else None

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return rows with a sequence per choice."""
        made = super().planned(rows * len(classes), length, token, classes)
        return replace(made, labels=np.zeros(rows, np.int64), per_row=len(classes))


def _as_single_choices(
    model: PreTrainedModel, args: tuple[Any, ...], inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give each sequence to the model as a row with one choice."""
    tensors = {n: x.unsqueeze(1) if isinstance(x, Tensor) else x for n, x in inputs.items()}
    return args, tensors


def _choice_columns(table: Table) -> tuple[str | None, list[str]]:
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


def _text_columns(table: Table, config: TaskConfig) -> tuple[str, str | None]:
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


def _rows(table: Table, config: TaskConfig, count: int, labeled: bool) -> Split:
    """Return the rows of a table.

    Args:
        table: The table.
        config: Names of columns that the user gave.
        count: Number of choices in training, 0 if unknown.
        labeled: Whether to read the right choices.
    """
    table.check_filled()
    text, stem = _text_columns(table, config)
    lists, numbered = _choice_columns(table)
    label = pick_column(table, config.label, ANSWERS) if labeled else None
    if (labeled and label is None) or (lists is None and len(numbered) < 2):
        raise DataError(
            f"{table.source} needs a list of choices ({', '.join(LISTS)}, or ending0, ending1, "
            f"...) and the right one ({', '.join(ANSWERS)}); the columns are "
            f"{', '.join(map(repr, table.columns))}"
        )
    texts, pairs, labels = [], [], []
    for index, number in enumerate(table.numbers):
        raw = table.columns[lists][index] if lists else None
        options = _options(raw) if lists else [table.columns[name][index] for name in numbered]
        count = count or len(options or ())
        value = 0 if label is None else table.columns[label][index]
        right = _right(value, raw, len(options or ()))
        problem = _problem(table.columns[text][index], options, count, right, value)
        if problem:
            table.faults.add(number, problem)
            continue
        start = f"{table.columns[stem][index] or ''} ".lstrip() if stem else ""
        texts.append(table.columns[text][index])
        pairs.append([f"{start}{option}" for option in options or ()])
        labels.append(right)
    table.faults.check()
    return Split(texts, pairs, None if label is None else labels)


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


def _problem(
    text: Any, options: list[Any] | None, count: int, right: int | None, value: Any
) -> str:
    """Return what is wrong with a row; empty if nothing is."""
    if not isinstance(text, str) or not text.strip():
        return "the text is empty"
    if not options or not all(isinstance(option, str) and option for option in options):
        return "a choice is empty or not a string"
    if len(options) != count:
        return f"there are {len(options)} choices, but {count} in the first row"
    return f"the answer {value!r} is none of the {count} choices" if right is None else ""
