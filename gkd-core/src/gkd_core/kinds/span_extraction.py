"""`span-extraction`: the answer to a question, as a part of a text."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.contract.batch import UNKNOWN
from gkd_core.contract.task import Fit, Split
from gkd_core.data.columns import pick_column
from gkd_core.data.encode import Encoded, check_room, join_rows
from gkd_core.data.labels import is_missing
from gkd_core.errors import DataError
from gkd_core.kinds.metrics import Metric, mean_loss
from gkd_core.kinds.task_kind import Evaluation, ReadRows, RowMeasure, TaskKind, whole
from gkd_core.losses import Logits, cross_entropy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.contract.batch import Batch
    from gkd_core.data.collate import Uncollated
    from gkd_core.data.table import Table

BEST = 20
"""Starts and ends of a window that are combined to answers."""

LONGEST = 30
"""Tokens of the longest answer that is predicted; both are those of the released SQuAD code."""

OVERLAP = 1 / 3
"""Share of `task.max_length` that neighboring windows have in common, as in BERT's code."""

QUESTIONS, PLACES = "questions", "places"
"""In `Encoded.extra`: the question of each window, int64 `[W]`, and first and last character of
each token in its context, int64 `[T, 2]`; -1 elsewhere."""

ARTICLES = re.compile(r"\b(a|an|the)\b")


