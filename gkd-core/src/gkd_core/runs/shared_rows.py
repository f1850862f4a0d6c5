"""`SharedRows`: the rows of a run's stages, read once and split consistently."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from gkd_core.config.resolve import ResolvedStage
from gkd_core.config.schema import LM, RunConfig, TaskConfig, task_name
from gkd_core.contract.task import Task, TaskData
from gkd_core.data.assemble import without_labels
from gkd_core.data.stored_rows import stored_rows
from gkd_core.kinds.language_model import language_model_kind
from gkd_core.models.quantized import dequantized
from gkd_core.models.source import load_config
from gkd_core.runs.task_checks import check_loaded

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec

ELSEWHERE = (
    "rows",
    "classes",
    "max_length",
    "mask_share",
    "packing",
    "augment",
    "augment_model",
    "augment_share",
    "augment_candidates",
    "default_teacher",
)
"""Settings of a task that do not change which rows are read."""


@dataclass(frozen=True)
class ModelFacts:
    """The known facts about the models at the start of a stage.

    Attributes:
        kind: Name of the kind that they were made for; None if they do not say.
        classes: Names of their classes.
    """

    kind: str | None = None
    classes: tuple[str, ...] = ()


NOTHING_KNOWN = ModelFacts()


class SharedRows:
    """Reads the rows of stages, splitting those that several stages name in the same way.

    No stage may learn from text on which another validates. The rows of a labeled task are
    therefore split with their labels, even for language modeling, which then drops the labels.

    Args:
        registry: The plugins.
        tasks: The tasks of the run's stages.
    """

    def __init__(self, registry: Registry, tasks: Iterable[TaskConfig]) -> None:
        self.registry = registry
        self._plain = {name for name, kind in registry.kinds.items() if kind.is_lm}
        labeled = (task for task in tasks if task.kind not in {LM, *self._plain})
        self._labeled = list(dict.fromkeys(_rows(task, task.kind) for task in labeled))
        self._data: dict[tuple[TaskConfig, str, str, ModelFacts], TaskData] = {}

    def load(
        self, settings: ResolvedStage, relative: StageSpec | None, model: ModelFacts
    ) -> TaskData:
        """Return the rows of a stage.

        Args:
            settings: Its configuration.
            relative: A stage whose student belongs to the same family as its models, if any.
            model: What is known of its models; their kind decides only if it is not configured.

        Raises:
            GkdError: The task or one of its rows is invalid.
        """
        task = settings.config.task
        plain = _plain_kind(settings, relative)
        name = plain if task.kind == LM else task.kind
        task = task.model_copy(update={"kind": name})
        self.task(settings.config, task).check()
        for labeled in self._labeled:
            if name in self._plain and _rows(task, labeled.kind) == labeled:
                data = self._read(settings.config, labeled, plain)
                return data if data.kind == name else without_labels(data, name)
        known = model if name is None else replace(model, kind=None)
        return self._read(settings.config, _rows(task, name), plain, known)

    def task(self, config: RunConfig, task: TaskConfig, model: ModelFacts = NOTHING_KNOWN) -> Task:
        """Return a task with its options.

        Args:
            config: The configuration, with the options.
            task: The configuration of the task.
            model: What is known of the models at the start.
        """
        name = task_name(task)
        options = config.options.get(name)
        return self.registry.task(name)(
            task, self.registry.kinds, options, model.kind, model.classes
        )

    def _read(
        self, config: RunConfig, rows: TaskConfig, plain: str, model: ModelFacts = NOTHING_KNOWN
    ) -> TaskData:
        # Stages that share rows must share the split: the seed of the first to read them applies.
        task = self.task(config, rows, model)
        key = (rows, plain, task.options.model_dump_json(), model)
        if key not in self._data:
            about = [rows.model_dump(mode="json"), plain, key[2], config.seed, asdict(model)]
            classes = [type(task), *map(type, self.registry.kinds.values())]
            self._data[key] = stored_rows(
                task.files(),
                about,
                classes,
                lambda: check_loaded(task, task.load(plain, config.seed)),
            )
        return self._data[key]


def _rows(task: TaskConfig, kind: str | None) -> TaskConfig:
    unset = {name: TaskConfig.model_fields[name].default for name in ELSEWHERE}
    return task.model_copy(update=unset | {"kind": kind})


def _plain_kind(settings: ResolvedStage, relative: StageSpec | None) -> str:
    """Return the kind of task for plain text: the kind of the model that the stage starts from."""
    config = settings.config
    if config.task.kind is not None and config.task.kind != LM:
        return config.task.kind
    start = _start(settings, relative)
    if start is None:
        return "causal-lm" if config.task.default_teacher == "decoder" else "masked-lm"
    return language_model_kind(start)


def _start(settings: ResolvedStage, relative: StageSpec | None) -> PretrainedConfig | None:
    """Return the configuration of the model that the stage starts from; None if it is not made."""
    if relative is not None:
        return relative.student_config
    config = settings.config
    own = config.student.model is not None
    named = config.student if own else config.teachers[0]
    if named.model is None:
        return None
    setting = settings.path("student.model" if own else "teacher.model")
    model = named.model if own else dequantized(named.model, setting)
    return load_config(model, named.trust_remote_code, setting)
