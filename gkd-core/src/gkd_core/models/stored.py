"""Checks of a checkpoint by the names of its weights, before any of them is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel

from gkd_core.errors import ConfigError
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.conversion import name_tensors
from gkd_core.models.load import check_safetensors, no_trained_head
from gkd_core.models.meta import shape_model
from gkd_core.models.source import locate, unreadable

WRAPPERS = {
    "module": "DistributedDataParallel or DeepSpeed",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "base_model": "peft",
}
"""The wrappers of a model, by the prefix that they give to its weights."""


NUMBER = re.compile(r"\.\d+(?=\.)")

INTEGERS = ("I", "U")
"""Prefixes of the names of integer types in a safetensors file."""


def check_stored(model: str, config: PretrainedConfig, kind: TaskKind, origin: str) -> None:
    """Reject a directory whose weights cannot be those of the model; a hub id passes.

    Args:
        model: Directory or hub id.
        config: Its Hugging Face configuration.
        kind: The kind of task.
        origin: Setting that named the model.

    Raises:
        ConfigError: The weights are missing, damaged, a pickle, or were saved from a wrapper.
    """
    place = locate(model, origin)
    check_safetensors(place, kind.auto.__name__, origin)
    names = _stored_names(Path(place), origin)
    if any(".lora_" in name for name in names):
        raise ConfigError(
            f"{origin} = {model!r} holds the weights of an adapter ('{names[0]}', ...), which was "
            "not merged. Merge it (peft's `merge_and_unload`), and save the model again"
        )
    known = kind.configs.get(type(config), None)
    wrapper = _wrapper(names, "" if known is None else known.base_model_prefix)
    if wrapper is not None:
        raise ConfigError(
            f"{origin} = {model!r} was saved from {WRAPPERS.get(wrapper, 'a wrapper')}: the names "
            f"of its weights begin with '{wrapper}.' ('{names[0]}', ...). Save the model inside "
            f"the wrapper, or remove '{wrapper}.' from the names"
        )


def check_stored_weights(model: str, config: PretrainedConfig, kind: TaskKind, origin: str) -> None:
    """Reject a directory with weights that the model would not read as they are meant.

    These are further blocks than its configuration counts, which transformers leaves out, and
    integers, which stand for other values.

    Args:
        model: Directory or hub id, with readable weights.
        config: Its Hugging Face configuration.
        kind: The kind of task.
        origin: Setting that named the model.

    Raises:
        ConfigError: There are such weights; one is named.
    """
    directory = Path(locate(model, origin))
    if not directory.is_dir() or type(config) not in kind.configs:
        return
    shape = shape_model(kind, config, trust_remote_code=False)
    types = _stored_types(directory, origin)
    known, weights = set(shape.state_dict()), dict(shape.named_parameters())
    patterns = {_unnumbered(name) for name in known}
    unread = [re.compile(one) for one in shape._keys_to_ignore_on_load_unexpected or ()]
    for tensor in name_tensors(shape, types):
        if tensor.weight in weights and types[tensor.name][0] in INTEGERS:
            raise ConfigError(
                f"{origin} = {model!r}: {tensor.name} is stored in integers "
                f"({types[tensor.name]}), as in a quantized model, and what they stand for is not "
                "known. Give the checkpoint that it was made from"
            )
        further = tensor.weight not in known and _unnumbered(tensor.weight) in patterns
        if further and not any(one.search(tensor.weight) for one in unread):
            raise ConfigError(
                f"{origin} = {model!r} holds {tensor.name}, which is part of no block that its "
                "config.json counts, so the model would be a different one. Correct the number of "
                "blocks in config.json, or give the checkpoint that belongs to it"
            )


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


def _wrapper(names: Sequence[str], body: str) -> str | None:
    """Return the module that stands around the whole model, if there is one.

    Args:
        names: Names of the stored weights.
        body: The model's name for its base model, such as `bert`; empty if it is not known.
    """
    outer = {name.partition(".")[0] for name in names}
    if len(outer) != 1:
        return None
    (module,) = outer
    inside = body and any(name.startswith(f"{module}.{body}.") for name in names)
    return module if inside or module in WRAPPERS else None


def _unnumbered(name: str) -> str:
    """Return the name that a weight has in every block."""
    return NUMBER.sub(".#", name)


def _stored_names(directory: Path, origin: str) -> list[str]:
    return list(_stored_types(directory, origin))


def _stored_types(directory: Path, origin: str) -> dict[str, str]:
    """Return the data types of the tensors, such as `BF16`, by name."""
    types: dict[str, str] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                types |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise unreadable(str(directory), origin, error) from error
    return types
