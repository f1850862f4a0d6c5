"""`SuperGLUE`: what its tasks share, the files of its archives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from gkd_core.benchmarks.benchmark import Benchmark, Files


class SuperGLUE(Benchmark):
    """The common base of the tasks; `test.jsonl`, which has no labels, is not read.

    The longest sequences are those of the paper (Tan et al. 2023, table 6).
    """

    max_length = 256
    layouts: ClassVar[Sequence[Files]] = [{"train": ("train.jsonl",), "test": ("val.jsonl",)}]
