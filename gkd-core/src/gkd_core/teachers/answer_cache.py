"""`AnswerCache`: a teacher's answers in a directory, found by the token ids they are about.

`manifest.json` says what they are of and, once all are written, names the shards: several processes
may write them. Every file is written under another name, flushed and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gkd_core import digest
from gkd_core.atomic import create_file, write_file
from gkd_core.errors import ConfigError, DataError
from gkd_core.lease import holder
from gkd_core.strict_json import json_text
from gkd_core.teachers.answer_form import (
    AnswerForm,
    Columns,
    FormName,
    HiddenStates,
    LikeliestWords,
    RowLogits,
    StoredType,
    Unit,
)
from gkd_core.teachers.answer_shard import (
    KEY_BYTES,
    AnswerShard,
    WrittenShard,
    is_whole,
    shard_files,
    shard_name,
)
from gkd_core.teachers.captured_states import CapturedStates

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch

MANIFEST, HEADS = "manifest.json", "head-*.safetensors"
FORMAT = 4
DIGEST = "digest"
"""The key of a manifest's digest of its other keys."""

SCORED = "scored"

NOT_THOSE = (
    "rows, task.max_length, task.packing or what is learned of a row are not those it was written "
    "for. Write another with gkd cache"
)
"""Why a cache may lack a text, and what to do."""

AGAIN = "Write it again, into another folder, with the gkd cache command that made it"
"""What to do if a manifest does not tell what its cache is about."""


@dataclass(frozen=True)
class Document:
    """A text in a batch: a row, or one of those that are packed into it.

    Attributes:
        row: Row of the batch.
        tokens: Its positions there.
        key: Hash of its token ids, and of which of them are scored if answers are about these only.
        places: The positions that answers are about, int64 `[T]`.
    """

    row: int
    tokens: slice
    key: bytes
    places: Tensor

    def values(self, column: Tensor, unit: Unit) -> Tensor:
        """Return the values of the document in a column of the batch.

        Args:
            column: `[B, ...]`, `[B, S, ...]` or `[B, S, S, ...]`.
            unit: What each value is about.

        Returns:
            `[1, ...]`, `[T, ...]` or `[T * T, ...]`.
        """
        if unit == "row":
            return column[self.row, None]
        if unit == "token":
            return column[self.row, self.places]
        return column[self.row, self.tokens, self.tokens].flatten(0, 1)


def documents(batch: Batch, scored: bool = False) -> Iterator[Document]:
    """Yield the documents of a batch, row by row.

    Args:
        batch: The batch.
        scored: Whether answers are about the tokens of `batch.targets` only.
    """
    mask = batch.mask.cpu().numpy()
    inputs = {name: value.cpu().numpy() for name, value in batch.inputs.items()}
    if scored:
        inputs[SCORED] = batch.targets.mask.cpu().numpy()
    positions = inputs.get("position_ids")
    for row, own in enumerate(mask):
        tokens = np.flatnonzero(own)
        starts = [0] if positions is None else np.flatnonzero(positions[row, tokens] == 0).tolist()
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            part = slice(int(tokens[start]), int(tokens[end - 1]) + 1)
            places = np.flatnonzero(inputs[SCORED][row, part]) if scored else np.arange(end - start)
            yield Document(
                row, part, _key(inputs, row, part), torch.from_numpy(places + part.start)
            )


def _key(inputs: Mapping[str, np.ndarray[Any, Any]], row: int, tokens: slice) -> bytes:
    made = hashlib.blake2b(digest_size=KEY_BYTES)
    for name in ("input_ids", "token_type_ids", SCORED):
        if name in inputs:
            made.update(inputs[name][row, tokens].astype("<i4").tobytes())
    return made.digest()


def of_batch(
    texts: Sequence[Document], found: Sequence[Columns], form: AnswerForm, shape: torch.Size
) -> dict[str, Tensor]:
    """Return the answers about the documents of a batch, each at its place.

    Args:
        texts: The documents.
        found: The answers about each: `[1, ...]`, `[T, ...]` or `[T * T, ...]`.
        form: Their form.
        shape: Rows and positions of the batch.

    Returns:
        `[B, ...]`, `[B, S, ...]` with zeros or `[B, S, S, ...]` with -inf where there is none.
    """
    return {
        name: _placed(texts, [own[name] for own in found], form.unit_of(name), shape)
        for name in found[0]
    }


