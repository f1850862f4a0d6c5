"""`functions`: instruction data from the running Python's library, without any download."""

from __future__ import annotations

import ast
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd_core import digest
from gkd_core.contract.task import Split, Task, TaskData
from gkd_core.data import docstrings
from gkd_core.data.assemble import hash_rows
from gkd_core.data.cache import cache_entry, read_entry, write_entry
from gkd_core.data.own_rows import reject_files
from gkd_core.errors import ConfigError, DataError

KIND = "causal-lm"

QUESTION = "What does this Python function do?\n\n{}"

HELD_OUT = {"test": 64, "validation": 32}
"""Rows of the splits that are not trained on: few, since models write answers to them."""

Rows = Mapping[str, tuple[list[str], list[str]]]
"""Prompts and answers of each split."""


@dataclass(frozen=True)
class DescribedFunction:
    """A function.

    Attributes:
        signature: Its first line, as in `def name(first, *, second=None):`.
        description: The first paragraph of its docstring.
        file: The file that it is in, within the library.
    """

    signature: str
    description: str
    file: str


class Functions(Task):
    """Functions of the standard library, to be described as their docstrings begin.

    The rows of a file are all in one split. They depend only on the Python installation.
    """

    name = "functions"

    @classmethod
    def facts(cls) -> dict[str, str]:
        """Return the facts that `gkd tasks` shows."""
        own = {"kind": KIND, "data": "none: that of the running Python"}
        return super().facts() | own

    def check(self) -> None:
        """Reject settings that belong to other tasks.

        Raises:
            ConfigError: A file is named, or something else than the next token is to be predicted.
        """
        reject_files(self.config, self.name)
        if self.kind not in (None, KIND):
            raise ConfigError(
                f"task.kind is '{self.kind}', but the task 'functions' asks for text; use {KIND!r}"
            )

    def load(self, kind: str, seed: int) -> TaskData:
        """Return questions about functions, and their answers.

        Raises:
            DataError: Python was installed without its library sources.
        """
        splits = {
            name: Split(prompts, target=answers, chat=True)
            for name, (prompts, answers) in _cached_rows().items()
        }
        return TaskData(
            kind=KIND,
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            classes=(),
            rows_hash=hash_rows(KIND, (), splits),
            source=f"functions of Python {sys.version.split()[0]}",
        )


def collect(library: Path) -> list[DescribedFunction]:
    """Return the functions in a directory of Python files that say what they do, in a fixed order.

    Functions with an equal description are left out but for the first.
    """
    found: dict[str, DescribedFunction] = {}
    for file in sorted(library.rglob("*.py")):
        name = file.relative_to(library).as_posix()
        if "test" not in name and "site-packages" not in name and "idlelib" not in name:
            for function in _functions(file, name):
                found.setdefault(function.description, function)
    return list(found.values())


def _functions(file: Path, name: str) -> Iterator[DescribedFunction]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # templates and examples of wrong code
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        paragraphs = docstrings.paragraphs(ast.get_docstring(node) or "")
        if paragraphs:
            yield DescribedFunction(_signature(node), paragraphs[0], name)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{word} {node.name}({ast.unparse(node.args)}):"


def split(functions: Iterable[DescribedFunction]) -> dict[str, list[DescribedFunction]]:
    """Split functions into `train`, `validation` and `test`; those of a file stay together.

    Files are drawn by a hash of their names; what a file has beyond the size of a held-out split is
    left out.
    """
    by_file: dict[str, list[DescribedFunction]] = {}
    for function in functions:
        by_file.setdefault(function.file, []).append(function)
    waiting = sorted(by_file, key=lambda name: digest.of_bytes([name.encode()]))
    dealt: dict[str, list[DescribedFunction]] = {}
    for name, size in HELD_OUT.items():
        dealt[name] = []
        while waiting and len(dealt[name]) < size:
            dealt[name] += by_file[waiting.pop()]
        del dealt[name][size:]
    return {"train": [one for name in waiting for one in by_file[name]], **dealt}


def _as_rows(functions: Sequence[DescribedFunction]) -> tuple[list[str], list[str]]:
    prompts = [QUESTION.format(function.signature) for function in functions]
    return prompts, [function.description for function in functions]


def _cached_rows() -> Rows:
    library = Path(sysconfig.get_path("stdlib"))
    sources = inspect.getsource(sys.modules[__name__]) + inspect.getsource(docstrings)
    key = digest.of_bytes([f"{sys.version}\n{library}\n{sources}".encode()])[: digest.SHORT]
    path = cache_entry("embedded", f"functions-{key}.json")
    rows: Rows | None = read_entry(path, dict)
    if rows is None:
        rows = {name: _as_rows(part) for name, part in split(collect(library)).items()}
        if not all(prompts for prompts, _ in rows.values()):
            raise DataError(
                f"no Python sources in {library}, from which the task 'functions' is built. "
                "Install Python with its library sources, or name your own data with `--data`"
            )
        write_entry(path, rows)
    return rows
