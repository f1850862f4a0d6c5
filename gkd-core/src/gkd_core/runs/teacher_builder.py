"""`TeacherBuilder`: finds the teachers of a stage, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gkd_core.config.graph import STAGE
from gkd_core.config.schema import task_name
from gkd_core.contract.model_info import ModelInfo
from gkd_core.errors import ConfigError
from gkd_core.kinds.language_model import sees_both_sides
from gkd_core.models.quantized import dequantized
from gkd_core.models.source import load_config
from gkd_core.runs.default_teacher import default_teacher_store
from gkd_core.training.stage_spec import StageSpec, TeacherSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

    from gkd_core.config.resolve import ResolvedStage
    from gkd_core.config.schema import RunConfig, TeacherConfig, TeacherSize
    from gkd_core.contract.task import DefaultTeacher, TaskData
    from gkd_core.plugins import Registry
    from gkd_core.runs.shared_rows import SharedRows
    from gkd_core.teachers.source import AnswerSource


class TeacherBuilder:
    """Finds the teachers of a run's stages.

    Args:
        registry: The plugins.
        rows: The rows of the run, from which the default teacher of a task learns.
        load_tokenizer: Returns the tokenizer of a model, given whether code that comes with it may
            run, and the setting that names it.
    """

    def __init__(
        self,
        registry: Registry,
        rows: SharedRows,
        load_tokenizer: Callable[[str, bool, str], PreTrainedTokenizerFast],
    ) -> None:
        self._registry = registry
        self._rows = rows
        self._load_tokenizer = load_tokenizer

    def build(
        self,
        settings: ResolvedStage,
        data: TaskData,
        follows: StageSpec | None,
        stages: Sequence[StageSpec | None],
    ) -> list[TeacherSpec]:
        """Return the teachers of a stage.

        Args:
            settings: The configuration of the stage.
            data: Its rows.
            follows: The stage whose student it continues with; None to create one.
            stages: For each teacher the stage whose student it is, or None; no teacher is built
                without an entry.

        Raises:
            GkdError: A teacher cannot be found, or is described by contradictory settings.
        """
        config = settings.config
        found = [
            self._teacher(teacher, settings, data, follows)
            if stage is None
            else self._taught_before(teacher, stage, settings, data)
            for teacher, stage in zip(config.teachers, stages, strict=False)
        ]
        return [
            replace(
                spec,
                tensor=teacher.tensor or config.parallel.tensor,
                placement=teacher.placement,
                source=self._answer_source(teacher, spec),
                is_shared=teacher.keep in ("share", "disk"),
            )
            for spec, teacher in zip(found, config.teachers, strict=False)
        ]

    def _teacher(
        self,
        teacher: TeacherConfig,
        settings: ResolvedStage,
        data: TaskData,
        follows: StageSpec | None,
    ) -> TeacherSpec:
        config = settings.config
        setting = teacher_setting(teacher, settings)
        store = None
        model = teacher.model
        if teacher.source is None and teacher.tokenizer is not None:
            raise ConfigError(
                f"{_tokenizer(setting)} is for a teacher whose answers come from elsewhere; a "
                f"model brings its own. Remove {_tokenizer(setting)}"
            )
        if teacher.source is not None and model is None:
            model, setting = self._described_by(teacher, config, setting)
        if model is None:
            store = default_teacher_store(
                self._default_teacher(config, teacher.size, data, follows, setting),
                data,
                config.task.max_length or self._rows.task(config, config.task).max_length,
            )
            model = str(store.trained if store.ready else store.untrained)
        model = dequantized(model, setting)
        found = load_config(model, teacher.trust_remote_code, setting)
        info = model_info(teacher.name, found, data, self._registry)
        tokenizer = self._load_tokenizer(
            teacher.tokenizer or model, teacher.trust_remote_code, setting
        )
        return TeacherSpec(info, setting, model, found, teacher.trust_remote_code, tokenizer, store)

    def _described_by(
        self, teacher: TeacherConfig, config: RunConfig, setting: str
    ) -> tuple[str, str]:
        """Return a model with the tokenizer of a teacher that is elsewhere, and its setting."""
        if teacher.tokenizer is not None:
            return teacher.tokenizer, _tokenizer(setting)
        if config.student.model is not None:
            return config.student.model, "student.model"
        raise ConfigError(
            f"the answers of the teacher '{teacher.name}' come from elsewhere (source), but "
            f"{setting} is not set, whose shape and tokenizer are needed. Set {setting} to the "
            "directory or hub id of the model that gave the answers, or give its tokenizer by "
            f"{_tokenizer(setting)} and the student by --student"
        )

    def _answer_source(self, teacher: TeacherConfig, found: TeacherSpec) -> AnswerSource | None:
        """Return the source of a teacher's answers; None if it is its model."""
        if teacher.source is None:
            return None
        kind = self._registry.answer_source(teacher.source.name)
        source = kind(kind.Config(**(teacher.source.model_extra or {})), found.info)
        source.tokenizer = found.tokenizer
        return source

    def _taught_before(
        self, teacher: TeacherConfig, stage: StageSpec, settings: ResolvedStage, data: TaskData
    ) -> TeacherSpec:
        """Return the student of an earlier stage as a teacher."""
        shape, setting = stage.student_config, teacher_setting(teacher, settings)
        info = model_info(teacher.name, shape, data, self._registry)
        place, trusts = f"{STAGE}{stage.name}", stage.trusts_student
        return TeacherSpec(info, setting, place, shape, trusts, stage.tokenizer, stage=stage)

    def _default_teacher(
        self,
        config: RunConfig,
        size: TeacherSize,
        data: TaskData,
        follows: StageSpec | None,
        setting: str,
    ) -> DefaultTeacher:
        """Return the task's default teacher, of the same family as a student to continue with."""
        task = config.task
        if follows is not None and task.default_teacher is None:
            family = "encoder" if sees_both_sides(follows.student_config) else "decoder"
            task = task.model_copy(update={"default_teacher": family})
        name = task_name(task)
        own = self._rows.task(config, task).default_teacher(data, size)
        if own is None:
            alone = "" if setting == "teacher.model" else f" (--set {setting}=DIR for one stage)"
            raise ConfigError(
                f"no teacher is given, and the task '{name}' has no default teacher. Give one with "
                f"--teacher DIR{alone}, or train a student on labels alone with --method hard "
                "--student DIR"
            )
        return own


def model_info(
    name: str, config: PretrainedConfig, data: TaskData, registry: Registry
) -> ModelInfo:
    """Return the shape of a model with a head for a task.

    Args:
        name: `student`, or the teacher's name.
        config: The configuration of the model.
        data: The rows of the task.
        registry: The plugins.
    """
    kind = registry.kind(data.kind)
    width = kind.width(data.classes, config)
    return ModelInfo.read(name, config, width, kind.predicted, kind.is_lm)


def teacher_setting(teacher: TeacherConfig, settings: ResolvedStage) -> str:
    """Return the setting with which a user names the model of a teacher."""
    several = len(settings.config.teachers) > 1
    return settings.path(f"teachers.{teacher.name}.model" if several else "teacher.model")


def _tokenizer(setting: str) -> str:
    """Return the setting of the tokenizer beside that of the model of a teacher."""
    return setting.removesuffix("model") + "tokenizer"