def _placed(
    texts: Sequence[Document], found: Sequence[Tensor], unit: Unit, shape: torch.Size
) -> Tensor:
    if unit == "row":
        return torch.cat(list(found))
    of_value = found[0].shape[1:]
    if unit == "token":
        made = found[0].new_zeros(*shape, *of_value)
        for document, own in zip(texts, found, strict=True):
            made[document.row, document.places] = own
        return made
    made = found[0].new_full((*shape, shape[1], *of_value), -torch.inf)
    for document, own in zip(texts, found, strict=True):
        place = made[document.row, document.tokens, document.tokens]
        place.copy_(own.view(place.shape))
    return made


@dataclass(frozen=True)
class Belongs:
    """The subject of a cache; the cache serves no run in which any of this differs.

    Attributes:
        weights: Hash of the teacher's weights; empty if they are not at hand.
        config: Hash of its `config.json`; empty for one of the hub, whose weights have a commit.
        tokenizer: Hash of the tokenizer of the rows it reads.
        template: Hash of the chat template.
        kind: The kind of task.
        vocabulary: Width of its logits.
    """

    weights: str
    config: str
    tokenizer: str
    template: str
    kind: str
    vocabulary: int

    def differences(self, other: Belongs) -> list[str]:
        """Return the differences from another one, with both values, except unknown weights."""
        mine, theirs = asdict(self), asdict(other)
        known = {name for name in mine if name != "weights" or (mine[name] and theirs[name])}
        return [
            f"{name}: {mine[name]} in the cache, {theirs[name]} here"
            for name in mine
            if name in known and mine[name] != theirs[name]
        ]


@dataclass(frozen=True)
class CacheManifest:
    """The contents of a cache.

    Attributes:
        belongs: What it is about.
        form: `hidden`: what the head gets at each token, and the head; `logits`: those of each row;
            `top-k`: the likeliest words at each scored token, and the mass of all others;
            `states`: tensors that methods read.
        dtype: Data type of the values.
        precision: Precision of the computation.
        rows: Hash of the rows that it is computed for.
        shards: Number of shards.
        parts: The shards in their order; none before all are written.
        format: Version of the format.
        captures: Names of the tensors of `states` besides the logits; None in other forms.
        of_logits: The form of the logits among `states`; None if there are none.
        k: Number of likeliest words; None in other forms.
        temperature: What their logits were divided by; None in other forms.
        shard_bytes: Most bytes of the answers in a shard; None if only rows are counted.
        learned: Hash of which tokens are learned; None in forms that are about all tokens.
        head: The file of the head; None before all shards are written, and in forms without one.
    """

    belongs: Belongs
    form: FormName
    dtype: StoredType
    precision: str
    rows: str
    shards: int
    parts: tuple[WrittenShard, ...] = ()
    format: int = FORMAT
    captures: tuple[str, ...] | None = None
    of_logits: FormName | None = None
    k: int | None = None
    temperature: float | None = None
    shard_bytes: int | None = None
    learned: str | None = None
    head: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether all shards are written, and named."""
        return len(self.parts) == self.shards

    @property
    def origin(self) -> str:
        """Hash of all that the cache is about, which the names of its files have."""
        return digest.of_value(asdict(replace(self, parts=(), head=None)))

    @property
    def answers(self) -> AnswerForm:
        """The form of the answers."""
        if self.form == "hidden":
            return HiddenStates(self.dtype)
        if self.form == "logits":
            return RowLogits(self.dtype)
        if self.form == "states":
            assert self.captures is not None, "states have names"
            logits = None if self.of_logits is None else replace(self, form=self.of_logits).answers
            return CapturedStates(self.dtype, self.captures, logits)
        assert self.k is not None, "top-k has words"
        assert self.temperature is not None, "top-k has a temperature"
        return LikeliestWords(self.dtype, self.k, self.temperature, self.belongs.vocabulary)

    def save(self, folder: Path) -> None:
        """Write the manifest."""
        write_file(folder / MANIFEST, self._text())

    def begin(self, folder: Path) -> bool:
        """Write the manifest unless there is one; return whether it was written."""
        return create_file(folder / MANIFEST, self._text())

    @classmethod
    def load(cls, folder: Path, setting: str) -> CacheManifest:
        """Read the manifest of a cache.

        Args:
            folder: The cache.
            setting: What names it, for errors.

        Raises:
            ConfigError: There is none, it cannot be read, or it is not as it was written.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text())
            found = content.get("format") if isinstance(content, dict) else None
            if found != FORMAT:
                raise ValueError(f"its format is {found}, not {FORMAT}")
            own = content.pop(DIGEST, None)
            if own != digest.of_value(content):
                raise ValueError("it has changed since it was written")
            content["belongs"] = Belongs(**content["belongs"])
            content["parts"] = tuple(WrittenShard(**part) for part in content["parts"])
            return _CONTENT.validate_python(asdict(cls(**content)))
        except FileNotFoundError:
            raise ConfigError(
                f"{setting}: {folder} holds no answers of a teacher (there is no {MANIFEST}). "
                f"Name the folder that does, or write them with: gkd cache --output {folder}"
            ) from None
        except OSError as error:
            raise ConfigError(f"{setting}: {path} cannot be read: {error}") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(f"{setting}: {path} cannot be read: {error}. {AGAIN}") from error

    def _text(self) -> str:
        content = json.loads(json_text(asdict(self)))  # as it is read again
        return json_text({**content, DIGEST: digest.of_value(content)}, indent=1)


