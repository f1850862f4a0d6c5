"""`glue/mnli`, `glue/qnli`, `glue/rte` and `glue/wnli`: whether a text entails another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gkd_core.benchmarks.benchmark import Files
from gkd_core.benchmarks.glue.suite import Glue
from gkd_core.kinds.metrics import accuracy

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.contract.task import Split, TaskData
    from gkd_core.data.table import Table

SECTIONS = ("matched", "mismatched")


class MNLI(Glue):
    """Whether a text entails a hypothesis, contradicts it, or neither (Williams et al. 2018).

    The test rows are those from the sources of the training rows, `matched`, and those from others,
    `mismatched`; the accuracy of both is measured, and of each.
    """

    name = "glue/mnli"
    folder = "MNLI"
    hub = "nyu-mll/glue:mnli"
    layouts: ClassVar[Sequence[Files]] = [
        {"train": ("train.tsv",), "test": ("dev_matched.tsv", "dev_mismatched.tsv")}
    ]
    hub_splits: ClassVar[Files] = {
        "train": ("train",),
        "test": ("validation_matched", "validation_mismatched"),
    }
    renamed: ClassVar[Mapping[str, str]] = {
        "sentence1": "premise",
        "sentence2": "hypothesis",
        "gold_label": "label",
    }
    text, pair = "premise", "hypothesis"
    classes = ("entailment", "neutral", "contradiction")
    pattern = "{text} Question: {bare_pair}? Answer: {blank}."
    words = ("Yes", "Maybe", "No")
    official = ("accuracy_matched", "accuracy_mismatched")

    def join(self, tables: Sequence[Table]) -> Split:
        """Return the rows of a split; those of the test are in a group for each section."""
        if len(tables) != len(SECTIONS):
            return super().join(tables)
        parts = zip(SECTIONS, map(self.examples, tables), strict=True)
        return self.split([replace(one, group=name) for name, part in parts for one in part])

    def judge(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> dict[str, float]:
        """Return the accuracy of each section."""
        if split.group is None:
            return {}
        found, labels = torch.as_tensor(predictions), torch.tensor(split.labels)
        inside = {name: torch.tensor([group == name for group in split.group]) for name in SECTIONS}
        return {
            f"accuracy_{name}": accuracy(found[rows], labels[rows]) for name, rows in inside.items()
        }


class QNLI(Glue):
    """Whether a sentence answers a question (Rajpurkar et al. 2016, in the form of GLUE)."""

    name = "glue/qnli"
    folder = "QNLI"
    hub = "nyu-mll/glue:qnli"
    text, pair = "question", "sentence"
    classes = ("entailment", "not_entailment")
    pattern = "{pair} Does this answer the question: {bare_text}? {blank}."
    words = ("Yes", "No")


class GlueRTE(Glue):
    """Whether a text entails a hypothesis (Dagan et al. 2006, and three later challenges)."""

    name = "glue/rte"
    folder = "RTE"
    hub = "nyu-mll/glue:rte"
    classes = ("entailment", "not_entailment")
    pattern = "{text} Question: {bare_pair}? Answer: {blank}."
    words = ("Yes", "No")


class WNLI(Glue):
    """Whether a text entails it with a pronoun replaced (Levesque et al. 2012)."""

    name = "glue/wnli"
    folder = "WNLI"
    hub = "nyu-mll/glue:wnli"
    classes = ("not_entailment", "entailment")
    pattern = "{text} Question: {bare_pair}? Answer: {blank}."
    words = ("No", "Yes")
