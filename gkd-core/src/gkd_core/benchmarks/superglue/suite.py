"""`SuperGLUE`: what its tasks share: the files of its archives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gkd_core.benchmarks.benchmark import Benchmark


class SuperGLUE(Benchmark):
    """The common base of the tasks; `test.jsonl`, which has no labels, is not read."""

    files: ClassVar[Mapping[str, Sequence[str]]] = {
        "train": ("train.jsonl",),
        "test": ("val.jsonl",),
    }