_CONTENT = TypeAdapter(CacheManifest)
"""Says what is wrong with a manifest that somebody has changed."""


@dataclass(frozen=True)
class CacheProgress:
    """The progress of a cache.

    Attributes:
        folder: The cache.
        shards: Number of its shards.
        left: The numbers of those that are not there.
        held: How many of these processes are writing.
    """

    folder: Path
    shards: int
    left: frozenset[int]
    held: int

    @classmethod
    def of(cls, folder: Path, shards: int) -> CacheProgress:
        """Return the current progress of a cache with so many shards."""
        left = frozenset(range(shards)) - shard_files(folder).keys()
        held = sum(holder(folder / shard_name(number)) is not None for number in left)
        return cls(folder, shards, left, held)

    def __str__(self) -> str:
        there = self.shards - len(self.left)
        said = [f"{self.folder}: {there} of {self.shards} shards are there"]
        said += [f"{self.held} being written"] if self.held else []
        said += [f"{len(self.left) - self.held} left"] if self.left else []
        return ", ".join(said)


@dataclass
class AnswerCache:
    """Reads the answers of a finished cache.

    Attributes:
        folder: The cache.
        manifest: Its manifest.
    """

    folder: Path
    manifest: CacheManifest

    @cached_property
    def shards(self) -> list[AnswerShard]:
        """The shards."""
        return [self._load(part) for part in self.manifest.parts]

    @cached_property
    def head(self) -> dict[str, Tensor]:
        """The weight and, if there is one, the bias of the teacher's head."""
        assert self.manifest.head is not None, "the form has a head"
        path = self.folder / self.manifest.head
        with _naming(path):
            if not is_whole(path):
                raise ValueError("it is missing, or not as it was written")
            tensors: dict[str, Tensor] = load_file(path)
        return tensors

    def check_files(self) -> None:
        """Open all files, which are otherwise opened when the first answer is read.

        Raises:
            DataError: One is missing, or is not as it was written.
        """
        _ = self.shards
        if self.manifest.head is not None:
            _ = self.head

    def find(self, document: Document) -> Columns:
        """Return the values of a document, as stored: `[1, ...]`, `[T, ...]` or `[T * T, ...]`.

        Raises:
            DataError: The cache does not have it, or not as it was written.
        """
        found = self._place(document)
        if found is not None:
            shard, place = found
            with _naming(self.folder / self.manifest.parts[shard].name):
                return self.shards[shard].document(place)
        length = document.tokens.stop - document.tokens.start
        raise DataError(
            f"{self.folder} has no answer about a text of {length} tokens in the training rows: "
            f"{NOT_THOSE}"
        )

    def has(self, document: Document) -> bool:
        """Return whether there are values of a document."""
        return self._place(document) is not None

    def _place(self, document: Document) -> tuple[int, int] | None:
        """Return the shard of a document and its place there; None if there is none."""
        keys, shards, places = self._index
        own = np.frombuffer(document.key, "<u8")
        for at in range(int(np.searchsorted(keys[:, 0], own[0])), len(keys)):
            if keys[at, 0] != own[0]:
                break
            if keys[at, 1] == own[1]:
                return int(shards[at]), int(places[at])
        return None

    @cached_property
    def _index(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The keys as two numbers each, in ascending order, with their shard and place there."""
        keys = np.concatenate([shard.keys.numpy().view("<u8") for shard in self.shards])
        shards = np.repeat(np.arange(len(self.shards)), [len(s.keys) for s in self.shards])
        places = np.concatenate([np.arange(len(shard.keys)) for shard in self.shards])
        order = np.argsort(keys[:, 0], kind="stable")
        return keys[order], shards[order], places[order]

    def _load(self, part: WrittenShard) -> AnswerShard:
        path = self.folder / part.name
        with _naming(path):
            shard = AnswerShard.load(path)
            if WrittenShard.read(path) != part:
                raise ValueError(f"it is not the one that {MANIFEST} is about")
        return shard


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name a file of a cache that is damaged, and what to do."""
    try:
        yield
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Write it again with the gkd cache command that "
            "made it"
        ) from error
