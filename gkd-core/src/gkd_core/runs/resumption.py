"""Resuming a run: what differs from what its stages were begun with.

A student that learns from two sets of inputs is the result of neither, so a run goes on only with
what it began with, unless the user accepts the differences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gkd_core import digest
from gkd_core.config.resolve import Resolved
from gkd_core.config.settings import DEFAULT, read_file
from gkd_core.contract.run_info import STAGES
from gkd_core.errors import ConfigError
from gkd_core.models.content import ModelContents
from gkd_core.plugins import Registry
from gkd_core.runs.inputs import CODE, CONTENT, CORE, SETTINGS, VERSIONS, InputReader
from gkd_core.runs.locations import Locations
from gkd_core.runs.run_files import DONE
from gkd_core.training.checkpoint import checkpoint_files, damages, find_checkpoint
from gkd_core.training.manifest import MANIFEST, Difference, Inputs, Manifest
from gkd_core.training.stage_spec import StageSpec

INTERVALS = ("log_every", "evaluate_every", "checkpoint_every")
"""Settings of `training` that may change in the course of a run."""

PLACES = (
    "output.checkpoints",
    "output.dir",
    "student.model",
    "task.train",
    "task.validation",
    "task.test",
    "task.augment_model",
)
"""Settings that say what is kept, or where something is: what is there must be as before."""

OF_TEACHER = ("keep", "model", "placement", "source.path", "tensor")
"""The same of a teacher; what a source answers is known by its fingerprint."""

WRITTEN = ("method", "task", "training")
"""Settings and tables that every configuration of a run has, or its stages."""

NONE = "not set"

SOME = 3
"""Files of a plugin that are named."""


@dataclass(frozen=True)
class Begun:
    """A stage that is finished or has a checkpoint.

    Attributes:
        name: Its name.
        checkpoint: The checkpoint that it goes on from; None if it is finished.
        path: Where its manifest is.
        manifest: What it was begun with; None if an earlier version of gkd noted nothing.
    """

    name: str
    checkpoint: Path | None
    path: Path
    manifest: Manifest | None

    @classmethod
    def find(cls, folder: Path) -> Begun | None:
        """Return the stage in a directory, if it has been begun.

        Raises:
            ConfigError: Its manifest cannot be read.
        """
        finished = (folder / DONE).exists()
        found = None if finished else find_checkpoint(folder)
        checkpoint = None if found is None else found.path
        if checkpoint is None and not finished:
            return None
        path = (checkpoint or folder) / MANIFEST
        return cls(folder.name, checkpoint, path, Manifest.load(path) if path.exists() else None)

    def unknown(self, differences: Iterable[Difference]) -> list[Difference]:
        """Return those of differences that were not accepted before."""
        known = () if self.manifest is None else self.manifest.differences
        return [difference for difference in differences if difference not in known]


class Resumption:
    """A run that goes on from what an earlier process has left.

    Args:
        directory: The directory of the run.
        configured: Its configuration as it stands there.
        accepts: Whether to go on whatever differs.

    Attributes:
        accepts: Whether to go on whatever differs.
        contents: Reads the files of models; those that have not been changed are known.
    """

    def __init__(self, directory: Path, configured: Resolved, accepts: bool) -> None:
        self.directory = directory
        self.configured = configured
        self.accepts = accepts
        found = map(Begun.find, sorted((directory / STAGES).glob("*/")))
        self._begun = {begun.name: begun for begun in found if begun is not None}
        self._manifests = [b.manifest for b in self._begun.values() if b.manifest is not None]
        self.contents = ModelContents(manifest.models for manifest in self._manifests)

    def check_settings(self, resolved: Resolved) -> None:
        """Reject settings with which the run was not begun.

        Raises:
            ConfigError: Some differ, and the user does not accept it.
        """
        self._refuse("settings", self._settings(resolved))

    def check(
        self, resolved: Resolved, registry: Registry, specs: Sequence[StageSpec]
    ) -> tuple[Difference, ...]:
        """Return everything that is not as it was when the run began, and was not earlier.

        It is noted beside the students of finished stages, so that it is not asked for again.

        Args:
            resolved: The configuration with which the run goes on.
            registry: The plugins.
            specs: Its stages.

        Raises:
            ConfigError: Something differs, and the user does not accept it.
        """
        settings = self._settings(resolved)
        reader = InputReader(resolved, registry, self.contents)
        inputs = self._inputs(specs, reader)
        self._refuse("inputs", inputs)
        before = (d for manifest in self._manifests for d in manifest.differences)
        found = tuple(dict.fromkeys((*before, *settings, *inputs)))
        self._note(found)
        return found

    def _settings(self, resolved: Resolved) -> list[Difference]:
        """Return the settings that differ from those of any stage, or else of the run."""
        if not self._manifests:
            return list(changed_settings(self.configured.values(), resolved))
        return [
            difference
            for begun in self._begun.values()
            if begun.manifest is not None
            for difference in begun.unknown(
                changed_settings(begun.manifest.inputs[SETTINGS], resolved)
            )
        ]

    def _inputs(self, specs: Sequence[StageSpec], reader: InputReader) -> list[Difference]:
        """Return the other differences; none if no stage is left to be trained with them."""
        if all(s.name in self._begun and not self._begun[s.name].checkpoint for s in specs):
            return []
        locations = Locations(self.directory, specs)
        return [
            difference
            for spec in specs
            if (begun := self._begun.get(spec.name))
            for difference in begun.unknown(_changed_inputs(begun, spec, locations, reader))
        ]

    def _note(self, differences: tuple[Difference, ...]) -> None:
        """Note differences beside the students of finished stages."""
        for begun in self._begun.values():
            known = begun.manifest
            if known is not None and begun.checkpoint is None and known.differences != differences:
                replace(known, differences=differences).save(begun.path)

    def _refuse(self, kind: str, differences: Iterable[Difference]) -> None:
        refused = dict.fromkeys(d for d in differences if not d.free)
        if self.accepts or not refused:
            return
        names = ", ".join(difference.name for difference in refused)
        lines = "".join(f"\n  {difference}" for difference in refused)
        raise ConfigError(
            f"--resume continues the run in {self.directory} as it was begun, but these {kind} "
            f"differ: {names}{lines}\nRestore what was there, start a new run with another "
            "--output, or continue with --accept-changes: the changes are then recorded in the "
            "run, and its student is never reused"
        )


def refuse_cut(config: Path) -> None:
    """Reject the configuration of a run that lacks the end, or all, of what gkd wrote.

    Settings that it lacks would be the defaults: without a task, those of another one.

    Raises:
        ConfigError: A table that every configuration has is missing.
    """
    given = {setting.key[0] for setting in read_file(config)}
    missing = [name for name in WRITTEN if name not in given]
    if missing:
        raise ConfigError(
            f"{config} has been cut off: it lacks {', '.join(missing)}, which gkd has written. "
            "Restore it, or start a new run with another --output"
        )


def _changed_inputs(
    begun: Begun, spec: StageSpec, locations: Locations, reader: InputReader
) -> Iterator[Difference]:
    """Yield what a stage was not begun with, and files of its checkpoint or student."""
    manifest = begun.manifest
    if manifest is None:
        if begun.checkpoint is not None:
            yield from damages(begun.checkpoint)
        was = "begun by a version of gkd that kept no manifest"
        now = "not checked: its rows, models, settings and code may have changed"
        yield Difference(f"stage {spec.name}", was, now, free=True)
        return
    yield from changed_inputs(
        manifest.inputs, reader.read(locations.ready(spec), locations.start(spec))
    )
    if begun.checkpoint is not None:
        yield from manifest.altered(checkpoint_files(begun.checkpoint), begun.checkpoint.name)
    else:
        files = reader.contents.files(locations.student(spec))
        yield from manifest.altered(files, f"student of stage {spec.name}")


def changed_settings(before: Mapping[str, Any], resolved: Resolved) -> Iterator[Difference]:
    """Yield the settings that are not as before, except places, the layout and trackers.

    Args:
        before: Their values by dotted key.
        resolved: The configuration with which the run goes on.
    """
    values = resolved.values()
    for key in sorted(before.keys() | values.keys()):
        was, now = before.get(key), values.get(key)
        # The version of gkd that began the run may not have had all settings that there are now.
        is_new = key not in before and resolved.origin(key) == str(DEFAULT)
        if was != now and not is_new and not _may_differ(key):
            yield Difference(key, _shown(was), _shown(now), free=_is_interval(key))


def changed_inputs(before: Inputs, now: Inputs) -> Iterator[Difference]:
    """Yield the rows, files, code and versions that are not as before."""
    for name in sorted(before[CONTENT].keys() | now[CONTENT].keys()):
        was, is_now = before[CONTENT].get(name, "not there"), now[CONTENT].get(name, "missing")
        if was != is_now:
            yield Difference(name, was, is_now)
    for name in sorted(before[CODE].keys() | now[CODE].keys()):
        yield from _changed_code(name, before, now)
    for name in sorted(before[VERSIONS].keys() & now[VERSIONS].keys()):
        was, is_now = before[VERSIONS][name], now[VERSIONS][name]
        if was != is_now:
            yield Difference(f"version of {name}", was, is_now, free=True)


def _changed_code(name: str, before: Inputs, now: Inputs) -> Iterator[Difference]:
    """Yield the code of a distribution if it has changed.

    A new version of gkd is said as such. The packages of gkd have the same version.
    """
    was, is_now = before[CODE].get(name, {}), now[CODE].get(name, {})
    files = sorted(was.keys() | is_now.keys())
    changed = [file for file in files if was.get(file) != is_now.get(file)]
    versions = [(inputs[VERSIONS].get(name), inputs[VERSIONS][CORE]) for inputs in (before, now)]
    is_upgrade = versions[0] != versions[1] and all(own == core for own, core in versions)
    if changed and not is_upgrade:
        named = ", ".join(changed[:SOME]) + (" ..." if len(changed) > SOME else "")
        code = f"code of {name} ({named})"
        yield Difference(code, digest.of_value(was), digest.of_value(is_now), free=name == CORE)


def _may_differ(key: str) -> bool:
    """Return whether a setting only says where something is, is computed or is observed."""
    parts = _in_stage(key)
    of_teacher = parts[0] == "teachers" and ".".join(parts[2:]) in OF_TEACHER
    return of_teacher or parts[0] in ("parallel", "tracking", "probe") or ".".join(parts) in PLACES


def _is_interval(key: str) -> bool:
    table, *names = _in_stage(key)
    return table == "training" and names[-1] in INTERVALS


def _in_stage(key: str) -> list[str]:
    """Return the parts of a dotted key without the name of a stage."""
    parts = key.split(".")
    return parts[2:] if parts[0] == "stages" else parts


def _shown(value: Any) -> str:
    return NONE if value is None else json.dumps(value)