class SpanExtraction(TaskKind):
    """The answer to a question, as a part of a context; or none, as in SQuAD 2.

    Columns are `question`, `context` and `answers` (`text` and `answer_start`, empty if there is no
    answer). Long contexts are cut into windows that overlap; a training row is a window, whose
    labels are the first and the last token of the answer, or the first token of the row if it is
    not there. Answers of all windows are joined: the likeliest one wins. A row is predicted to have
    no answer only if training rows without one exist. Logits are `[B, 2, S]`: a distribution of the
    start and one of the end over the tokens of the window.
    """

    name = "span-extraction"
    head = "question-answering head"
    metric = Metric("f1", True)
    metrics = ("f1", "exact_match")
    predicted = "span"
    splits_rows = True
    keeps_scores = False
    pools = False

    @property
    def auto(self) -> Any:
        """The Auto class of models that find answers."""
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def outputs(self, classes: Sequence[str]) -> int:
        """Return 2: start and end."""
        return 2

    def configure(self, config: PretrainedConfig, classes: Sequence[str]) -> None:
        """Write the two outputs."""
        config.num_labels = 2

    def width(self, classes: Sequence[str], config: PretrainedConfig) -> int:
        """Return 2: start and end."""
        return 2

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Take questions, contexts and answers with their places."""
        names = [_column(table, config, role) for role in ("text", "text_pair", "label")]
        if None in names or len(set(names)) < len(names):
            return Fit.NO
        values = table.columns[str(names[2])][:1]
        return Fit.CERTAIN if values and _answers(values[0]) is not None else Fit.NO

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return questions as text, contexts as pair, and answers with their places as labels."""
        train = tables["train"]
        must = self.is_labeled(train, train, config)
        splits = {
            name: _rows(table, config, must or self.is_labeled(table, train, config))
            for name, table in tables.items()
        }
        labels = next((split.labels for split in splits.values() if split.labels), ())
        missing = any(not label["text"] for label in labels)
        return ReadRows(splits, ("answer", "no answer") if missing else ())

    def is_labeled(self, table: Table, train: Table, config: TaskConfig) -> bool:
        """Return whether a test table has answers."""
        label = _column(train, config, "label") or _column(table, config, "label")
        return any(map(_has_answers, table.columns.get(label or "", ())))

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize questions with windows of their contexts.

        Raises:
            ConfigError: `max_length` leaves no room besides the special tokens.
            DataError: A question leaves no room for its context.
        """
        check_room(tokenizer, max_length, pair=True)
        overlap = int(max_length * OVERLAP)
        windows = [
            window
            for row in range(len(split))
            for window in _windows(split, row, tokenizer, max_length, overlap)
        ]
        types = [w.type_ids for w in windows if w.type_ids is not None]
        encoded = join_rows([w.ids for w in windows], types or None, 0)
        labels = np.array([w.label for w in windows], np.int64)
        extra = {
            QUESTIONS: np.array([w.row for w in windows], np.int64),
            PLACES: np.concatenate([w.offsets for w in windows]),
            "split": split,
            "unanswerable": bool(classes),
        }
        return encoded.with_labels(labels, extra)

    def any_labels(self, split: Split, classes: Sequence[str]) -> list[dict[str, list[Any]]]:
        """Return no answer for any row."""
        return [{"text": [], "start": []}] * len(split)

    def answers(
        self, predictions: Any, split: Split, classes: Sequence[str]
    ) -> list[dict[str, list[Any]]]:
        """Return the predicted answers; one that the context has twice is taken as the first."""
        return [
            {"text": [text], "start": [context.find(text)]} if text else {"text": [], "start": []}
            for text, context in zip(predictions, split.pair or (), strict=True)
        ]

    def shown(self, labels: Tensor | Sequence[Any], classes: Sequence[str]) -> list[Any]:
        """Return the texts of the answers: all true ones of a label, or the predicted one."""
        return [one["text"] if isinstance(one, Mapping) else one for one in labels]

    def collate(self, rows: Uncollated) -> tuple[Sequence[NDArray[np.int64]], Tensor | None]:
        """Return the windows, and first and last token of each answer."""
        labels = rows.encoded.labels
        assert labels is not None, "every window has labels"
        chosen = torch.from_numpy(labels[list(rows.numbers)])
        if rows.collator.pads_left:
            chosen += torch.tensor([[rows.width - len(row)] for row in rows.ids])
        return rows.ids, chosen

    def logits(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of start and end, `[B, 2, S]`; padding has no probability."""
        both = torch.stack([output.start_logits, output.end_logits], 1)
        padding = inputs["attention_mask"].unsqueeze(1) == 0
        return both.masked_fill(padding, -torch.inf)

    def observe(self, logits: Logits, batch: Batch) -> Any:
        """Return the losses, and the likeliest starts and ends of each window."""
        found = whole(logits)
        losses = cross_entropy(found, batch.require_labels(), batch.targets).values
        shift = (batch.inputs["attention_mask"].long().argmax(1)).tolist()
        rows = [row[:, start:].float().cpu() for row, start in zip(found, shift, strict=True)]
        each = losses.double().mean(1).tolist()
        return float(losses.sum()), batch.targets.count, batch.rows.tolist(), rows, each

    def summarize(self, parts: Sequence[Any], split: Encoded) -> Evaluation:
        """Return exact match and F1, as the SQuAD script computes them."""
        found = {
            number: (logits, loss)
            for _, _, *observed in parts
            for number, logits, loss in zip(*observed, strict=True)
        }
        loss = mean_loss(part[:2] for part in parts)
        rows: Split = split.extra["split"]
        best: list[tuple[float, str]] = [(-np.inf, "")] * len(rows)
        nothing = [np.inf] * len(rows)
        losses: list[list[float]] = [[] for _ in range(len(rows))]
        for number, row in enumerate(split.extra[QUESTIONS].tolist()):
            (logits, own), places = found[number], split.extra[PLACES][split.part(number)]
            losses[row].append(own)
            context = (rows.pair or ())[row]
            nothing[row] = min(nothing[row], float(logits[0, 0] + logits[1, 0]))
            best[row] = max(best[row], _best_answer(logits, places, context))
        predictions = [
            "" if split.extra["unanswerable"] and none > score else answer
            for (score, answer), none in zip(best, nothing, strict=True)
        ]
        metrics = {"loss": loss, **squad_scores(predictions, rows.labels or ())}
        return Evaluation(metrics, predictions, {"loss": [sum(x) / len(x) for x in losses]})

    def remeasure(
        self, evaluation: Evaluation, split: Split, classes: Sequence[str]
    ) -> RowMeasure | None:
        """Return a function that computes F1 and exact match of some of the questions."""
        predictions = evaluation.predictions or ()
        found = [
            squad_scores([answer], [gold])
            for answer, gold in zip(predictions, split.labels or (), strict=True)
        ]
        scores = {name: np.array([row[name] for row in found]) for name in self.metrics}
        return lambda rows: {name: float(each[rows].mean()) for name, each in scores.items()}

    def divergences(self, values: NDArray[np.float64], split: Encoded) -> NDArray[np.float64]:
        """Return the mean over starts and ends in the windows of each question."""
        rows = split.extra[QUESTIONS]
        return np.bincount(rows, weights=values / 2) / np.bincount(rows)

    def right(self, predictions: Sequence[Any], gold: Sequence[Any]) -> list[bool]:
        """Return whether each answer is one of the true ones, as exact match counts it."""
        return [
            squad_scores([answer], [{"text": texts}])["exact_match"] == 100
            for answer, texts in zip(predictions, gold, strict=True)
        ]

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return windows without an answer."""
        made = super().planned(rows, length, token, classes)
        return made.with_labels(np.zeros((rows, 2), np.int64))


@dataclass(frozen=True)
class Window:
    """A question with a part of its context.

    Attributes:
        row: Index of the question.
        ids: Token ids.
        type_ids: Segment ids, if the tokenizer has them.
        offsets: First and last character of each token in the context; -1 elsewhere, `[S, 2]`.
        label: First and last token of the answer; 0 and 0 if it is not in the window, `UNKNOWN` if
            no answer is given.
    """

    row: int
    ids: list[int]
    type_ids: list[int] | None
    offsets: NDArray[np.int64]
    label: tuple[int, int]


def squad_scores(
    predictions: Sequence[str], golds: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return F1 and exact match in percent, the best over the true answers of each question."""
    exact, f1 = [], []
    for prediction, gold in zip(predictions, golds, strict=True):
        # Answers of punctuation and articles only count as none, as in the SQuAD 2 script.
        answers = [text for text in gold["text"] if normalized(text)] or [""]
        exact.append(max(normalized(prediction) == normalized(answer) for answer in answers))
        f1.append(max(_token_f1(prediction, answer) for answer in answers))
    count = max(len(exact), 1)
    return {"f1": 100 * sum(f1) / count, "exact_match": 100 * sum(exact) / count}


