"""The content of saved models, by hashes of their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gkd_core import digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WEIGHTS = ".safetensors"
CONTENT = (f"*{WEIGHTS}", "*.json", "*.txt", "*.model", "*.py")
"""Files of a saved model that are hashed."""


@dataclass(frozen=True)
class FileContent:
    """The content of a file.

    Attributes:
        size: Number of bytes.
        sha256: Their hash.
        changed: When the file was last changed, in nanoseconds.
    """

    size: int
    sha256: str
    changed: int

    def __str__(self) -> str:
        return f"{self.size:,} bytes, SHA-256 {self.sha256[: digest.SHORT]}"


@dataclass(frozen=True)
class KnownModels:
    """The facts that were found when models were read.

    Attributes:
        files: The content of their files, by path.
        digests: What `model_digest` returns for a model, by a hash of the content of its files.
    """

    files: Mapping[str, FileContent] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


class ModelContents:
    """Reads saved models; a file of known size and time of change is not read again.

    Args:
        known: What was found when they were read before.
    """

    def __init__(self, known: Iterable[KnownModels] = ()) -> None:
        self._files: dict[str, FileContent] = {}
        self._digests: dict[str, str] = {}
        for before in known:
            self._files |= before.files
            self._digests |= before.digests

    @property
    def known(self) -> KnownModels:
        """The facts found so far."""
        return KnownModels(self._files, self._digests)

    def files(self, directory: Path, weights: bool = True) -> dict[str, FileContent]:
        """Return the content of the files of a saved model, by name.

        Args:
            directory: The model.
            weights: Whether its weights count.
        """
        paths = [p for p in _model_files(directory) if weights or p.suffix != WEIGHTS]
        found = read_files(paths, self._files)
        self._files |= {str(path): content for path, content in found.items()}
        return {path.name: content for path, content in found.items()}

    def digest(self, directory: Path) -> str:
        """Return a hash of the weights, configuration and tokenizer of a saved model."""
        hashes = {name: content.sha256 for name, content in self.files(directory).items()}
        content = digest.of_value(hashes)
        if content not in self._digests:
            self._digests[content] = model_digest(directory)
        return self._digests[content]


def model_digest(directory: Path) -> str:
    """Return a hash of the weights, configuration and tokenizer of a saved model."""
    return digest.of_files(_model_files(directory))


def stated(config: PretrainedConfig) -> dict[str, Any]:
    """Return what a configuration says of a model, and not of where and by whom it was written."""
    content: dict[str, Any] = config.to_dict()
    content.pop("transformers_version", None)
    return {name: value for name, value in content.items() if not name.startswith("_")}


def loaded_digest(model: PreTrainedModel) -> str:
    """Return a hash of the configuration, weights and buffers of a model as it is loaded."""
    tensors = sorted((*model.named_parameters(), *model.named_buffers()), key=itemgetter(0))
    parts = (part for name, tensor in tensors for part in _bytes(name, tensor))
    return digest.of_bytes(chain([digest.of_value(stated(model.config)).encode()], parts))


def _bytes(name: str, tensor: Tensor) -> Iterator[bytes]:
    yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
    yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read_files(
    paths: Iterable[Path], known: Mapping[str, FileContent] = MappingProxyType({})
) -> dict[Path, FileContent]:
    """Return the content of files, sorted by path, reading those that are not as they are known.

    Args:
        paths: The files.
        known: Their content at an earlier time, by path.
    """
    status = {path: path.stat() for path in sorted(paths)}
    unread = {
        path
        for path, now in status.items()
        if (before := known.get(str(path))) is None
        or (before.size, before.changed) != (now.st_size, now.st_ctime_ns)
    }
    hashes = digest.of_each_file(unread)
    return {
        path: FileContent(now.st_size, hashes[path], now.st_ctime_ns)
        if path in unread
        else known[str(path)]
        for path, now in status.items()
    }


def _model_files(directory: Path) -> set[Path]:
    place = directory.resolve()
    return {path for pattern in CONTENT for path in place.glob(pattern)}
