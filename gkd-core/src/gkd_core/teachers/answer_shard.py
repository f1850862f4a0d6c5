"""`AnswerShard`: answers about some documents, in a file.

It is a safetensors file with keys of documents `[N, 16]`, starts `[N + 1]`, checksums `[N + 1]` and
columns of values: `[N, ...]`, `[T, ...]` for T tokens, or `[P, ...]` for P pairs of tokens of one
document. Its name ends with a hash of its content. The hash is for those who write; who reads a few
documents of a large cache compares their checksums.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from gkd_core import digest
from gkd_core.atomic import write_file
from gkd_core.strict_json import json_text
from gkd_core.teachers.answer_form import Columns, Fidelity

KEY_BYTES = 16
KEYS, STARTS, CHECKSUMS = "keys", "starts", "checksums"

FIDELITY = "fidelity"
"""The entry of the metadata of a file that says how near its values are to what was computed."""


@dataclass(frozen=True)
class AnswerShard:
    """Answers about some documents.

    Attributes:
        keys: Their keys, uint8 `[N, 16]`.
        starts: Index of the first value of each and the end of the last, int64 `[N + 1]`.
        columns: The values: `[T, ...]` each, `[N, ...]` where there is one for each document,
            `[P, ...]` where there is one for each pair of tokens of a document.
        checksums: Of the values of each document and, at the end, of all that is not a value, int64
            `[N + 1]`.
    """

    keys: Tensor
    starts: Tensor
    columns: Columns
    checksums: Tensor

    @classmethod
    def of(
        cls, keys: Sequence[bytes], lengths: Sequence[int], answers: Sequence[Columns]
    ) -> AnswerShard:
        """Return a shard of documents with their lengths and values."""
        columns = {name: torch.cat([own[name] for own in answers]) for name in answers[0]}
        made = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        index = torch.from_numpy(made.copy()), torch.tensor([0, *lengths]).cumsum(0)
        checksums = torch.tensor(list(map(_checksum, answers)))
        whole = torch.tensor([_checksum_of([*index, checksums])])
        return cls(*index, columns, torch.cat([checksums, whole]))

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.starts[-1])

    def save(self, folder: Path, name: str, fidelity: Fidelity | None = None) -> Path:
        """Write the shard under a name that ends with a hash of its content.

        Args:
            folder: Where.
            name: What the name begins with.
            fidelity: How near its values are to what was computed.
        """
        columns = {name: own.contiguous() for name, own in self.columns.items()}
        about = None if fidelity is None else {FIDELITY: json_text(asdict(fidelity))}
        index = {KEYS: self.keys, STARTS: self.starts, CHECKSUMS: self.checksums}
        content = save({**index, **columns}, about)
        path = folder / f"{name}-{digest.of_bytes([content])}.safetensors"
        write_file(path, content)
        return path

    @classmethod
    def load(cls, path: Path) -> AnswerShard:
        """Return a shard, mapped into memory.

        Raises:
            OSError: It cannot be read.
            SafetensorError: It is no such file.
            KeyError: A tensor is missing.
            ValueError: What is not a value is not as it was written.
        """
        tensors = load_file(path)
        keys, starts, checksums = (tensors.pop(name) for name in (KEYS, STARTS, CHECKSUMS))
        if _checksum_of([keys, starts, checksums[:-1]]) != int(checksums[-1]):
            raise ValueError("its index is not as it was written")
        return cls(keys, starts, tensors, checksums)

    def document(self, place: int) -> Columns:
        """Return the values of a document.

        Raises:
            ValueError: They are not as they were written.
        """
        columns = self._values(place)
        if _checksum(columns) != int(self.checksums[place]):
            raise ValueError(f"the answer about its text {place + 1:,} is not as it was written")
        return columns

    def _values(self, place: int) -> Columns:
        # Where counts are equal, so are the slices, or there are no columns of one of them.
        by_count = {
            int(starts[-1]): slice(int(starts[place]), int(starts[place + 1]))
            for starts in (torch.arange(len(self.starts)), self.starts, self._pair_starts)
        }
        return {name: values[by_count[len(values)]] for name, values in self.columns.items()}

    @cached_property
    def _pair_starts(self) -> Tensor:
        """Index of the first pair of each document and the end of the last, int64 `[N + 1]`."""
        pairs = self.starts.diff().square().cumsum(0)
        return torch.cat([pairs.new_zeros(1), pairs])


@dataclass(frozen=True)
class WrittenShard:
    """A shard that is written.

    Attributes:
        name: Its file.
        documents: Number of documents.
        values: Number of values, one for each token or row.
        checksum: Of all that is not a value, the checksums of the values among it.
        divergence: Mean KL in nats from what was computed to what is stored, over some values.
        tail: Mean probability of the words that are not stored, over the same.
        error: Largest share that is lost of a tensor, over the same.
    """

    name: str
    documents: int
    values: int
    checksum: int
    divergence: float
    tail: float = 0.0
    error: float = 0.0

    @classmethod
    def read(cls, path: Path) -> WrittenShard:
        """Return the metadata of a file; its values are not read.

        Raises:
            OSError: It cannot be read.
            SafetensorError: It is damaged.
        """
        with safe_open(path, "pt") as file:
            fidelity = Fidelity(**json.loads(file.metadata()[FIDELITY]))
            documents = file.get_slice(KEYS).get_shape()[0]
            values, checksum = (int(file.get_slice(own)[documents]) for own in (STARTS, CHECKSUMS))
        return cls(path.name, documents, values, checksum, **asdict(fidelity))


def _checksum(columns: Columns) -> int:
    """Return the checksum of a document's values and of their names."""
    names = ",".join(sorted(columns)).encode()
    return _checksum_of((columns[name] for name in sorted(columns)), zlib.crc32(names))


def _checksum_of(tensors: Iterable[Tensor], found: int = 0) -> int:
    """Return the checksum of the bytes of tensors, going on from another one."""
    for tensor in tensors:
        found = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, found)
    return found


def shard_name(number: int) -> str:
    """Return the prefix of the name of a shard's file."""
    return f"shard-{number:06d}"


def shard_files(folder: Path) -> dict[int, Path]:
    """Return the files of the shards in a folder by their numbers, in ascending order."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("shard-*.safetensors")):
        found.setdefault(int(path.stem.split("-")[1]), path)
    return found


def is_whole(path: Path) -> bool:
    """Return whether a file whose name has the hash of its content is as it was written."""
    return path.exists() and path.stem.endswith(f"-{digest.of_each_file([path])[path]}")
