"""`superglue/multirc`: which answers to a question about a passage are right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gkd_core.benchmarks.benchmark import SCORE
from gkd_core.benchmarks.example import Example
from gkd_core.benchmarks.raw_row import RawRow
from gkd_core.benchmarks.superglue.suite import SuperGLUE
from gkd_core.kinds.metrics import f1_of_class

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.contract.task import Split, TaskData


class MultiRC(SuperGLUE):
    """Whether an answer to a question about a passage is right (Khashabi et al. 2018).

    Any number of the answers to a question are right. `f1a` is the F1 score of the right ones over
    all answers, `exact_match` the share of the questions whose answers are all judged correctly.
    """

    name = "superglue/multirc"
    folder = "MultiRC"
    hub = "aps/super_glue:multirc"
    classes = ("false", "true")
    pattern = "{passage} Question: {bare_question}? Is it {bare_answer}? {blank}."
    words = ("No", "Yes")
    official = ("f1a", "exact_match")
    metric = SCORE
    max_length = 512

    def read(self, row: RawRow) -> Iterator[Example]:
        """Yield the passage with each answer to each of its questions.

        On the hub, a row is an answer.
        """
        if "paragraph" in row.values:
            place = row.object("idx")
            group = f"{place.number('paragraph')}-{place.number('question')}"
            yield self._example(row.text("paragraph"), row.text("question"), row, "answer", group)
            return
        passage = row.object("passage")
        for question in passage.objects("questions"):
            group = f"{row.number('idx')}-{question.number('idx')}"
            for answer in question.objects("answers"):
                wording = question.text("question")
                yield self._example(passage.text("text"), wording, answer, "text", group)

    def together(self, split: Split) -> list[str]:
        """Return the passages, which are not divided either."""
        return [group.partition("-")[0] for group in split.group or ()]

    def judge(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> dict[str, float]:
        """Return F1 over all answers, and the share of the questions without an error."""
        found, labels = torch.as_tensor(predictions), torch.tensor(split.labels)
        groups: dict[str, bool] = {}
        for group, right in zip(split.group or (), (found == labels).tolist(), strict=True):
            groups[group] = groups.get(group, True) and right
        return {
            "f1a": f1_of_class(found, labels, self.class_id("true", data)),
            "exact_match": sum(groups.values()) / len(groups),
        }

    def _example(
        self, passage: str, question: str, answer: RawRow, column: str, group: str
    ) -> Example:
        text = answer.text(column)
        return Example(
            text=passage,
            pair=f"{question} {text}",
            label=answer.class_id("label", self.classes),
            group=group,
            prompt=self.fill(passage=passage, question=question, answer=text),
        )
