"""The fingerprint of a stage: everything that determines its student.

Stages with the same fingerprint produce the same student in any run. The layout (where weights are
placed, how many processes share the work) is left out: it changes sums only in their last digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from gkd_core import digest
from gkd_core.contract.method_base import ADDED
from gkd_core.models.content import ModelContents, stated
from gkd_core.models.source import load_config
from gkd_core.named_path import named_path
from gkd_core.runs.named_content import named_content
from gkd_core.training.augmentation import SETTING, copies
from gkd_core.training.participants import stage_code
from gkd_core.training.stage_spec import BASELINE

if TYPE_CHECKING:
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec, TeacherSpec

APART = {
    *("recipe", "paper_values", "procedure", "stages", "output", "tracking", "probe", "samples"),
    *("baseline", "parallel", "task"),
}
"""Settings that do not affect the student, or that other parts of the fingerprint cover."""

PLACES = {"keep", "model", "placement", "source", "tensor", "tokenizer"}
PLACES |= {"trust_remote_code", "new_student"}
"""Settings of a model that say where it, or what it answers, is; content is hashed instead."""

LEARNT_FROM = ("rows", "mask_share")
"""Settings of a task that the hash of its rows does not cover."""

AUGMENTATION = ("augment", "augment_share", "augment_candidates")
"""Settings that determine the copies of rows, if there are any."""

SINCE_0_1: Mapping[tuple[str, ...], Any] = {
    ("optim",): {"name": "adamw", "options": {}},
    ("student", "lora"): None,
    ("student", "vocabulary"): None,
    ("training", "lr_decay_share"): 0.2,
    ("training", "lr_floor"): 0.0,
    ("training", "lr_power"): 2.0,
}
"""Settings that version 0.1 did not have, and the values with which a stage is trained as then.

