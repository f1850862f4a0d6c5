"""Loading of this rank's shards of a checkpoint, and no more, from safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import Parameter

from gkd_core.distributed.shards import ShardSpec, Sliceable, sharding_of, weights_of
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.conversion import Shape, StoredWeight, find_weights
from gkd_core.models.finite import is_finite, not_finite
from gkd_core.models.load import check_safetensors, in_body
from gkd_core.models.meta import meta_model
from gkd_core.models.source import locate, unreadable
from gkd_core.parallel.sharding import mark_parameters, shard_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PATTERNS = ["model*.safetensors", INDEX]


class ShardReader:
    """Checkpoint reader for `load_teacher` and `load_model`: pass it as `read`.

    The model is built without weights, divided, and filled from slices of the files. Besides its
    shards, a process holds at most one whole weight in memory at a time, and the tensors it is made
    of. Weights missing from the checkpoint are drawn whole, as transformers draws them, and then
    divided.

    Args:
        group: The tensor group the model is divided over; every rank reads.
        device: Device of the weights.
        dtype: Type of the weights.
    """

    def __init__(
        self, group: ProcessGroup, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.group = group
        self.device = device
        self.dtype = dtype

    def __call__(
        self,
        model: str,
        kind: TaskKind,
        config: PretrainedConfig,
        trust_remote_code: bool,
        origin: str,
    ) -> tuple[PreTrainedModel, list[str], list[str]]:
        """Return the model, the weights missing from the checkpoint, and those of another shape.

        If a part of the body is missing, the model is returned without weights.

        Args:
            model: Directory or hub id.
            kind: The kind of task.
            config: The model's configuration.
            trust_remote_code: Whether to run code that comes with the checkpoint.
            origin: Setting that named the model.

        Raises:
            ConfigError: The files cannot be read, a weight is not finite, or the model cannot be
                divided.
        """
        place = locate(model, origin)
        check_safetensors(place, kind.auto.__name__, origin)
        built = meta_model(kind, config, trust_remote_code, self.dtype)
        try:
            checkpoint = _Checkpoint(_directory(place), f"{origin} = {model!r}")
            found, missing, misfit = _match(built, checkpoint)
            if not any(in_body(built, name) for name in missing + misfit):
                _draw(built, missing + misfit)
                shard_model(built, self.group)
                self._fill(built, checkpoint, found)
        except (OSError, SafetensorError, HfHubHTTPError, JSONDecodeError) as error:
            raise unreadable(model, origin, error) from error
        return built, sorted(missing), sorted(misfit)

    def _fill(
        self, model: PreTrainedModel, checkpoint: _Checkpoint, found: Mapping[str, StoredWeight]
    ) -> None:
        """Put every weight on the device: those found are read, those drawn are moved."""
        sharding = sharding_of(model)
        splits = {} if sharding is None else sharding.splits
        for names, weight in weights_of(model):
            name = names[0]
            if name in found:
                shard = torch.zeros_like(weight, device=self.device)
                checkpoint.read(found[name], splits.get(name), self.group.rank(), shard)
            else:
                shard = weight.detach().to(self.device)
            _put(model, names, Parameter(shard) if isinstance(weight, Parameter) else shard)
        for name, buffer in list(model.named_buffers()):
            _put(model, [name], buffer.to(self.device))
        if sharding is not None:
            mark_parameters(model)


class StoredWeights(Mapping[str, Tensor]):
    """The weights of a checkpoint by their names in the model, each read on access.

    Args:
        model: The model, which needs no weights.
        place: Directory or hub id of the checkpoint.
        origin: Setting that named it.
    """

    def __init__(self, model: PreTrainedModel, place: str, origin: str) -> None:
        self._checkpoint = _Checkpoint(_directory(place), f"{origin} = {place!r}")
        found, _, _ = _match(model, self._checkpoint)
        self._stored = {
            name: found[names[0]]
            for names, _ in weights_of(model)
            for name in names
            if names[0] in found
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read(self._checkpoint.whole)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class _Checkpoint:
    """The safetensors files of a directory, opened for one tensor at a time.

    The pages of a memory-mapped file stay in memory once read; closing the file releases them.

    Args:
        directory: The directory.
        named: The setting that names the model, and its value, for errors.
    """

    def __init__(self, directory: Path, named: str) -> None:
        self._named = named
        index = directory / INDEX
        if index.is_file():
            names = json.loads(index.read_text())["weight_map"].values()
            files = sorted({directory / name for name in names})
        else:
            files = [directory / WEIGHTS]
        self.shapes: dict[str, Shape] = {}
        self._files: dict[str, Path] = {}
        for path in files:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())
                    self._files[name] = path

    def whole(self, name: str) -> Tensor:
        """Return a tensor as stored."""
        with safe_open(self._files[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        self._check(name, tensor)
        return tensor

    @torch.no_grad()
    def read(self, weight: StoredWeight, split: ShardSpec | None, rank: int, shard: Tensor) -> None:
        """Copy a rank's share of a weight into its shard, or all of it if it is not divided."""
        if weight.conversion is not None:
            _copy_share(weight.read(self.whole), split, rank, shard)
            return
        with safe_open(self._files[weight.tensor], "pt") as file:
            _copy_share(file.get_slice(weight.tensor), split, rank, shard)
        self._check(weight.tensor, shard)

    def _check(self, name: str, read: Tensor) -> None:
        """Reject a tensor, or a part of one, that is not finite."""
        if not is_finite(read):
            raise not_finite(self._named, self._files[name], name, read)


def _directory(place: str) -> Path:
    """Return the directory of a checkpoint, downloading it if given a hub id."""
    path = Path(place)
    return path if path.is_dir() else Path(snapshot_download(place, allow_patterns=PATTERNS))


def _copy_share(whole: Sliceable, split: ShardSpec | None, rank: int, shard: Tensor) -> None:
    """Copy a rank's share of a weight into its shard, or all of it if it is not divided."""
    if split is None:
        shard.copy_(whole[...])
    else:
        split.read(whole, rank, shard)


def _match(
    model: PreTrainedModel, checkpoint: _Checkpoint
) -> tuple[dict[str, StoredWeight], list[str], list[str]]:
    """Return the stored weights, the missing ones and those of another shape, by first name."""
    found, missing, misfit = {}, [], []
    known = find_weights(model, checkpoint.shapes)
    for names, weight in weights_of(model):
        stored = next((known[name] for name in names if name in known), None)
        if stored is None:
            missing.append(names[0])
        elif stored.shape != tuple(weight.shape):
            misfit.append(names[0])
        else:
            found[names[0]] = stored
    return found, missing, misfit


def _draw(model: PreTrainedModel, missing: Sequence[str]) -> None:
    """Draw missing weights and compute non-persistent buffers, as transformers does."""
    stored = set()
    for names, weight in weights_of(model):
        stored.update(names)
        if names[0] in missing:
            real = torch.empty_like(weight, device="cpu")
            _put(model, names, Parameter(real) if isinstance(weight, Parameter) else real)
        else:
            # Marks weights that `initialize_weights` must not draw: they are read later.
            weight._is_hf_initialized = True  # type: ignore[attr-defined]
    for name, buffer in list(model.named_buffers()):
        if name not in stored:
            _put(model, [name], torch.empty_like(buffer, device="cpu"))
    model.initialize_weights()


def _put(model: nn.Module, names: Sequence[str], weight: Tensor) -> None:
    """Assign a tensor to the given weight names."""
    for name in names:
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, weight)