def normalized(answer: str) -> str:
    """Return an answer in lower case, without punctuation, articles and extra spaces."""
    lower = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", lower).split())


def _token_f1(prediction: str, answer: str) -> float:
    ours, theirs = normalized(prediction).split(), normalized(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def _best_answer(scores: Tensor, places: NDArray[np.int64], context: str) -> tuple[float, str]:
    """Return score and text of the likeliest answer in a window."""
    start, end = (s.topk(min(BEST, len(s))) for s in scores)
    best = (-np.inf, "")
    for first_score, first in zip(start.values.tolist(), start.indices.tolist(), strict=True):
        for last_score, last in zip(end.values.tolist(), end.indices.tolist(), strict=True):
            inside = first < len(places) and last < len(places)
            if not inside or last < first or last - first >= LONGEST:
                continue
            begin, stop = int(places[first, 0]), int(places[last, 1])
            if begin >= 0 and stop >= 0 and first_score + last_score > best[0]:
                best = (first_score + last_score, context[begin:stop])
    return best


def _windows(
    split: Split, row: int, tokenizer: PreTrainedTokenizerBase, max_length: int, overlap: int
) -> Iterator[Window]:
    """Yield the windows of a question."""
    question, context = split.text[row], (split.pair or ())[row]
    room = max_length - len(tokenizer(question, "", verbose=False)["input_ids"])
    if room <= overlap:
        raise DataError(
            f"the question {question!r} leaves {room} of {max_length} tokens for its context, and "
            f"neighboring windows share {overlap}; raise task.max_length"
        )
    made = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_length,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    label = None if split.labels is None else split.labels[row]
    for index, ids in enumerate(made["input_ids"]):
        inside = np.array([part == 1 for part in made.sequence_ids(index)])
        offsets = np.where(inside[:, None], np.array(made["offset_mapping"][index]), -1)
        types = made["token_type_ids"][index] if "token_type_ids" in made else None
        yield Window(row, ids, types, offsets, _place(label, offsets))


def _place(label: Mapping[str, Any] | None, offsets: NDArray[np.int64]) -> tuple[int, int]:
    """Return first and last token of the first true answer; 0 and 0 if it is not in the window."""
    if label is None:
        return UNKNOWN, UNKNOWN
    if not label["text"]:
        return 0, 0
    begin = label["start"][0]
    end = begin + len(label["text"][0])
    covered = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > begin) & (offsets[:, 0] >= 0))
    if not len(covered) or offsets[covered[0], 0] > begin or offsets[covered[-1], 1] < end:
        return 0, 0
    return int(covered[0]), int(covered[-1])


