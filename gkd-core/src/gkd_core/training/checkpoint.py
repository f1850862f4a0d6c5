"""Checkpoints: everything needed to resume a stage as if it had never stopped.

A checkpoint is a directory that is written under a temporary name and renamed when complete, so one
with its final name is never partial. Tensors are in safetensors files, the rest is JSON. Its
`Manifest` says what its files are and what the student is made from.

Weights and optimizer state are stored whole, however they were sharded, so that a run can resume in
another layout; a rank reads only its shard. Random states and the state of methods belong to a data
rank: `NAME-1` is that of the second, whichever processes form it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gkd_core
from gkd_core import atomic
from gkd_core.atomic import replace_directory
from gkd_core.distributed.groups import data_rank, is_first_of_copy
from gkd_core.distributed.ranks import is_first, tell, wait
from gkd_core.distributed.shards import Sliceable
from gkd_core.errors import ConfigError
from gkd_core.models.content import FileContent, read_files
from gkd_core.parallel.weights import load_whole, whole_weights
from gkd_core.strict_json import json_text
from gkd_core.training.manifest import MANIFEST, Difference, Manifest
from gkd_core.training.method_state import put_tensors, take_tensors
from gkd_core.training.moving_teacher import moving_teachers
from gkd_core.training.plugin_hooks import Event
from gkd_core.training.random_states import random_states, restore_random

if TYPE_CHECKING:
    from gkd_core.training.stage import Stage

CHECKPOINTS = "checkpoints"
CHECKPOINT = "step-" + "[0-9]" * 8
"""Names of finished checkpoints, as a pattern."""
DAMAGED = ".damaged"
"""Suffix of a checkpoint that cannot be used."""
BEST = "best.safetensors"
PROGRESS = "progress.json"
WRITTEN = (
    "student.safetensors",
    "modules.safetensors",
    "optimizer.safetensors",
    "random.safetensors",
    PROGRESS,
)
"""Files of every checkpoint."""
SUFFIXES = (".safetensors", ".json")
"""Suffixes of all files of a checkpoint; others are none of gkd's."""
OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""The form in which safetensors names an error of the system."""
NOT_FINITE = "not-finite"
"""The directory of a step that could not be taken; see `SavedStep`."""


@dataclass
class Progress:
    """The progress of a stage.

    Attributes:
        step: Optimizer steps done.
        best: Best value of the main metric so far.
        best_step: Step at which it was reached.
        waited: Evaluations since then.
        stopped: Whether early stopping ended the stage.
        methods: State of the methods.
        seconds: Time that the steps so far took, in all attempts; version 0.1 wrote 0.
        loss_scale: State of the loss scaler; empty without one.
        rollout: State of the rollouts; empty without.
        untold: What methods and plugins have not been told of the last step, because one failed.
        start: The main metric before the first step, of language models; None if not measured.
        last: The main metric at the last evaluation.
        kept: Names of the teachers whose answers are kept. Where this is not said, as in version
            0.1, no answers are kept to the end.
        version: Version of gkd that wrote it; version 0.1 did not say.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    stopped: bool = False
    methods: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    loss_scale: dict[str, float] = field(default_factory=dict)
    rollout: dict[str, Any] = field(default_factory=dict)
    untold: list[Event] = field(default_factory=list)
    start: float | None = None
    last: float | None = None
    kept: list[str] = field(default_factory=list)
    version: str = gkd_core.__version__


@dataclass(frozen=True)
class FoundCheckpoint:
    """The checkpoint that a stage goes on from.

    Attributes:
        path: The newest one that is whole, or else the newest.
        damaged: What is wrong with newer ones, by path.
    """

    path: Path
    damaged: Mapping[Path, str]


def save_checkpoint(stage: Stage, progress: Progress) -> Path:
    """Write a checkpoint of the stage and remove those that are too old to be kept."""
    stage.check_lease()
    target = stage.directory / CHECKPOINTS / _name(progress.step)
    draft = target.with_name(f"{target.name}.tmp")
    if is_first():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    wait()
    _save_models(stage, draft)
    _save_progress(stage, progress, draft)
    wait()
    if is_first():
        if progress.best is not None and stage.best.exists():
            _link(stage.best, draft / BEST)
        replace(stage.manifest, files=checkpoint_files(draft)).save(draft / MANIFEST)
        replace_directory(draft, target)
        _remove_old(stage)
    return target


