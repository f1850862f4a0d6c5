"""`token-classification`: a tag for each word, such as named entities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.contract.batch import IGNORE, UNKNOWN
from gkd_core.contract.task import Fit, Split
from gkd_core.data.columns import pick_column
from gkd_core.data.encode import Encoded, check_room, join_rows
from gkd_core.data.labels import (
    is_missing,
    known_classes,
    label_name,
    label_names,
    shown_label,
    sorted_classes,
)
from gkd_core.errors import DataError
from gkd_core.kinds.metrics import Metric, f1_of_counts, mean_loss
from gkd_core.kinds.task_kind import Evaluation, ReadRows, RowMeasure, TaskKind, whole
from gkd_core.losses import Logits, cross_entropy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.contract.batch import Batch
    from gkd_core.data.collate import Uncollated
    from gkd_core.data.table import Table

WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels", "pos_tags", "upos")
NOTHING = "O"


class TokenClassification(TaskKind):
    """A tag for each word of a text: entities, parts of speech.

    A row has a list of words and a list of tags; CoNLL files (`.conll`, `.bio`) have a word and its
    tag per line. The first token of a word carries its tag, and its prediction is that of the word.
    The main metric is the F1 of entities as seqeval and conlleval count them: an entity is right if
    its words and its type are. Words that do not fit into `task.max_length` count as predicted `O`.
    """

    name = "token-classification"
    head = "token-classification head"
    metric = Metric("f1", True)
    metrics = ("f1", "precision", "recall", "accuracy")
    predicted = "token"
    has_classes = True
    pools = False

    @property
    def auto(self) -> Any:
        """The Auto class of token classifiers."""
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def made(self, config: PretrainedConfig) -> bool:
        """Recognize a token classifier whose outputs are a class each."""
        names = config.id2label.values()
        return super().made(config) and len(set(names)) == len(names)

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Take a column of words beside a column of tags, both lists."""
        words, tags = pick_column(table, config.text, WORDS), pick_column(table, config.label, TAGS)
        if words is None or tags is None or words == tags:
            return Fit.NO
        values = (*table.columns[words][:1], *table.columns[tags][:1])
        return Fit.CERTAIN if all(isinstance(value, list) for value in values) else Fit.NO

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the words, with a tag id for each."""
        train = tables["train"]
        words = pick_column(train, config.text, WORDS)
        if words is None:
            raise DataError(
                f"{train.source} has no column of words: the columns are "
                f"{', '.join(map(repr, train.columns))}. Name it with --set task.text=COLUMN"
            )
        first = next((t for t in tables.values() if self.is_labeled(t, t, config)), train)
        tags = pick_column(first, config.label, TAGS)
        must = self.is_labeled(train, first, config)
        classes = _classes(first, tags)
        splits = {}
        for name, table in tables.items():
            labeled = must or self.is_labeled(table, first, config)
            splits[name] = _rows(table, words, tags if labeled else None, classes)
        return ReadRows(splits, classes)

    def is_labeled(self, table: Table, train: Table, config: TaskConfig) -> bool:
        """Return whether a test table has tags."""
        tags = pick_column(train, config.label, TAGS)
        return any(map(_has_tags, table.columns.get(tags or "", ())))

    def renumber(self, label: Any, ids: Sequence[int], count: int = 0) -> list[int]:
        """Return the tags of a row in another order of the classes."""
        return [ids[tag] for tag in label]

    def classes_of(self, label: Any) -> list[int]:
        """Return the tags of a row."""
        return list(label)

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize words joined by spaces; the first token of a word carries its tag.

        Raises:
            ConfigError: `max_length` leaves no room besides the special tokens.
        """
        check_room(tokenizer, max_length, pair=False)
        made = tokenizer(
            [" ".join(words) for words in split.text],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        rows = zip(split.text, made["offset_mapping"], made["special_tokens_mask"], strict=True)
        starts = [_first_tokens(*row) for row in rows]
        golds: Sequence[Sequence[int]] = split.labels or [[UNKNOWN] * len(w) for w in split.text]
        labels = [
            np.array([IGNORE if word < 0 else gold[word] for word in row], np.int64)
            for gold, row in zip(golds, starts, strict=True)
        ]
        cut = sum(
            max(row, default=-1) < len(w) - 1 for w, row in zip(split.text, starts, strict=True)
        )
        encoded = join_rows(made["input_ids"], made.get("token_type_ids"), cut)
        return encoded.with_labels(np.concatenate(labels), {"gold": golds, "classes": classes})

    def any_labels(self, split: Split, classes: Sequence[str]) -> list[list[int]]:
        """Return the first tag for each word."""
        return [[0] * len(words) for words in split.text]

    def answers(self, predictions: Any, split: Split, classes: Sequence[str]) -> list[list[int]]:
        """Return the predicted tags; words that were not read have none, unless `O` is a tag."""
        ids = {name: index for index, name in enumerate(classes)}
        return [[ids.get(tag, IGNORE) for tag in row] for row in predictions]

    def collate(self, rows: Uncollated) -> tuple[Sequence[NDArray[np.int64]], Tensor | None]:
        """Return the rows, and the tag at the first token of each word."""
        encoded = rows.encoded
        if encoded.labels is None:
            return rows.ids, None
        return rows.ids, rows.padded(
            [encoded.labels[encoded.part(n)] for n in rows.numbers], IGNORE
        )

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return rows whose words have a token each."""
        made = super().planned(rows, length, token, classes)
        return made.with_labels(np.zeros(rows * length, np.int64))

    def observe(self, logits: Logits, batch: Batch) -> Any:
        """Return the sum of the losses; of each row the predicted tags, the logits, and losses."""
        found = whole(logits)
        losses = cross_entropy(found, batch.require_labels(), batch.targets).values
        of_words = (
            [
                row[mask].float().tolist()
                for row, mask in zip(values, batch.targets.mask, strict=True)
            ]
            for values in (found, losses)
        )
        tags = [
            row[mask].tolist()
            for row, mask in zip(found.argmax(-1), batch.targets.mask, strict=True)
        ]
        return float(losses.sum()), batch.targets.count, batch.rows.tolist(), tags, *of_words

    def summarize(self, parts: Sequence[Any], split: Encoded) -> Evaluation:
        """Return F1, precision and recall of the entities, and the accuracy of the tags."""
        found = {row: own for _, _, *observed in parts for row, *own in zip(*observed, strict=True)}
        tags, scores, losses = zip(*(found[row] for row in range(len(found))), strict=True)
        loss = mean_loss(part[:2] for part in parts)
        golds = [[tag for tag in row if tag != IGNORE] for row in split.extra["gold"]]
        classes = split.extra["classes"]
        names = [*classes, NOTHING]
        # Words beyond the last token have no prediction.
        predictions = [
            [*own, *[len(classes)] * (len(gold) - len(own))]
            for own, gold in zip(tags, golds, strict=True)
        ]
        gold_names, predicted = _named(golds, names), _named(predictions, names)
        metrics = {"loss": loss, **entity_scores(gold_names, predicted)}
        means = [sum(row) / len(row) if row else None for row in losses]
        return Evaluation(metrics, predicted, {"scores": scores, "loss": means})

    def remeasure(
        self, evaluation: Evaluation, split: Split, classes: Sequence[str]
    ) -> RowMeasure | None:
        """Return a function that computes the scores of some of the sentences."""
        golds = self.shown(split.labels or (), classes)
        counts = entity_counts(golds, list(evaluation.predictions or ()))
        return lambda rows: _scores(counts[rows])


def entity_counts(
    golds: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> NDArray[np.int64]:
    """Return the counts behind the scores of entities and tags, per sentence: int64 `[N, 5]`.

    These are the entities that are right, predicted and true, and the tags that are right and all.
    Arguments as for `entity_scores`.
    """
    counts = np.zeros((len(golds), 5), np.int64)
    true, found = set(_entities(golds)), set(_entities(predictions))
    for place, entities in enumerate((true & found, found, true)):
        np.add.at(counts[:, place], [sentence for sentence, *_ in entities], 1)
    for row, gold, predicted in zip(counts, golds, predictions, strict=True):
        row[3] = sum(a == b for a, b in zip(gold, predicted, strict=True))
        row[4] = len(gold)
    return counts


def entity_scores(
    golds: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return F1, precision and recall of entities, and the accuracy of tags, as seqeval does.

    Args:
        golds: The true tags of each sentence, such as `B-PER`.
        predictions: The predicted tags.
    """
    return _scores(entity_counts(golds, predictions))


def _scores(counts: NDArray[np.int64]) -> dict[str, float]:
    hits, found, true, right, tags = counts.sum(0).tolist()
    return {
        "f1": f1_of_counts(hits, true + found),
        "precision": hits / found if found else 0.0,
        "recall": hits / true if true else 0.0,
        "accuracy": right / max(tags, 1),
    }


def _entities(sentences: Sequence[Sequence[str]]) -> Iterator[tuple[int, int, int, str]]:
    """Yield sentence, first word, last word and type of each entity, as conlleval finds them."""
    for number, tags in enumerate(sentences):
        begin, previous, kind = 0, NOTHING, ""
        for position, tag in enumerate([*tags, NOTHING]):
            prefix, current = tag[0], tag[1:].split("-", 1)[-1] or "_"
            if _ends(previous, prefix, kind, current):
                yield number, begin, position - 1, kind
            if _begins(previous, prefix, kind, current):
                begin = position
            previous, kind = prefix, current


def _ends(before: str, now: str, kind: str, next_kind: str) -> bool:
    """Whether an entity ends between two tags."""
    if before in ("E", "S") or (before in ("B", "I") and now in ("B", "S", "O")):
        return True
    return before not in (NOTHING, ".") and kind != next_kind


def _begins(before: str, now: str, kind: str, next_kind: str) -> bool:
    """Whether an entity begins at a tag."""
    if now in ("B", "S") or (before in ("E", "S", "O") and now in ("E", "I")):
        return True
    return now not in (NOTHING, ".") and kind != next_kind


def _named(rows: Sequence[Sequence[int]], names: Sequence[str]) -> list[list[str]]:
    return [[names[tag] for tag in row] for row in rows]


def _has_tags(row: Any) -> bool:
    """Return whether a row has a tag, or any value instead of its tags."""
    if isinstance(row, (list, tuple)):
        return any(tag is not None for tag in row)
    return not is_missing(row)


def _classes(table: Table, tags: str | None) -> tuple[str, ...]:
    """Return the tags of a table in the order of their ids; none if it has no column of them."""
    if tags is None:
        return ()
    rows = (row for row in table.columns[tags] if isinstance(row, (list, tuple)))
    found = label_names(tag for row in rows for tag in row)
    return table.classes.get(tags) or known_classes(found, table.known) or sorted_classes(found)


def _rows(table: Table, words: str, tags: str | None, classes: Sequence[str]) -> Split:
    """Return the rows of a table, with a tag id for each word if there is a column of tags."""
    ids = {name: index for index, name in enumerate(classes)}
    for name in filter(None, (words, tags)):
        if name not in table.columns:
            raise DataError(
                f"{table.source} has no column {name!r}, which the training data has. Give a file "
                "with the same columns"
            )
    texts, labels = [], []
    marked = table.columns[words] if tags is None else table.columns[tags]
    for number, row, marks in zip(table.numbers, table.columns[words], marked, strict=True):
        problem = _problem(row) or ("" if tags is None else _tag_problem(row, marks, ids))
        if problem:
            table.faults.add(number, problem)
            continue
        texts.append(list(row))
        labels.append([] if tags is None else [ids[label_name(tag)] for tag in marks])
    table.faults.check()
    return Split(texts, None, None if tags is None else labels)


def _problem(words: Any) -> str:
    """Return the problem with the words of a row; empty if there is none."""
    if not isinstance(words, (list, tuple)):
        return "expected a list of words and a list of tags"
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        return "a word is empty or not a string"
    return ""


def _tag_problem(words: Sequence[str], tags: Any, ids: Mapping[str, int]) -> str:
    """Return the problem with the tags of a row; empty if there is none."""
    if not isinstance(tags, (list, tuple)):
        return "expected a list of words and a list of tags"
    if len(words) != len(tags):
        return f"there are {len(words)} words and {len(tags)} tags"
    unknown = [name for name in map(shown_label, tags) if name not in ids]
    return f"tag {unknown[0]!r} never occurs in training" if unknown else ""


def _first_tokens(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> list[int]:
    """Return for each token the number of the word that it is the first of, or -1."""
    # The word of each character of the joined text; a space belongs to none.
    owner = [-1] * (sum(map(len, words)) + len(words))
    at = 0
    for index, text in enumerate(words):
        owner[at : at + len(text)] = [index] * len(text)
        at += len(text) + 1
    first, seen = [], -1
    for (_, end), is_special in zip(offsets, special, strict=True):
        # The start of a token may be the space before its word.
        word = -1 if is_special or end == 0 else owner[end - 1]
        first.append(word if word > seen else -1)
        seen = max(seen, word)
    return first
