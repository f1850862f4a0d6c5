"""`glue/mrpc` and `glue/qqp`: whether two texts mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gkd_core.benchmarks.benchmark import SCORE, Files
from gkd_core.benchmarks.glue.suite import Glue
from gkd_core.data.readers import read_tsv
from gkd_core.kinds.metrics import accuracy, f1_of_class

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.contract.task import Split, TaskData
    from gkd_core.data.table import Table

DEV_IDS = "dev_ids.tsv"
"""The file in which GLUE lists its validation rows among Microsoft's training rows."""


class Paraphrases(Glue):
    """The common base: F1 of the pairs that mean the same, and accuracy."""

    pattern = '{text} Does it mean the same as "{bare_pair}"? {blank}.'
    words = ("No", "Yes")
    official = ("f1", "accuracy")
    metric = SCORE

    def judge(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> dict[str, float]:
        """Return F1 of the second class, and accuracy."""
        found, labels = torch.as_tensor(predictions), torch.tensor(split.labels)
        same = self.class_id(self.classes[1], data)
        return {"f1": f1_of_class(found, labels, same), "accuracy": accuracy(found, labels)}


class MRPC(Paraphrases):
    """Whether two sentences of news paraphrase each other (Dolan and Brockett 2005).

    Its files are `train.tsv` and `dev.tsv` or, as Microsoft distributes them,
    `msr_paraphrase_train.txt`, of which GLUE's `dev_ids.tsv` names the validation rows. Without
    these, `msr_paraphrase_test.txt` is tested on, which has labels.
    """

    name = "glue/mrpc"
    folder = "MRPC"
    hub = "nyu-mll/glue:mrpc"
    layouts: ClassVar[Sequence[Files]] = [
        *Glue.layouts,
        {"train": ("msr_paraphrase_train.txt",), "test": ("msr_paraphrase_test.txt",)},
    ]
    renamed: ClassVar[Mapping[str, str]] = {
        "#1 String": "sentence1",
        "#2 String": "sentence2",
        "Quality": "label",
    }
    classes = ("not_equivalent", "equivalent")

    def tables(self) -> dict[str, list[Table]]:
        """Return the tables, with GLUE's validation rows taken from Microsoft's training rows."""
        found = super().tables()
        (train,) = found["train"]
        listed = Path(train.source).with_name(DEV_IDS)
        if Path(train.source).suffix == ".txt" and listed.is_file() and self.config.test is None:
            ids = read_tsv(listed, header=("first", "second"))
            dev = set(zip(ids.columns["first"], ids.columns["second"], strict=True))
            own = list(zip(train.columns["#1 ID"], train.columns["#2 ID"], strict=True))
            found["train"] = [_rows(train, [pair not in dev for pair in own])]
            found["test"] = [_rows(train, [pair in dev for pair in own])]
        return found


class QQP(Paraphrases):
    """Whether two questions on Quora ask the same (Iyer et al. 2017).

    Some lines of its first files are broken; as in GLUE's own code, they are left out.
    """

    name = "glue/qqp"
    folder = "QQP"
    hub = "nyu-mll/glue:qqp"
    renamed: ClassVar[Mapping[str, str]] = {"is_duplicate": "label"}
    text, pair = "question1", "question2"
    classes = ("not_duplicate", "duplicate")
    ragged = True


def _rows(table: Table, kept: Sequence[bool]) -> Table:
    """Return some of the rows of a table."""
    rows = [row for row, keep in enumerate(kept) if keep]
    columns = {name: [data[row] for row in rows] for name, data in table.columns.items()}
    return replace(table, columns=columns, numbers=[table.numbers[row] for row in rows])
