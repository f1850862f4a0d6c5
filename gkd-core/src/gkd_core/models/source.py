"""Locating a model by directory or hub id, and reading its configuration."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from gkd_core.contract.architectures import adapter_of
from gkd_core.contract.model_info import ModelInfo
from gkd_core.errors import ConfigError, suggest
from gkd_core.models.quiet import quiet

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_config(model: str, trust_remote_code: bool, origin: str) -> PretrainedConfig:
    """Read the configuration of a text encoder or decoder.

    Args:
        model: Directory or hub id.
        trust_remote_code: Whether to run code that comes with the checkpoint.
        origin: Setting that named the model, such as `teacher.model`, for messages.

    Raises:
        ConfigError: There is no such model, or it is not a text encoder or decoder.
    """
    place = locate(model, origin)
    try:
        config = copy.deepcopy(_read_config(place, trust_remote_code, _stamp(place)))
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise unreadable(model, origin, error) from error
    problem = _unsupported(config)
    if problem is not None:
        raise ConfigError(f"{origin} = {model!r} {problem}")
    return config


def _unsupported(config: PretrainedConfig) -> str | None:
    """Return what is wrong with an architecture; None if its configuration has all that is needed.

    What an adapter describes is supported.
    """
    family = config.model_type
    if config.is_encoder_decoder:
        return (
            f"is an encoder-decoder ({family}); choose an encoder such as BERT or a decoder such "
            "as GPT-2"
        )
    if getattr(config, "vocab_size", None) is None:
        return (
            f"({family}) is not a text model: it has no vocabulary; choose a text encoder or "
            "decoder"
        )
    if adapter_of(family) is not None:
        return None
    if not _has_equal_blocks(config):
        return (
            f"({family}) is not a transformer of equal blocks with attention heads: its "
            "configuration does not give their numbers and widths; choose an encoder such as BERT "
            "or a decoder such as GPT-2"
        )
    if getattr(config, "num_hidden_groups", config.num_hidden_layers) < config.num_hidden_layers:
        return (
            f"({family}) runs the same block several times, so that its layers cannot be told "
            "apart; choose a model with a block for each layer, such as BERT"
        )
    return None


def _has_equal_blocks(config: PretrainedConfig) -> bool:
    """Return whether a configuration describes blocks of one shape, with attention heads."""
    try:
        info = ModelInfo.read("", config, 0)
    except (AttributeError, RuntimeError, TypeError):  # there are no heads, or layers differ
        return False
    sizes = (info.layers, info.hidden_size, info.heads, info.kv_heads, info.head_size)
    return all(isinstance(size, int) for size in (*sizes, info.ffn_size, info.vocab_size))


@functools.lru_cache(maxsize=64)
def _read_config(
    place: str, trust_remote_code: bool, stamp: tuple[int, int] | None
) -> PretrainedConfig:
    """Read a configuration once per process, and again if its file has changed."""
    with quiet():
        return AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)


def _stamp(place: str) -> tuple[int, int] | None:
    """Return what changes with the configuration of a directory; None for a hub id."""
    file = Path(place) / "config.json"
    if not file.is_file():
        return None
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def locate(model: str, origin: str) -> str:
    """Return the directory of a model, or its name if it can only be a hub id.

    Raises:
        ConfigError: It is neither, or the directory holds no model.
    """
    path = Path(model).expanduser()
    if path.is_file():
        raise ConfigError(f"{origin} = {model!r} is a file; give the directory that contains it")
    if path.is_dir():
        if (path / "config.json").is_file():
            return str(path)
        inside = sorted(str(found.parent) for found in path.glob("*/config.json"))
        hint = f" Did you mean {' or '.join(map(repr, inside[:3]))}?" if inside else ""
        raise ConfigError(
            f"{origin} = {model!r} is not a Hugging Face model: it has no config.json.{hint}"
        )
    if HUB_ID.fullmatch(model):
        return model
    raise ConfigError(f"{origin} = {model!r} does not exist.{_nearest(path)}")


def unreadable(model: str, origin: str, error: Exception) -> ConfigError:
    """Return the error for a model that transformers could not read."""
    path = Path(model).expanduser()
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        setting = f"{origin.rpartition('.')[0]}.trust_remote_code = true"
        return ConfigError(
            f"{origin} = {model!r} comes with model code of its own, which would be executed; "
            f"read it, and set {setting.lstrip('.')} if you trust it"
        )
    if path.is_dir():
        return ConfigError(f"{origin} = {model!r} cannot be loaded: {reason}")
    meant = _nearest(path) if path.parent.is_dir() else ""
    return ConfigError(
        f"{origin} = {model!r} is neither a directory here nor a model that could be fetched from "
        f"the Hugging Face Hub ({reason.rstrip('.')}).{meant or ' Check the name and the network.'}"
    )


def _nearest(path: Path) -> str:
    """Suggest a directory beside a missing one, or say where the path stops existing."""
    parent = path.parent
    if parent.is_dir():
        return suggest(path.name, [entry.name for entry in parent.iterdir() if entry.is_dir()])
    while not parent.is_dir():
        parent = parent.parent
    return f" The path exists up to {str(parent)!r}."
