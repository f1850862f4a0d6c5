"""Weights that are not finite, which are named before anything is trained with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from gkd_core.errors import ConfigError


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor contains neither nan nor inf, in one pass and without a copy."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    return all(bool(bound.isfinite()) for bound in wide.aminmax())


def not_finite(named: str, file: Path, name: str, tensor: Tensor) -> ConfigError:
    """Return the error for a stored weight that is not finite.

    Args:
        named: The setting that names the model, and its value.
        file: The file.
        name: The name of the weight in it.
        tensor: The weight, or a part of it.
    """
    wide = tensor.float()
    kinds = {"nan": wide.isnan(), "inf": wide.isposinf(), "-inf": wide.isneginf()}
    counts = [f"{int(where.sum()):,} {kind}" for kind, where in kinds.items() if where.any()]
    return ConfigError(
        f"{named}: {name} in {file.name} contains {' and '.join(counts)} among {wide.numel():,} "
        "values, so that nothing can be learned from it. The training or the conversion that wrote "
        "the file went wrong: name another checkpoint"
    )


def check_stored_values(named: str, place: str) -> None:
    """Reject a checkpoint with a weight that is not finite; a hub id that is not here passes.

    Args:
        named: The setting that names the model, and its value.
        place: Directory or hub id of the model.

    Raises:
        ConfigError: A weight is not finite.
    """
    for file, name, tensor in _stored(place):
        if not is_finite(tensor):
            raise not_finite(named, file, name, tensor)


def refuse_weight(named: str, place: str, weight: str) -> NoReturn:
    """Raise the error for a loaded weight that is not finite, with its file and its name there.

    Args:
        named: The setting that names the model, and its value.
        place: Directory or hub id of the model.
        weight: The name that the model has for the weight.

    Raises:
        ConfigError: Always.
    """
    check_stored_values(named, place)
    raise ConfigError(
        f"{named}: the weight {weight} is finite in its file, but not when read as fp32. Name "
        "another checkpoint"
    )


def _stored(place: str) -> Iterator[tuple[Path, str, Tensor]]:
    """Yield the weights of a checkpoint that is on this machine, with their files."""
    directory = Path(place)
    if not directory.is_dir():
        try:
            directory = Path(snapshot_download(place, local_files_only=True))
        except LocalEntryNotFoundError:
            return
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield path, name, file.get_tensor(name)
