"""Checks of a checkpoint by the names of its weights, before any of them is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel

from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.conversion import name_tensors
from gkd_core.models.load import check_safetensors, no_trained_head
from gkd_core.models.meta import shape_model
from gkd_core.models.source import locate, unreadable


def check_stored(model: str, kind: TaskKind, origin: str) -> None:
    """Reject a directory whose weights are missing, damaged or a pickle; a hub id passes.

    Args:
        model: Directory or hub id.
        kind: The kind of task.
        origin: Setting that named the model.

    Raises:
        ConfigError: It has no readable weights.
    """
    place = locate(model, origin)
    check_safetensors(place, kind, origin)
    _stored_names(Path(place), origin)


def check_trained_head(model: str, config: PretrainedConfig, kind: TaskKind, origin: str) -> None:
    """Reject a teacher whose weights lack the head of its task; a hub id passes.

    Args:
        model: Directory or hub id, with readable weights.
        config: Its Hugging Face configuration.
        kind: The kind of task.
        origin: Setting that named the model.

    Raises:
        ConfigError: No weight of the head is there.
    """
    directory = Path(locate(model, origin))
    if not directory.is_dir() or type(config) not in kind.configs:
        return
    shape = shape_model(kind, config, trust_remote_code=False)
    heads = _heads(shape, (name for name, _ in shape.named_parameters()))
    stored = name_tensors(shape, _stored_names(directory, origin))
    if heads and not heads & _heads(shape, (tensor.weight for tensor in stored)):
        raise no_trained_head(model, kind, origin, sorted(heads))


def _heads(model: PreTrainedModel, weights: Iterable[str]) -> set[str]:
    """Return the modules beside the body that have weights of their own (tied ones have none)."""
    return {name.partition(".")[0] for name in weights} - {model.base_model_prefix}


def _stored_names(directory: Path, origin: str) -> list[str]:
    names: list[str] = []
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                names += file.keys()
        except (OSError, SafetensorError) as error:
            raise unreadable(str(directory), origin, error) from error
    return names