def _save_models(stage: Stage, draft: Path) -> None:
    """Write the weights of all models that change, and the state of the optimizer."""
    save_weights(stage.student.model, draft / "student.safetensors")
    save_weights(stage.objective.modules, draft / "modules.safetensors")
    for name, teacher, _ in moving_teachers(stage):
        save_weights(teacher, draft / f"teacher-{name}.safetensors")
    optimizer = stage.engine.state_tensors()
    if is_first():
        save_tensors(optimizer, draft / "optimizer.safetensors")


def _save_progress(stage: Stage, progress: Progress, draft: Path) -> None:
    """Write how far the stage is, and the states of methods and of random generators."""
    method_tensors: dict[str, Tensor] = {}
    progress.methods = take_tensors(stage.objective.state_dict(), method_tensors)
    if stage.engine.scale is not None:
        progress.loss_scale = stage.engine.scale.state_dict()
    if stage.rollouts is not None:
        progress.rollout = stage.rollouts.state_dict()
    if is_first_of_copy():
        save_tensors(random_states(stage), draft / f"random{rank_suffix()}.safetensors")
        progressed = draft / f"progress{rank_suffix()}.json"
        progressed.write_text(json_text(asdict(progress), indent=1))
        if method_tensors:
            save_tensors(method_tensors, draft / f"methods{rank_suffix()}.safetensors")


def _remove_old(stage: Stage) -> None:
    """Remove the checkpoints that are too old to be kept, and drafts that were never finished."""
    too_old = _checkpoints(stage.directory)[stage.config.output.checkpoints :]
    drafts = (stage.directory / CHECKPOINTS).glob(f"{CHECKPOINT}.tmp")
    for old in (*too_old, *drafts):
        shutil.rmtree(old)


def _checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints in the directory of a stage, the newest first."""
    found = (path for path in (directory / CHECKPOINTS).glob(CHECKPOINT) if path.is_dir())
    return sorted(found, reverse=True)


def find_checkpoint(directory: Path) -> FoundCheckpoint | None:
    """Return the checkpoint that the stage in a directory goes on from, if there is one."""
    damaged: dict[Path, str] = {}
    for path in _checkpoints(directory):
        wrong = _damage(path)
        if wrong is None:
            return FoundCheckpoint(path, damaged)
        damaged[path] = wrong
    # The newest one is then refused, unless the user accepts that it has changed.
    return FoundCheckpoint(next(iter(damaged)), {}) if damaged else None


def _damage(checkpoint: Path) -> str | None:
    """Return the problem with a checkpoint, if there is one."""
    manifest = checkpoint / MANIFEST
    try:
        if manifest.exists():
            files = checkpoint_files(checkpoint)
            differences = Manifest.load(manifest).altered(files, checkpoint.name)
        else:
            differences = damages(checkpoint)
        found = next(differences, None)
    except (ConfigError, OSError) as error:
        return str(error)
    return None if found is None else str(found)


def checkpoint_files(checkpoint: Path) -> dict[str, FileContent]:
    """Return the content of a checkpoint's files, except its manifest, by name."""
    paths = (path for path in checkpoint.iterdir() if path.name != MANIFEST)
    kept = (path for path in paths if path.suffix in SUFFIXES and path.is_file())
    return {path.name: content for path, content in read_files(kept).items()}


