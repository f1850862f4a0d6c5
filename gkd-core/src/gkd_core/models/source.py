"""Locating a model by directory or hub id, and reading its configuration."""

from __future__ import annotations

import copy
import functools
import json
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from gkd_core.contract.architectures import adapter_of
from gkd_core.contract.model_info import ModelInfo
from gkd_core.errors import ConfigError, first_line, suggest
from gkd_core.models.quiet import quiet
from gkd_core.named_path import named_path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

ADAPTER = "adapter_config.json"
"""The file that makes a directory an adapter of PEFT, such as LoRA."""

QUANTIZATION = ("quantization_config", "compression_config", "quantization")
"""Tables of a configuration that say how its weights are quantized; the last is that of MLX."""

QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Files that say it where the configuration does not."""

KERNEL = re.compile(r"(attn|experts)_implementation")
"""Settings that choose the code of a layer."""


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
    _refuse_quantized(config, place, model, origin)
    _refuse_kernel(config, model, origin)
    return config


def _unsupported(config: PretrainedConfig) -> str | None:
    """Return the fault of an architecture; None if its configuration has all that is needed.

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
    except (AttributeError, RuntimeError, TypeError, ZeroDivisionError):
        return False  # there are no heads, or layers differ
    sizes = (info.layers, info.hidden_size, info.heads, info.kv_heads, info.head_size)
    known = (*sizes, info.ffn_size, info.vocab_size)
    return all(isinstance(size, int) and size > 0 for size in known)


def _refuse_quantized(config: PretrainedConfig, place: str, model: str, origin: str) -> None:
    """Reject weights of a few bits, which can be neither sliced nor converted to fp32."""
    tables: list[Any] = [getattr(config, name, None) for name in QUANTIZATION]
    table = next(filter(None, tables), None)
    file = next((name for name in QUANTIZATION_FILES if (Path(place) / name).is_file()), None)
    if table is None and file is None:
        return
    method = table.get("quant_method") if isinstance(table, dict) else None
    raise ConfigError(
        f"{origin} = {model!r} is quantized ({method or file or 'config.json'}); of quantized "
        "weights, only those of a teacher in a directory are read, of bitsandbytes, GPTQ or AWQ. "
        "Give the checkpoint that it was made from, or a copy converted back to bf16"
    )


def _refuse_kernel(config: PretrainedConfig, model: str, origin: str) -> None:
    """Reject layers that transformers would fetch as compiled code from the hub."""
    found = next(_kernels(vars(config)), None)
    if found is not None:
        name, kernel = found
        raise ConfigError(
            f"{origin} = {model!r} requests the kernel {kernel!r}, which is code from the Hugging "
            f"Face Hub. Remove {name} from its config.json"
        )


def _kernels(table: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """Yield the kernels of the hub in a configuration and the tables in it, with their settings."""
    for name, value in ((str(key), each) for key, each in table.items()):
        inner = vars(value) if isinstance(value, PretrainedConfig) else value
        if isinstance(inner, Mapping):
            named = {f"{name}.{key}": each for key, each in inner.items()}
            yield from _kernels(named if KERNEL.search(name) else inner)
        elif isinstance(inner, str) and KERNEL.search(name) and "/" in inner:
            yield name.removeprefix("_").removesuffix("_internal"), inner


@functools.lru_cache(maxsize=64)
def _read_config(
    place: str, trust_remote_code: bool, stamp: tuple[int, int] | None
) -> PretrainedConfig:
    """Read a configuration once per process, and again if its file has changed."""
    with quiet():
        return AutoConfig.from_pretrained(
            place, trust_remote_code=trust_remote_code, local_files_only=_is_out_of_reach(place)
        )


def _is_out_of_reach(place: str) -> bool:
    """Return whether a model can only be on the hub, and the hub's address is unknown here.

    Its library would try again and again for half a minute, and the name may just be mistyped.
    """
    if Path(place).is_dir() or getproxies():  # a proxy knows addresses
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def _stamp(place: str) -> tuple[int, int] | None:
    """Return a value that changes with the configuration of a directory; None for a hub id."""
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
    path = named_path(model)
    if path.is_file():
        gguf = "; only a teacher may be a GGUF file" if path.suffix == ".gguf" else ""
        raise ConfigError(
            f"{origin} = {model!r} is a file; give the directory that contains it{gguf}"
        )
    if path.is_dir():
        if (path / ADAPTER).is_file():
            raise ConfigError(_adapter(path, model, origin))
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


def _adapter(directory: Path, model: str, origin: str) -> str:
    """Explain that a directory holds an adapter, and of which model.

    transformers reads it as its base model if `peft` is installed, and without it as a model whose
    weights are missing.
    """
    try:
        base = json.loads((directory / ADAPTER).read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    beside = any(
        not file.name.startswith("adapter_model") for file in directory.glob("*.safetensors")
    )
    if beside:
        return (
            f"{origin} = {model!r} holds a model and an adapter ({ADAPTER}), so that it is not "
            "clear which is meant. Merge the adapter (peft's `merge_and_unload`), or move its "
            "files elsewhere"
        )
    of = f" of {base!r}" if base else ""
    return (
        f"{origin} = {model!r} holds an adapter{of} ({ADAPTER}), which is not a model by itself. "
        "Merge it into its base model first (peft's `merge_and_unload`), save the result with its "
        "tokenizer, and give that directory"
    )


def unreadable(model: str, origin: str, error: Exception) -> ConfigError:
    """Return the error for a model that transformers could not read."""
    path = named_path(model)
    reason = first_line(error)
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"{origin} = {model!r} comes with model code of its own, which would be executed; "
            f"{_how_to_trust(origin)}"
        )
    if path.is_dir():
        return ConfigError(f"{origin} = {model!r} cannot be loaded: {reason}")
    adapter = _adapter_of_hub(model)
    if adapter is not None:
        return ConfigError(_adapter(adapter.parent, model, origin))
    meant = _nearest(path) if path.parent.is_dir() else ""
    return ConfigError(
        f"{origin} = {model!r} is neither a directory here nor a model that could be fetched from "
        f"the Hugging Face Hub ({reason.rstrip('.')}).{meant or ' Check the name and the network.'}"
    )


def _adapter_of_hub(model: str) -> Path | None:
    """Return the file that makes a model of the hub an adapter, from the cache or the network."""
    try:
        with quiet():
            return Path(hf_hub_download(model, ADAPTER, local_files_only=_is_out_of_reach(model)))
    except (HfHubHTTPError, OSError, ValueError):
        return None


def _how_to_trust(origin: str) -> str:
    """Explain how to allow code that comes with a model; not every setting of a model can."""
    table, dot, name = origin.rpartition(".")
    if not dot:  # a model that a command was given
        return (
            "read it, and set teacher.trust_remote_code = true if you trust it and the command "
            "takes settings; else choose a model that needs none"
        )
    if name != "model":
        return "choose a model that needs none"
    return f"read it, and set {table}.trust_remote_code = true if you trust it"


def _nearest(path: Path) -> str:
    """Suggest a directory beside a missing one, or say where the path stops existing."""
    parent = path.parent
    if parent.is_dir():
        return suggest(path.name, [entry.name for entry in parent.iterdir() if entry.is_dir()])
    while not parent.is_dir():
        parent = parent.parent
    return f" The path exists up to {str(parent)!r}."
