"""`glue/stsb`: the Semantic Textual Similarity Benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gkd_core.benchmarks.benchmark import SCORE
from gkd_core.benchmarks.example import Example
from gkd_core.benchmarks.glue.suite import Glue
from gkd_core.benchmarks.raw_row import RawRow
from gkd_core.kinds.metrics import correlations

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.contract.task import Split, TaskData

HIGHEST = 5.0


class STSB(Glue):
    """How similar two sentences are, from 0 to 5 (Cer et al. 2017)."""

    name = "glue/stsb"
    folder = "STS-B"
    hub = "nyu-mll/glue:stsb"
    renamed: ClassVar[Mapping[str, str]] = {"score": "label"}
    as_encoder = "regression"
    official = ("pearson", "spearman")
    metric = SCORE

    def read(self, row: RawRow) -> Iterator[Example]:
        """Yield the sentences and their similarity."""
        value = row.decimal("label")
        if not 0 <= value <= HIGHEST:
            raise ValueError(f"the similarity is {value:g}, not between 0 and {HIGHEST:g}")
        yield Example(row.text("sentence1"), row.text("sentence2"), value)

    def judge(
        self, split: Split, predictions: Tensor | Sequence[Any], data: TaskData
    ) -> dict[str, float]:
        """Return the correlations of Pearson and Spearman."""
        return correlations(torch.as_tensor(predictions), torch.tensor(split.labels))
