"""Paths: the names by which a method requests tensors.

    student.hidden[2]           output of block 2 (hidden[0] is the embedding output)
    teacher.hidden[1,3,last]    several layers; `last`, negative numbers and `*` (all) are allowed
    teacher.hidden[last]|cls    only the summarizing position, reduced while capturing
    student.hidden[last].normed after the model's final norm
    teacher.probs[*]            attention distributions of every layer
    teachers[large].logits      of the teacher named `large` only
    student@swapped.logits      in the method's own pass `swapped` (without @: in the main pass)

For a given model shape, a path resolves to `Capture`s: the canonical keys under which the tensors
of one forward pass are captured once, however many methods read them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gkd_core.errors import MethodError, suggest

if TYPE_CHECKING:
    from gkd_core.contract.model_info import ModelInfo, Models

ATTENTION_SITES = ("query", "key", "value", "attention", "scores", "probs", "context")
FFN_SITES = ("neurons", "ffn")
LAYERED_SITES = ("hidden", *ATTENTION_SITES, *FFN_SITES, "block")
SITES = ("hidden", "embedding", *ATTENTION_SITES, *FFN_SITES, "pooled", "logits")
"""Sites that can be read."""
WRITABLE_SITES = (*(site for site in SITES if site != "attention"), "block")
"""Sites that operations can change; `block` stands for the module itself."""
REDUCERS = ("cls", "mean")
REDUCIBLE_SITES = ("hidden", "embedding", "context", "ffn")
MAIN = "main"
"""Name of the pass that all methods share."""

GRAMMAR = re.compile(
    r"(?P<side>\w+)(?:\[(?P<name>[^\]]*)\])?(?:@(?P<run>[\w-]+))?\.(?P<site>\w+)(?:\[(?P<index>[^\]]*)\])?"
    r"(?P<normed>\.normed\b)?(?:\|(?P<reduce>\w+))?"
)
INDEX = re.compile(r"\*|last|-?\d+")


@dataclass(frozen=True, order=True)
class Capture:
    """One tensor of one forward pass.

    Attributes:
        site: One of `SITES` except `embedding`, which is `hidden` 0; or `block`, the block itself.
        layer: Number of the block; 0 is the embedding output; None for `pooled` and `logits`.
        normed: Whether the tensor is taken after the model's final norm.
        reduce: `cls`, `mean`, or empty for the whole tensor.
    """

    site: str
    layer: int | None = None
    normed: bool = False
    reduce: str = ""

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"[{self.layer}]"
        normed = ".normed" if self.normed else ""
        return f"{self.site}{layer}{normed}{'|' if self.reduce else ''}{self.reduce}"

    def shape(self, info: ModelInfo, batch_size: int, length: int) -> tuple[int, ...]:
        """Return the shape of the tensor in a batch of `batch_size` rows of `length` tokens."""
        rows = (batch_size,) if self.reduce else (batch_size, length)
        if self.site == "logits":
            shapes: dict[str, tuple[int, ...]] = {
                "sample": (batch_size, info.labels),
                "token": (batch_size, length, info.labels),
                "span": (batch_size, 2, length),
                "vector": (batch_size, info.labels),
            }
            return shapes[info.predicted]
        if self.site == "pooled":
            return (batch_size, info.hidden_size)
        if self.site in ("hidden", "ffn"):
            return (*rows, info.hidden_size)
        if self.site == "neurons":
            return (*rows, info.ffn_size)
        if self.site == "context":
            return (*rows, info.heads * info.head_size)
        if self.site in ("scores", "probs"):
            return (batch_size, info.heads, length, length)
        heads = {"query": info.heads, "attention": info.heads + info.kv_heads}
        return (batch_size, heads.get(self.site, info.kv_heads), length, info.head_size)

    def bytes(self, info: ModelInfo, batch_size: int, length: int, element_size: int = 4) -> int:
        """Return the size of the tensor in bytes.

        Args:
            info: Shape of the model.
            batch_size: Rows.
            length: Tokens of a row.
            element_size: Bytes of one element.
        """
        size = element_size
        for dimension in self.shape(info, batch_size, length):
            size *= dimension
        return size


LOGITS = Capture("logits")
"""The output of the head, as a key of `View`."""
POOLED = Capture("pooled")


@dataclass(frozen=True)
class Path:
    """A path as written.

    Attributes:
        text: The text.
        side: `student` or `teacher`.
        teacher: The one teacher it is restricted to, or None.
        run: Name of the pass, `main` if none was written.
        site: One of `SITES`.
        index: Layers as written: numbers, `last` and `*`; empty where a site has no layers.
        normed: Whether `.normed` was written.
        reduce: `cls`, `mean` or empty.
    """

    text: str
    side: str
    teacher: str | None
    run: str
    site: str
    index: tuple[str, ...]
    normed: bool
    reduce: str

    def resolve(self, info: ModelInfo, method: str) -> frozenset[Capture]:
        """Return the tensors that the path refers to in a model.

        Raises:
            MethodError: A layer is out of range, or `.normed` is on a layer other than the last.
        """
        if self.site in ("logits", "pooled"):
            return frozenset([Capture(self.site)])
        if self.site == "embedding":
            return frozenset([Capture("hidden", 0, reduce=self.reduce)])
        layers = {layer for item in self.index for layer in self._layers(item, info, method)}
        if self.normed and layers != {info.layers}:
            raise MethodError(
                f"{method} reads {self.text}, but only the last hidden state passes through the "
                f"final norm. Write {self.side}.hidden[last].normed"
            )
        return frozenset(Capture(self.site, layer, self.normed, self.reduce) for layer in layers)

    def _layers(self, item: str, info: ModelInfo, method: str) -> range:
        """Return the layers that one item of the index refers to."""
        first = 0 if self.site == "hidden" else 1
        if item == "*":
            return range(first, info.layers + 1)
        layer = -1 if item == "last" else int(item)
        layer = layer + info.layers + 1 if layer < 0 else layer
        if not first <= layer <= info.layers:
            raise MethodError(
                f"{method} names {self.side}.{self.site}[{item}], but {info.described} has "
                f"{info.layers} layers ({self.site}[{first}] to {self.site}[{info.layers}]). "
                "Choose a layer in this range, or a deeper model"
            )
        return range(layer, layer + 1)


@dataclass(frozen=True)
class Reads:
    """The captures that a method requests of the student and of one teacher, by pass name.

    Attributes:
        student: Tensors of the student.
        teacher: Tensors of the teacher.
    """

    student: Mapping[str, frozenset[Capture]]
    teacher: Mapping[str, frozenset[Capture]]


def parse_path(text: str, method: str, sites: Sequence[str] = SITES) -> Path:
    """Parse a path.

    Args:
        text: The path.
        method: Name of the reader or writer, for errors.
        sites: The sites it may name.

    Raises:
        MethodError: The text is not a path; the message shows where.
    """
    match = GRAMMAR.match(text)
    if match is None:
        raise _syntax_error(text, 0, "it must start with `student.` or `teacher.`", method, sites)
    for group, problem in _problems(match, sites):
        raise _syntax_error(text, max(match.start(group), 0), problem, method, sites)
    if match.end() < len(text):
        extra = f"{text[match.end() :]!r} does not belong"
        raise _syntax_error(text, match.end(), extra, method, sites)
    return Path(
        text=text,
        side="student" if match["side"] == "student" else "teacher",
        teacher=match["name"],
        run=match["run"] or MAIN,
        site=match["site"],
        index=tuple(_items(match["index"])),
        normed=match["normed"] is not None,
        reduce=match["reduce"] or "",
    )


def resolve_paths(paths: Iterable[str], models: Models, method: str) -> Reads:
    """Return the tensors that paths refer to in the given models.

    Paths of a teacher with another name refer to nothing.

    Args:
        paths: Return value of the method's `reads`.
        models: Student and teacher.
        method: Name of the method, for errors.

    Raises:
        MethodError: A path is malformed, a layer is out of range, or there is no teacher.
    """
    student: dict[str, frozenset[Capture]] = defaultdict(frozenset)
    teacher: dict[str, frozenset[Capture]] = defaultdict(frozenset)
    for text in paths:
        path = parse_path(text, method)
        if path.side == "student":
            student[path.run] |= path.resolve(models.student, method)
        elif models.teacher is None:
            raise MethodError(f"{method} reads {text}, but the run has no teacher. Set `teacher`")
        elif path.teacher in (None, models.teacher.name):
            teacher[path.run] |= path.resolve(models.teacher, method)
    return Reads(dict(student), dict(teacher))


def check_teachers(paths: Iterable[str], teachers: Collection[str], method: str) -> None:
    """Reject paths of a nonexistent teacher, which would refer to nothing.

    Args:
        paths: Paths that a method reads, changes or borrows.
        teachers: Names of the teachers.
        method: Name of the method, for the error.

    Raises:
        MethodError: A path names another teacher.
    """
    for text in paths:
        match = GRAMMAR.match(text)
        name = match and match["name"]
        if name and teachers and name not in teachers:
            raise MethodError(
                f"{method} names {text}, but no teacher is called '{name}'."
                f"{suggest(name, teachers)} The teachers are {', '.join(teachers)}"
            )


def _items(index: str | None) -> list[str]:
    return [] if index is None else [item.strip() for item in index.split(",")]


def _problems(match: re.Match[str], sites: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Yield pairs of the faulty part of a path and the problem with it."""
    side, site = match["side"], match["site"]
    if side not in ("student", "teacher", "teachers"):
        hint = suggest(side, ("student", "teacher"))
        yield "side", f"{side!r} is neither `student` nor `teacher`.{hint}"
    if (side == "teachers") != (match["name"] is not None):
        yield "side", "one teacher among several is written `teachers[name]`"
    if site not in sites:
        yield "site", f"{site!r} is not a site.{suggest(site, sites)}"
    if site in LAYERED_SITES and match["index"] is None:
        yield "site", f"{site!r} needs a layer, such as {site}[last]"
    if site not in LAYERED_SITES and match["index"] is not None:
        yield "index", f"{site!r} has no layers"
    for item in _items(match["index"]):
        if not INDEX.fullmatch(item):
            yield "index", f"{item!r} is not a layer: write a number, `last` or `*`"
    if match["normed"] and site != "hidden":
        yield "normed", "`.normed` exists only for hidden[last]"
    if match["reduce"] and match["reduce"] not in REDUCERS:
        yield "reduce", f"{match['reduce']!r} is not a reducer: write `cls` or `mean`"
    if match["reduce"] and site not in REDUCIBLE_SITES:
        yield "reduce", f"{site!r} has no positions to reduce over"


def _syntax_error(
    text: str, position: int, problem: str, method: str, sites: Sequence[str]
) -> MethodError:
    names = [f"{site}[l]" if site in LAYERED_SITES else site for site in sites]
    return MethodError(
        f"{method} names {text!r}, which is not a path: {problem}\n"
        f"    {text}\n    {' ' * position}^\n"
        f"The sites are {', '.join(names[:-1])} and {names[-1]}, each after `student.` or "
        "`teacher.`"
    )