def _column(table: Table, config: TaskConfig, role: str) -> str | None:
    usual = {"text": ("question",), "text_pair": ("context",), "label": ("answers", "answer")}
    return pick_column(table, getattr(config, role), usual[role])


def _has_answers(value: Any) -> bool:
    """Return whether a row has an answer, or any value instead of its answers."""
    answers = _answers(value)
    return bool(answers["text"]) if answers is not None else bool(value) and not is_missing(value)


def _answers(value: Any) -> dict[str, list[Any]] | None:
    """Return texts and places of the answers; None if the value does not have that form."""
    if isinstance(value, (list, tuple)):  # one object per answer, as in the SQuAD files
        if not all(isinstance(one, Mapping) for one in value):
            return None
        value = {key: [one.get(key) for one in value] for key in ("text", "answer_start")}
    if not isinstance(value, Mapping) or not {"text", "answer_start"} <= value.keys():
        return None
    texts, starts = value["text"], value["answer_start"]
    if not isinstance(texts, (list, tuple)) or not isinstance(starts, (list, tuple)):
        return None
    suits = all(isinstance(t, str) for t in texts) and all(isinstance(s, int) for s in starts)
    return {"text": [*texts], "start": [*starts]} if suits and len(texts) == len(starts) else None


def _rows(table: Table, config: TaskConfig, labeled: bool) -> Split:
    """Return the rows of a table, with their answers or without."""
    table.check_filled()
    roles = ("text", "text_pair", *(["label"] if labeled else ()))
    names = {role: _column(table, config, role) for role in roles}
    for role, name in names.items():
        if name is None or name not in table.columns:
            raise DataError(
                f"{table.source} has no column of {ROLES[role]}: the columns are "
                f"{', '.join(map(repr, table.columns))}. Name it with --set task.{role}=COLUMN"
            )
    columns = [table.columns[str(name)] for name in names.values()]
    questions, contexts, labels = [], [], []
    for number, question, context, *value in zip(table.numbers, *columns, strict=True):
        answers = _answers(value[0]) if labeled else {"text": [], "start": []}
        problem = _problem(question, context, answers)
        if problem:
            table.faults.add(number, problem)
            continue
        questions.append(question.strip())
        contexts.append(context)
        labels.append(answers)
    table.faults.check()
    return Split(questions, contexts, labels if labeled else None)


ROLES = {"text": "questions", "text_pair": "contexts", "label": "answers"}


def _problem(question: Any, context: Any, answers: dict[str, list[Any]] | None) -> str:
    """Return the problem with a row; empty if there is none."""
    for name, value in (("question", question), ("context", context)):
        if not isinstance(value, str) or not value.strip():
            return f"the {name} is empty"
    if answers is None:
        return "the answers are not `text` and `answer_start`: strings, and as many numbers"
    for text, start in zip(answers["text"], answers["start"], strict=True):
        if context[start : start + len(text)] != text:
            return f"the answer {text!r} is not at character {start} of its context"
    return ""
