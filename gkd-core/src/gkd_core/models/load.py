"""Loading of Hugging Face text encoders and decoders: teachers, and checkpoints to train.

Weights are read from safetensors files only; code that comes with a checkpoint runs only if the
user allows it. Everything that `config.json` reveals is checked before any weight is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel

from gkd_core.errors import ConfigError
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.classes import check_classes, listed, teacher_classes
from gkd_core.models.finite import is_finite, refuse_weight
from gkd_core.models.quiet import quiet
from gkd_core.models.slicing.select import narrowed
from gkd_core.models.slicing.widths import is_sliced
from gkd_core.models.source import load_config, locate, unreadable
from gkd_core.plugins import ask, registry

WeightReader: TypeAlias = Callable[
    [str, TaskKind, PretrainedConfig, bool, str], tuple[PreTrainedModel, list[str], list[str]]
]
"""Reads a model (name, kind, configuration, trust_remote_code, origin); returns it, the weights
missing from the checkpoint, and those of a different shape."""

SAFE_FILE = re.compile(r"[^/\\]+\.safetensors")
"""The files that an index of weights may name."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A model loaded for training.

    Attributes:
        model: The model, fp32, in training mode.
        initialized: Names of the weights missing from the checkpoint, drawn at random.
    """

    model: PreTrainedModel
    initialized: tuple[str, ...]


def check_kind(config: PretrainedConfig, kind: TaskKind, origin: str) -> None:
    """Reject an architecture that does not support a kind of task.

    Raises:
        ConfigError: It has no such head, or cannot be used with it.
    """
    family = config.model_type
    if kind.auto.__name__ in (getattr(config, "auto_map", None) or {}):
        return
    if not _has_head(config, kind):
        kinds = registry().kinds.values()
        able = [str(other) for other in kinds if ask(partial(_has_head, config, other), False)]
        raise ConfigError(
            f"{origin}: {family} models have no {kind.head}, which task.kind = '{kind}' "
            f"needs; {family} can do {', '.join(able) or 'none of the kinds'}"
        )
    kind.check_model(config, origin)


def _has_head(config: PretrainedConfig, kind: TaskKind) -> bool:
    return type(config) in kind.configs


def load_teacher(
    model: str,
    kind: TaskKind,
    classes: Sequence[str],
    trust_remote_code: bool,
    origin: str,
    read: WeightReader | None = None,
) -> PreTrainedModel:
    """Load a trained model to learn from: fp32, evaluation mode, without gradients.

    Args:
        model: Directory or hub id.
        kind: The kind of task.
        classes: The task's classes in the order of their ids; empty unless classification.
        trust_remote_code: Whether to run code that comes with the checkpoint.
        origin: Setting that named the model.
        read: Reader of the weights. Default: reads all of them.

    Raises:
        ConfigError: The model does not suit the task, or its weights are incomplete.
    """
    config = load_config(model, trust_remote_code, origin)
    check_kind(config, kind, origin)
    check_classes(config, kind, classes, origin)
    read = read or _read_weights
    teacher, missing, misfit = read(model, kind, config, trust_remote_code, origin)
    if misfit or any(in_body(teacher, name) for name in missing):
        raise _incomplete(model, origin, misfit + missing)
    missing = [name for name in missing if not kind.unused(name)]
    if missing:
        raise no_trained_head(model, kind, origin, missing)
    return teacher.requires_grad_(False).eval()


def load_model(
    model: str,
    kind: TaskKind,
    classes: Sequence[str],
    seed: int,
    trust_remote_code: bool,
    origin: str,
    read: WeightReader | None = None,
) -> Checkpoint:
    """Load a checkpoint to be trained; a missing head is drawn at random.

    Args:
        model: Directory or hub id.
        kind: The kind of task.
        classes: The task's classes in the order of their ids; empty unless classification.
        seed: Seed of the randomly drawn weights.
        trust_remote_code: Whether to run code that comes with the checkpoint.
        origin: Setting that named the model.
        read: Reader of the weights. Default: reads all of them.

    Raises:
        ConfigError: The model does not suit the kind of task, or lacks more than a head.
    """
    config = load_config(model, trust_remote_code, origin)
    check_kind(config, kind, origin)
    known = teacher_classes(config) or ()
    if set(known) == set(classes) and known != tuple(classes):
        raise ConfigError(
            f"{origin} = {model!r} has the classes in the order {listed(known)}, but the run in "
            f"the order {listed(classes)}; start from a checkpoint without a classification head"
        )
    kind.configure(config, classes)
    with seeded(seed):
        read = read or _read_weights
        loaded, missing, misfit = read(model, kind, config, trust_remote_code, origin)
    initialized = sorted({*missing, *misfit})
    if any(in_body(loaded, name) for name in initialized):
        raise _incomplete(model, origin, initialized)
    return Checkpoint(loaded.train(), tuple(initialized))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generator inside the context, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _read_weights(
    model: str, kind: TaskKind, config: PretrainedConfig, trust_remote_code: bool, origin: str
) -> tuple[PreTrainedModel, list[str], list[str]]:
    """Return the model, the weights missing from the checkpoint, and those of another shape.

    Raises:
        ConfigError: The files cannot be read, or a weight is not finite.
    """
    place = locate(model, origin)
    check_safetensors(place, kind.auto.__name__, origin)
    try:
        with quiet():
            loaded, info = _loader(kind, config).from_pretrained(
                place,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unreadable(model, origin, error) from error
    misfit = [name for name, *_ in info["mismatched_keys"]]
    drawn = {*misfit, *info["missing_keys"]}
    for name, weight in loaded.named_parameters():
        if name not in drawn and not is_finite(weight.detach()):
            refuse_weight(f"{origin} = {model!r}", place, name)
    if is_sliced(config):
        # The narrowing subclass was needed for construction only.
        loaded.__class__ = kind.configs[type(config)]
    return loaded, sorted(info["missing_keys"]), sorted(misfit)


def _loader(kind: TaskKind, config: PretrainedConfig) -> Any:
    """Return the class that loads a checkpoint; if its blocks differ in width, one that narrows."""
    return narrowed(kind.configs[type(config)]) if is_sliced(config) else kind.auto


def check_safetensors(place: str, auto: str, origin: str) -> None:
    """Reject a directory without safetensors; transformers itself rejects such a hub id.

    An index must not name other files either, because transformers would unpickle them.

    Args:
        place: The directory or hub id.
        auto: Name of the class that loads the model, for advice.
        origin: Setting that named the model.

    Raises:
        ConfigError: It has no weights that are safe to read.
    """
    directory = Path(place)
    for index in sorted(directory.glob("*.index.json")):
        foreign = [name for name in _indexed(index) if not SAFE_FILE.fullmatch(name)]
        if foreign:
            raise ConfigError(
                f"{origin} = {place!r}: {index.name} names {foreign[0]!r}, which is not a "
                "safetensors file of this directory. Get the checkpoint again, or correct the "
                "index"
            )
    if not directory.is_dir() or any(directory.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if not pickles:
        raise ConfigError(f"{origin} = {place!r} holds no weights (*.safetensors)")
    raise ConfigError(
        f"{origin} = {place!r} holds its weights as a pickle only ({_some(pickles)}), which can "
        'run code when it is read. If you trust it, convert it once: python -c "from transformers '
        f"import {auto} as M; M.from_pretrained('{place}').save_pretrained('{place}-safetensors')\""
        ", and copy its tokenizer files too"
    )


def _indexed(index: Path) -> list[str]:
    """Return the files that an index names; none if it cannot be read, which is said later."""
    try:
        return sorted(set(map(str, json.loads(index.read_text())["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def no_trained_head(model: str, kind: TaskKind, origin: str, missing: Sequence[str]) -> ConfigError:
    """Return the error for a teacher that lacks weights of its head."""
    advice = f"train it first, for example with `gkd run --method hard --student {model} ...`"
    if kind.is_lm:
        advice = f"name the language model that it was made from (--set {origin}=DIR)"
    return ConfigError(
        f"{origin} = {model!r} has no trained {kind.head} ({_some(missing)}); {advice}"
    )


def in_body(model: PreTrainedModel, name: str) -> bool:
    """Return whether a weight belongs to the body; a pooler counts as part of the head."""
    return name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name


def _incomplete(model: str, origin: str, missing: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{origin} = {model!r}: the weights do not fill the model its config.json describes; "
        f"{len(missing)} are missing or of another shape ({_some(missing)}). "
        "The checkpoint is damaged, or of another model"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
