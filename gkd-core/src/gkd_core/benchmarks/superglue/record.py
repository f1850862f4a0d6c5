"""`superglue/record`: which entity of a news article is missing in a sentence about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gkd_core import digest
from gkd_core.benchmarks.benchmark import SCORE
from gkd_core.benchmarks.example import Example, column
from gkd_core.benchmarks.raw_row import RawRow
from gkd_core.benchmarks.superglue.suite import SuperGLUE
from gkd_core.contract.task import BLANK, Split
from gkd_core.data.holdout import take
from gkd_core.kinds.span_extraction import squad_scores

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.contract.task import TaskData

PLACEHOLDER = "@placeholder"
HIGHLIGHT = "\n@highlight\n"
BULLET = "\n- "


@dataclass(frozen=True)
class QuerySplit(Split):
    """Queries with any number of entities.

    Attributes:
        entities: The entities of each query, as they are written.
        answers: The right ones, of which the label names the first.
    """

    entities: Sequence[Sequence[str]] = ()
    answers: Sequence[Sequence[str]] = ()


class ReCoRD(SuperGLUE):
    """Which entity of an article is missing in a sentence about it (Zhang et al. 2018).

    An entity is right if it is any of the answers. In training, each answer is a row of its own,
    without the other answers among its choices. `f1` and `exact_match` compare words as SQuAD does.
    """

    name = "superglue/record"
    folder = "ReCoRD"
    hub = "aps/super_glue:record"
    as_encoder = "multiple-choice"
    pattern = "{passage} {query}"
    official = ("f1", "exact_match")
    metric = SCORE
    max_length = 512

    def read(self, row: RawRow) -> Iterator[Example]:
        """Yield each query with the entities of its article."""
        if "qas" not in row.values:
            place = row.object("idx")
            group = f"{place.number('passage')}-{place.number('query')}"
            answers, entities = row.texts("answers"), row.texts("entities")
            yield self._example(row.text("passage"), row.text("query"), entities, answers, group)
            return
        passage = row.object("passage")
        article = passage.text("text")
        entities = [_entity(article, place) for place in passage.objects("entities")]
        for query in row.objects("qas"):
            group = f"{row.number('idx')}-{query.number('idx')}"
            answers = [answer.text("text") for answer in query.objects("answers")]
            yield self._example(article, query.text("query"), entities, answers, group)

    def split(self, examples: Sequence[Example]) -> QuerySplit:
        """Return examples with their entities and answers."""
        made = super().split(examples)
        entities, answers = (column(examples, name) or [] for name in ("candidates", "answers"))
        return QuerySplit(
            made.text, made.pair, made.labels, made.group, entities=entities, answers=answers
        )

    def together(self, split: Split) -> list[str]:
        """Return the articles, which are not divided either."""
        return [group.partition("-")[0] for group in split.group or ()]

    def taught(self, split: Split) -> Split:
        """Return a row for each right entity, without the other right ones."""
        assert isinstance(split, QuerySplit), "made by `split`"
        rows, kept = [], []
        for row, (entities, answers) in enumerate(zip(split.entities, split.answers, strict=True)):
            right = [number for number, entity in enumerate(entities) if entity in answers]
            for number in right:
                rows.append(row)
                kept.append([n for n in range(len(entities)) if n == number or n not in right])
        made = take(split, rows)
        assert isinstance(made, QuerySplit), "a split like the one it is taken from"
        pair, choices = (_chosen(values, kept) for values in (made.pair or (), made.entities))
        labels = [
            next(n for n, entity in enumerate(several) if entity in right)
            for several, right in zip(choices, made.answers, strict=True)
        ]
        return replace(made, pair=pair, labels=labels, entities=choices)

    def hash(self, data: TaskData) -> str:
        """Return a hash of the rows and of all right answers."""
        splits = (data.train, data.validation, data.test)
        answers = [list(split.answers) for split in splits if isinstance(split, QuerySplit)]
        return digest.of_value([super().hash(data), answers])

    def judge(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> dict[str, float]:
        """Return F1 and exact match of the chosen entities, the best over the right ones."""
        assert isinstance(split, QuerySplit), "made by `split`"
        pairs = zip(split.entities, predictions, strict=True)
        chosen = [entities[int(number)] for entities, number in pairs]
        percent = squad_scores(chosen, [{"text": answers} for answers in split.answers])
        return {name: value / 100 for name, value in percent.items()}

    def _example(
        self,
        passage: str,
        query: str,
        entities: Sequence[str],
        answers: Sequence[str],
        group: str,
    ) -> Example:
        if PLACEHOLDER not in query:
            raise ValueError(f"'query' has no {PLACEHOLDER}")
        different = list(dict.fromkeys(entities))
        right = [number for number, entity in enumerate(different) if entity in answers]
        if not right:
            raise ValueError(f"no answer of {list(answers)} is among the entities of the passage")
        text = passage.replace(HIGHLIGHT, BULLET)
        return Example(
            text=text,
            pair=[query.replace(PLACEHOLDER, entity) for entity in different],
            label=right[0],
            group=group,
            prompt=self.fill(passage=text, query=query.replace(PLACEHOLDER, BLANK, 1)),
            candidates=different,
            answers=list(dict.fromkeys(answers)),
        )


def _entity(article: str, place: RawRow) -> str:
    """Return an entity of an article, whose `end` is its last character."""
    first, last = place.number("start"), place.number("end")
    if not 0 <= first <= last < len(article):
        raise ValueError(f"an entity from {first} to {last} is not within the passage")
    return article[first : last + 1]


def _chosen(values: Sequence[Sequence[str]], kept: Sequence[Sequence[int]]) -> list[list[str]]:
    """Return some of the choices of each row."""
    return [[several[n] for n in own] for several, own in zip(values, kept, strict=True)]
