"""`Glue`: what its tasks share, the files of its archives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from gkd_core.benchmarks.benchmark import Benchmark, Files
from gkd_core.data.readers import read_tsv

if TYPE_CHECKING:
    from gkd_core.data.table import Table


class Glue(Benchmark):
    """The common base of the tasks; `test.tsv`, which has no labels, is not read.

    Attributes:
        header: Names of the columns, if the files do not have them.
        ragged: Whether its files have broken lines, which are left out.
        renamed: The names on the hub of columns that the files call otherwise.
    """

    layouts: ClassVar[Sequence[Files]] = [{"train": ("train.tsv",), "test": ("dev.tsv",)}]
    header: ClassVar[Sequence[str]] = ()
    ragged: ClassVar[bool] = False
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def read_file(self, path: Path) -> Table:
        """Return the rows of a file; quotation marks are part of the texts."""
        table = read_tsv(path, self.header, self.ragged)
        columns = {self.renamed.get(name, name): data for name, data in table.columns.items()}
        return replace(table, columns=columns)
