"""Everything that determines the student of a stage, by name, for the manifests of its checkpoints.

What a fingerprint hashes has names here, so that a resumed run can say what differs.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gkd_core
from gkd_core import digest
from gkd_core.config.resolve import ONLY_STAGE, Resolved
from gkd_core.data.stored_rows import hash_split
from gkd_core.models.content import ModelContents
from gkd_core.models.source import load_config
from gkd_core.named_path import named_path
from gkd_core.plugins import Registry
from gkd_core.runs.fingerprint import LIBRARIES, PEFT, revision, vocabulary
from gkd_core.runs.named_content import named_content
from gkd_core.training.augmentation import SETTING, copies
from gkd_core.training.manifest import Inputs
from gkd_core.training.participants import stage_code
from gkd_core.training.stage_spec import StageSpec, TeacherSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SETTINGS = "settings"
CONTENT = "content"
CODE = "code"
VERSIONS = "versions"
CORE = "gkd-core"


class InputReader:
    """Reads what determines the students of a run.

    Args:
        resolved: The configuration of the run.
        registry: The plugins.
        contents: Reads the files of models.
    """

    def __init__(self, resolved: Resolved, registry: Registry, contents: ModelContents) -> None:
        self.registry = registry
        self.contents = contents
        self.settings = resolved.values()

    def read(self, spec: StageSpec, start: Path | None) -> Inputs:
        """Return everything that determines the student of a stage.

        Args:
            spec: The spec of the stage, whose teachers are trained.
            start: The student of an earlier stage with which it starts.
        """
        code = stage_code(spec, self.registry)
        return {
            SETTINGS: self.settings,
            CONTENT: dict([*_rows(spec), *_tokenizers(spec), *self._models(spec, start)])
            | named_content(spec, self.registry),
            CODE: code,
            VERSIONS: _versions(self.registry, code) | _of_adapters(spec),
        }

    def _models(self, spec: StageSpec, start: Path | None) -> Iterator[tuple[str, str]]:
        """Yield the files of every model that the stage reads."""
        for number, teacher in enumerate(spec.teachers):
            yield from self._teacher(teacher, spec.reads_weights(number))
        config, name = spec.config, spec.settings.path
        if start is not None and spec.follows is not None:
            yield from self._files(f"student of stage {spec.follows.name}", start)
        elif spec.follows is not None:  # the baseline starts as that stage did
            yield from self._models(spec.follows, None)
        elif config.student.model is not None:
            model = config.student.model
            yield from self._model(name("student.model"), model, spec.student_config)
        if copies(config, spec.kind) and config.task.augment_model is not None:
            model = config.task.augment_model
            yield from self._model(name(SETTING), model, load_config(model, False, SETTING))

    def _teacher(self, teacher: TeacherSpec, weights: bool) -> Iterator[tuple[str, str]]:
        if teacher.source is not None:
            yield f"{teacher.setting}: answers", teacher.source.fingerprint()
        yield from self._model(teacher.setting, teacher.trained, teacher.config, weights)

    def _model(
        self, name: str, model: str, config: PretrainedConfig, weights: bool = True
    ) -> Iterator[tuple[str, str]]:
        place = named_path(model)
        if place.is_dir():
            yield from self._files(name, place, weights)
        else:
            yield name, f"{model} {revision(config)}"

    def _files(self, name: str, directory: Path, weights: bool = True) -> Iterator[tuple[str, str]]:
        for file, content in self.contents.files(directory, weights).items():
            yield f"{name}: {file}", str(content)


def _rows(spec: StageSpec) -> Iterator[tuple[str, str]]:
    """Yield the rows from which the student learns and by which the best one is chosen."""
    data, of_stage = spec.data, _of_stage(spec)
    yield f"kind of task{of_stage}", data.kind
    yield f"classes{of_stage}", ", ".join(data.classes)
    for name, split in (("training", data.train), ("validation", data.validation)):
        content = hash_split(data.kind, data.classes, name, split)
        yield f"{name} rows{of_stage}", f"{len(split):,}, SHA-256 {content[: digest.SHORT]}"


def _tokenizers(spec: StageSpec) -> Iterator[tuple[str, str]]:
    """Yield the tokenizers of the student and of teachers that have another."""
    of_stage = _of_stage(spec)
    yield f"tokenizer of the student{of_stage}", digest.of_value(vocabulary(spec.tokenizer))
    for tokenizer, teachers in spec.other_tokenizers:
        names = ", ".join(teacher.info.name for teacher in teachers)
        yield f"tokenizer of {names}{of_stage}", digest.of_value(vocabulary(tokenizer))


def _of_stage(spec: StageSpec) -> str:
    return "" if spec.name == ONLY_STAGE else f" of stage {spec.name}"


def _of_adapters(spec: StageSpec) -> dict[str, str]:
    """Return the version of the library of adapters, if the student has some."""
    return {} if spec.config.student.lora is None else {PEFT: version(PEFT)}


def _versions(registry: Registry, code: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of Python, of numerical libraries and of the packages with the code."""
    found = {"Python": platform.python_version(), CORE: gkd_core.__version__}
    found |= {name: version(name) for name in LIBRARIES}
    plugins = registry.plugins.values()
    return found | {p.distribution: p.version for p in plugins if p.distribution in code}
