"""Docstrings of the Python standard library as labeled text.

The sources are parsed, never imported or executed. A row is one paragraph of a docstring; its class
is the chapter of the library documentation that describes the module.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd_core import digest
from gkd_core.errors import DataError

CHAPTERS: Mapping[str, str] = {
    "text and data types": "string re difflib textwrap rlcompleter codecs encodings datetime "
    "zoneinfo calendar collections _collections_abc heapq bisect weakref _weakrefset types copy "
    "pprint reprlib enum graphlib _strptime stringprep",
    "numbers and functions": "numbers _pydecimal fractions random statistics functools operator "
    "colorsys",
    "files": "pathlib posixpath ntpath genericpath stat fileinput filecmp tempfile glob fnmatch "
    "linecache shutil os _pyio io",
    "storage and archives": "pickle copyreg shelve dbm sqlite3 gzip bz2 lzma zipfile tarfile csv "
    "configparser tomllib netrc plistlib hashlib hmac secrets _compression wave",
    "command line and logging": "argparse getopt optparse logging getpass curses platform ctypes "
    "cmd shlex gettext locale",
    "concurrency": "threading _threading_local multiprocessing concurrent subprocess sched queue "
    "contextvars",
    "networking": "asyncio socket ssl selectors signal",
    "internet data": "email json mailbox mimetypes base64 quopri html xml _markupbase",
    "internet protocols": "webbrowser wsgiref urllib http ftplib poplib imaplib smtplib uuid "
    "socketserver xmlrpc ipaddress",
    "graphics": "turtle turtledemo",
    "development tools": "typing pydoc doctest unittest bdb pdb timeit trace tracemalloc "
    "cProfile profile pstats",
    "runtime": "sysconfig warnings dataclasses contextlib abc _py_abc traceback __future__ "
    "inspect site code codeop _sitebuiltins zipimport pkgutil modulefinder runpy importlib venv "
    "zipapp ast symtable tokenize tabnanny pyclbr py_compile compileall dis opcode pickletools",
}
"""Chapters of the library documentation and their modules; small related chapters are merged."""

FEWEST_WORDS = 5
SHINGLE = 3
SIMILAR = 0.5
SHARES = {"test": 0.2, "validation": 0.1}

BLOCKS = (ast.stmt, ast.excepthandler, ast.match_case)
"""The nodes that may contain definitions."""

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Passage:
    """One paragraph of a docstring.

    Attributes:
        text: The paragraph on one line.
        label: Index of its chapter.
        origin: Location of the docstring, as `file:line`.
    """

    text: str
    label: int
    origin: str


def collect(library: Path) -> list[Passage]:
    """Return the paragraphs of all docstrings in the directory `library`, in a fixed order.

    Raises:
        DataError: The library was installed without sources.
    """
    found = [
        passage
        for label, modules in enumerate(CHAPTERS.values())
        for module in modules.split()
        for file in _sources(library, module)
        for passage in _passages(file, library, label)
    ]
    if not found:
        raise DataError(
            f"no Python sources in {library}, from which the embedded task is built. "
            "Install Python with its library sources, or name your own data with `--data`"
        )
    return found


def _sources(library: Path, module: str) -> list[Path]:
    single = library / f"{module}.py"
    return [single] if single.is_file() else sorted((library / module).rglob("*.py"))


def _passages(file: Path, library: Path, label: int) -> Iterator[Passage]:
    name = file.relative_to(library).as_posix()
    for node in _definitions(ast.parse(file.read_bytes())):
        for text in paragraphs(ast.get_docstring(node) or ""):
            yield Passage(text, label, f"{name}:{getattr(node, 'lineno', 0)}")


def _definitions(module: ast.Module) -> Iterator[Definition]:
    """Yield what may have a docstring, in the order of `ast.walk`; no expression is looked into."""
    waiting: deque[ast.AST] = deque([module])
    while waiting:
        node = waiting.popleft()
        if isinstance(node, Definition):
            yield node
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, BLOCKS)]


def paragraphs(docstring: str) -> list[str]:
    """Split a docstring into one-line paragraphs, without examples and fragments."""
    blocks = re.split(r"\n\s*\n", docstring)
    texts = (" ".join(block.split()) for block in blocks)
    return [text for text in texts if ">>>" not in text and len(words(text)) >= FEWEST_WORDS]


def words(text: str) -> list[str]:
    """Return the words of a text in lowercase."""
    return re.findall(r"[a-z]+", text.lower())


def unique(passages: Iterable[Passage]) -> list[Passage]:
    """Keep one of several passages with the same words, or none if their labels differ."""
    same: dict[tuple[str, ...], list[Passage]] = defaultdict(list)
    for passage in passages:
        same[tuple(words(passage.text))].append(passage)
    return [copies[0] for copies in same.values() if len({copy.label for copy in copies}) == 1]


def split(passages: Sequence[Passage]) -> dict[str, list[Passage]]:
    """Split passages into `train`, `validation` and `test`, keeping groups together.

    The order is that of a hash of the text: the same in every run, and unrelated to the library's.
    """
    members: dict[int, list[Passage]] = defaultdict(list)
    for number, passage in zip(groups(passages), passages, strict=True):
        members[number].append(passage)
    waiting = sorted(members.values(), key=_draw)
    dealt: dict[str, list[Passage]] = {}
    for name, share in SHARES.items():
        dealt[name] = []
        while len(dealt[name]) < share * len(passages):
            dealt[name] += waiting.pop()
    return {"train": [passage for group in waiting for passage in group], **dealt}


def _draw(group: Sequence[Passage]) -> str:
    return digest.of_bytes([group[0].text.encode()])


def groups(passages: Sequence[Passage]) -> list[int]:
    """Return a group number per passage; near-duplicates and passages of one docstring share one.

    The Jaccard index of near-duplicates' runs of `SHINGLE` words is at least `SIMILAR`.
    """
    parent = list(range(len(passages)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, second in _alike(passages):
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return [root(index) for index in range(len(passages))]


def _alike(passages: Sequence[Passage]) -> Iterator[tuple[int, int]]:
    """Yield pairs of passages that must be in the same group."""
    first_of: dict[str, int] = {}
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes: list[int] = []
    for index, passage in enumerate(passages):
        yield first_of.setdefault(passage.origin, index), index
        shared: dict[int, int] = defaultdict(int)
        runs = _shingles(passage.text)
        for run in runs:
            for other in holders[run]:
                shared[other] += 1
            holders[run].append(index)
        sizes.append(len(runs))
        for other, count in shared.items():
            if count >= SIMILAR * (sizes[other] + len(runs) - count):
                yield other, index


def _shingles(text: str) -> set[tuple[str, ...]]:
    parts = words(text)
    return {tuple(parts[start : start + SHINGLE]) for start in range(len(parts) - SHINGLE + 1)}