def damages(checkpoint: Path) -> Iterator[Difference]:
    """Yield what is wrong with a checkpoint that has no manifest, as far as its files show it."""
    for name in WRITTEN:
        if not (checkpoint / name).exists():
            yield Difference(f"{checkpoint.name}: {name}", "part of every checkpoint", "missing")
    try:
        progress = json.loads((checkpoint / PROGRESS).read_text())
        step = int(progress["step"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        yield Difference(f"{checkpoint.name}: {PROGRESS}", "the progress of a stage", str(error))
        return
    if "version" in progress:
        was = f"written by version {progress['version']} of gkd"
        yield Difference(f"{checkpoint.name}: {MANIFEST}", was, "missing")
    if _name(step) != checkpoint.name:
        named = f"step {step}"
        yield Difference(f"{checkpoint.name}: {PROGRESS}", checkpoint.name, named)


def load_checkpoint(stage: Stage, say: Callable[[str], None]) -> Progress:
    """Restore the newest whole checkpoint of the stage, if any, and return the progress.

    Damaged ones that are newer are set aside.

    Args:
        stage: The stage.
        say: Told of damaged checkpoints.

    Raises:
        ConfigError: One of its files is missing or cannot be read.
    """
    wait()  # until the first rank has renamed a checkpoint
    found = tell(find_checkpoint(stage.directory) if is_first() else None)
    if found is None:
        return Progress()
    for path, wrong in found.damaged.items():
        say(f"{path.name} is damaged ({wrong}): continuing from {found.path.name}")
        if is_first():
            aside = path.with_name(path.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
    try:
        return _load(stage, found.path)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        unreadable = isinstance(error, (OSError, SafetensorError, json.JSONDecodeError))
        if not unreadable and _damage(found.path) is None:
            raise  # it is not the files that are wrong, but perhaps a plugin
        raise ConfigError(
            f"the checkpoint {found.path} cannot be loaded: {error}. Restore its files, or remove "
            f"it to start the stage '{stage.name}' again"
        ) from error


def _load(stage: Stage, checkpoint: Path) -> Progress:
    load_weights(stage.student.model, checkpoint / "student.safetensors")
    load_weights(stage.objective.modules, checkpoint / "modules.safetensors")
    for name, teacher, _ in moving_teachers(stage):
        load_weights(teacher, checkpoint / f"teacher-{name}.safetensors")
    states = checkpoint / f"random{rank_suffix()}.safetensors"
    if states.exists():
        restore_random(stage, load_file(states))
    # With more data ranks than before, new ones take over the progress of the first.
    share = rank_suffix() if (checkpoint / f"progress{rank_suffix()}.json").exists() else ""
    progress = _read_progress(checkpoint / f"progress{share}.json")
    kept = checkpoint / f"methods{share}.safetensors"
    method_tensors = load_file(kept) if kept.exists() else {}
    stage.objective.load_state_dict(put_tensors(progress.methods, method_tensors))
    if stage.engine.scale is not None:
        stage.engine.scale.load_state_dict(progress.loss_scale)
    if stage.rollouts is not None:
        stage.rollouts.load_state_dict(progress.rollout)
    path = checkpoint / "optimizer.safetensors"
    with _opened(path) as tensors, _restorable(path):
        stage.engine.load_state_tensors(tensors)
    if is_first() and (checkpoint / BEST).exists():
        _link(checkpoint / BEST, stage.best)
    wait()
    return progress


def _read_progress(path: Path) -> Progress:
    content = json.loads(path.read_text())
    content["untold"] = [Event(**event) for event in content.get("untold", [])]
    return Progress(**content)


def remove_checkpoints(directory: Path) -> None:
    """Remove the files of a finished stage that only an unfinished one needs."""
    for folder in (directory / CHECKPOINTS, *directory.glob(f"*{NOT_FINITE}*")):
        shutil.rmtree(folder, ignore_errors=True)
    for pattern in ("*.safetensors", "*.tmp"):
        for path in directory.glob(pattern):
            path.unlink()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a model; an existing file is replaced only when they are complete."""
    weights = whole_weights(model)
    if is_first():
        with atomic.draft(path) as aside:
            save_tensors(weights, aside)
    wait()


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy weights written by `save_weights` into a model of the same shape.

    Raises:
        ConfigError: They are not those of the model.
    """
    with _opened(path) as tensors, _restorable(path):
        load_whole(model, tensors)


@contextmanager
def _restorable(path: Path) -> Iterator[None]:
    """Name the file whose tensors are not those that are needed."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be loaded: {error}. Restore the file") from error


def _name(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{step:08d}"


def rank_suffix() -> str:
    """Return the suffix of the files of this data rank; empty for the first."""
    return f"-{data_rank()}" if data_rank() else ""


def _link(source: Path, target: Path) -> None:
    """Give a file, which is never written again, another name; copy it where there are no links."""
    if target.exists() and target.samefile(source):
        return
    with atomic.draft(target) as aside:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Sliceable]]:
    """Open a file whose tensors can be read slice by slice."""
    with safe_open(path, "pt") as file:
        yield {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors of any device to a file.

    Raises:
        OSError: It cannot be written.
    """
    whole = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    try:
        save_file(whole, path)
    except SafetensorError as error:
        number = OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
