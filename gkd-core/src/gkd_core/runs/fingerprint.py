"""The key of a stage: a hash of everything that decides the student that comes of it.

Two stages with one key make one student, whatever runs they are in. Where the weights live and how
many processes share the work is not part of it: that changes sums in their last digits only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from gkd_core.training.stage_spec import BASELINE

if TYPE_CHECKING:
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec, TeacherSource

APART = {"recipe", "procedure", "stages", "output", "baseline", "parallel", "task"}
"""Settings that decide nothing, or that other parts of a key stand for."""

PLACES = {"model", "placement", "tensor", "trust_remote_code", "new_student"}
"""Settings of a model that say where it is and comes from; its content is hashed."""

LEARNT_FROM = ("rows", "mask_share")
"""Settings of a task that are not in the fingerprint of its rows."""

CONTENT = ("*.safetensors", "*.json", "*.txt", "*.model", "*.py")
"""Files of a model."""

LIBRARIES = ("torch", "transformers")
BLOCK = 2**20


@dataclass(frozen=True)
class StageKey:
    """A key, part by part.

    Attributes:
        settings: Methods, options, optimisation, the shape of the student, the seed.
        data: The rows.
        models: The teachers and what the student starts from.
        code: gkd, the plugins, and the libraries that compute.
    """

    settings: str
    data: str
    models: str
    code: str

    def __str__(self) -> str:
        return _hash(asdict(self))

    def changed(self, before: StageKey) -> list[str]:
        """Return the parts that differ from those of another key."""
        names = [field.name for field in fields(self)]
        return [name for name in names if getattr(self, name) != getattr(before, name)]


class Keys:
    """Makes the keys of a run's stages; what several have in common is hashed once.

    Args:
        registry: The plugins.
    """

    def __init__(self, registry: Registry) -> None:
        self._code = _hash([_code(registry), *(f"{n} {version(n)}" for n in LIBRARIES)])
        self._known: dict[str, StageKey] = {}
        self._places = functools.cache(_place)

    def of(self, spec: StageSpec) -> StageKey:
        """Return the key of a stage."""
        if spec.name not in self._known:
            data = spec.data
            self._known[spec.name] = StageKey(
                settings=_hash(_settings(spec)),
                data=_hash([data.fingerprint, data.kind, list(data.classes)]),
                models=_hash(self._models(spec)),
                code=self._code,
            )
        return self._known[spec.name]

    def _models(self, spec: StageSpec) -> list[str]:
        teachers = spec.teachers if spec.loads_teachers else ()
        found = [self._teacher(teacher) for teacher in teachers]
        found.append(_vocabulary(spec.tokenizer))
        own = spec.config.student.model
        if spec.follows is not None:
            which = "untrained" if spec.name == BASELINE else spec.follows.kept_student
            found.append(f"{which} {self.of(spec.follows)}")
        elif own is not None:
            found.append(self._places(own, _revision(spec.student_config)))
        return found

    def _teacher(self, teacher: TeacherSource) -> str:
        if teacher.stage is not None:
            return str(self.of(teacher.stage))
        if teacher.store is not None:
            return teacher.store.key
        return self._places(teacher.model, _revision(teacher.config))


def digest(paths: Iterable[Path]) -> str:
    """Return a hash over the names and the content of files."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                found.update(block)
    return found.hexdigest()[:16]


def model_digest(directory: Path) -> str:
    """Return a hash over the weights, the configuration and the tokenizer of a saved model."""
    return digest({path for pattern in CONTENT for path in directory.glob(pattern)})


def _settings(spec: StageSpec) -> dict[str, Any]:
    config, expression = spec.config, spec.expression
    tree: dict[str, Any] = config.model_dump(mode="json", exclude=APART)
    tree["student"] = _without_places(tree["student"])
    tree["teachers"] = [_without_places(teacher) for teacher in tree["teachers"]]
    names = {*expression.names, *(ensemble.name for ensemble in spec.ensembles)}
    options = {n: config.options[n].model_dump(mode="json") for n in names & set(config.options)}
    task = {name: getattr(config.task, name) for name in LEARNT_FROM}
    shape = {k: v for k, v in spec.student_config.to_dict().items() if not k.startswith("_")}
    shape.pop("transformers_version", None)
    return tree | {
        "stage": spec.name,
        "options": options,
        "task": {**task, "max_length": spec.max_length},
        "shape": shape,
    }


def _without_places(model: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name not in PLACES}


def _place(model: str, revision: str) -> str:
    """Return what a directory holds, or which revision of a hub model is meant."""
    path = Path(model).expanduser()
    return model_digest(path) if path.is_dir() else f"{model} {revision}"


def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return what a tokenizer does to a text, whatever length it has cut one to."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({k: v for k, v in content.items() if k not in ("truncation", "padding")})


def _revision(config: PretrainedConfig) -> str:
    return str(getattr(config, "_commit_hash", None) or "")


def _code(registry: Registry) -> str:
    """Return a hash over the sources of gkd and of every plugin."""
    plugins = (registry.manager.get_plugin(name) for name in registry.plugins)
    names = {str(getattr(p, "__name__", type(p).__module__)).partition(".")[0] for p in plugins}
    return _hash([_package(name) for name in sorted({"gkd_core", *names})])


@functools.cache
def _package(name: str) -> str:
    """Return a hash over the sources of a package, or of a module that stands alone."""
    module = sys.modules.get(name)
    file = Path(getattr(module, "__file__", None) or "")
    if file.name == "__init__.py":
        return digest(file.parent.rglob("*.py"))
    return digest([file]) if file.is_file() else name


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