At these values they are left out: the fingerprint of such a stage does not change.
"""

LIBRARIES = ("torch", "transformers")

PEFT = "peft"
"""The library of adapters, which a student need not have."""


@dataclass(frozen=True)
class StageFingerprint:
    """A fingerprint, part by part.

    Attributes:
        settings: Methods, options, optimization, the shape of the student, the seed.
        data: The rows.
        models: The teachers, the tokenizer, and the model that the student starts from.
        code: The code of gkd and of the plugins that take part, and the versions of numerical
            libraries.
    """

    settings: str
    data: str
    models: str
    code: str

    def __str__(self) -> str:
        return digest.of_value(asdict(self))

    def changed(self, before: StageFingerprint) -> list[str]:
        """Return the names of the parts that differ from an earlier fingerprint."""
        names = [field.name for field in fields(self)]
        return [name for name in names if getattr(self, name) != getattr(before, name)]


class Fingerprints:
    """The fingerprints of a run's stages; content that stages share is hashed once.

    Args:
        registry: The plugins.
        contents: Reads the files of models.
    """

    def __init__(self, registry: Registry, contents: ModelContents | None = None) -> None:
        self._registry = registry
        self._libraries = [f"{name} {version(name)}" for name in LIBRARIES]
        self._known: dict[str, StageFingerprint | None] = {}
        self._contents = ModelContents() if contents is None else contents

    def of(self, spec: StageSpec) -> StageFingerprint | None:
        """Return the fingerprint of a stage; None if one that it uses has none."""
        if spec.name not in self._known:
            self._known[spec.name] = self._read(spec)
        return self._known[spec.name]

    def settle(self, name: str, fingerprint: StageFingerprint | None) -> None:
        """Note with which fingerprint a stage was really trained.

        Args:
            name: Name of the stage.
            fingerprint: Its fingerprint; None if nothing tells what its student was made from.
        """
        self._known[name] = fingerprint

    def _read(self, spec: StageSpec) -> StageFingerprint | None:
        used = [teacher.stage for teacher in spec.teachers if spec.loads_teachers]
        if any(stage is not None and self.of(stage) is None for stage in (spec.follows, *used)):
            return None
        data, named = spec.data, named_content(spec, self._registry)
        return StageFingerprint(
            # Options that name nothing leave the fingerprint as it was.
            settings=digest.of_value(_settings(spec) | ({"named": named} if named else {})),
            data=digest.of_value([data.rows_hash, data.kind, list(data.classes)]),
            models=digest.of_value(self._models(spec)),
            code=digest.of_value([stage_code(spec, self._registry), self._versions(spec)]),
        )

    def _versions(self, spec: StageSpec) -> list[str]:
        adapted = spec.config.student.lora is not None
        return [*self._libraries, *([f"{PEFT} {version(PEFT)}"] if adapted else [])]

    def _models(self, spec: StageSpec) -> list[str]:
        teachers = spec.teachers if spec.loads_teachers else ()
        found = [self.of_teacher(teacher) for teacher in teachers]
        found.append(vocabulary(spec.tokenizer))
        own = spec.config.student.model
        if spec.follows is not None:
            which = "untrained" if spec.name == BASELINE else spec.follows.kept_student
            found.append(f"{which} {self.of(spec.follows)}")
        elif own is not None:
            found.append(self._model(own, spec.student_config))
        proposer = spec.config.task.augment_model
        if copies(spec.config, spec.kind) and proposer is not None:
            found.append(self._model(proposer, load_config(proposer, False, SETTING)))
        return found

    def of_teacher(self, teacher: TeacherSpec) -> str:
        """Return the inputs that determine the answers of a teacher."""
        if teacher.source is not None:
            return f"{teacher.source.name} {teacher.source.fingerprint()}"
        if teacher.stage is not None:
            return str(self.of(teacher.stage))
        if teacher.store is not None:
            return teacher.store.fingerprint
        return self._model(teacher.model, teacher.config)

    def _model(self, model: str, config: PretrainedConfig) -> str:
        """Return the content hash of a directory, or the id and revision of a hub model."""
        path = named_path(model)
        return self._contents.digest(path) if path.is_dir() else f"{model} {revision(config)}"


def _settings(spec: StageSpec) -> dict[str, Any]:
    config, expression = spec.config, spec.expression
    given: dict[str, Any] = config.model_dump(mode="json", exclude=APART)
    # An optional table that is not set does not count, so that new ones change no fingerprint.
    tree = _set(given)
    tree["student"] = _without_places(tree["student"])
    tree["teachers"] = [_set(_without_places(teacher)) for teacher in tree["teachers"]]
    used = {*expression.names, *(ensemble.name for ensemble in spec.ensembles), spec.task.name}
    options = {name: _options(config.options[name]) for name in used & set(config.options)}
    optim = config.optim.options.get(config.optim.name)
    tree["optim"]["options"] = {} if optim is None else optim.model_dump(mode="json")
    for (*tables, name), value in SINCE_0_1.items():
        table = tree[tables[0]] if tables else tree
        if table[name] == value:
            del table[name]
    names = (*LEARNT_FROM, *AUGMENTATION) if copies(config, spec.kind) else LEARNT_FROM
    task = {name: getattr(config.task, name) for name in names}
    if config.task.packing:
        task["packing"] = True
    return tree | {
        "stage": spec.name,
        "options": options,
        "task": {**task, "max_length": spec.max_length},
        "shape": stated(spec.student_config),
    }


def _options(options: BaseModel) -> dict[str, Any]:
    """Return the options of a method; those that it did not always have count if they are set."""
    added = {
        name
        for name, field in type(options).model_fields.items()
        if isinstance(field.json_schema_extra, dict)
        and field.json_schema_extra.get(ADDED)
        and getattr(options, name) == field.default
    }
    return options.model_dump(mode="json", exclude=added)


def _set(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a table that have a value."""
    return {name: value for name, value in table.items() if value is not None}


def _without_places(model: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name not in PLACES}


def vocabulary(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the tokenizer's definition, without truncation and padding, which calls change."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({k: v for k, v in content.items() if k not in ("truncation", "padding")})


def revision(config: PretrainedConfig) -> str:
    """Return the commit of a model of the hub; empty if it is not from there."""
    return str(getattr(config, "_commit_hash", None) or "")
