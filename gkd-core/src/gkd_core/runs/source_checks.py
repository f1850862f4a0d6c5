"""Checks of teachers whose answers come from an `AnswerSource`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gkd_core.distributed.device import pick_device
from gkd_core.errors import ConfigError
from gkd_core.hooks.paths import LOGITS, MAIN
from gkd_core.runs.belongs import belongs
from gkd_core.teachers.cached import Cached
from gkd_core.teachers.served import Served
from gkd_core.training.stage_rows import read_by

if TYPE_CHECKING:
    from gkd_core.objective.step_plan import PlannedPass
    from gkd_core.teachers.source import AnswerSource
    from gkd_core.training.stage_spec import StageSpec, TeacherSpec


def check_sources(spec: StageSpec) -> None:
    """Reject methods that ask a teacher for what the source of its answers does not have.

    Raises:
        ConfigError: Says which method, what it asks for, and why it cannot be given.
    """
    sources = {n: (t, t.source) for n, t in enumerate(spec.teachers) if t.source is not None}
    if not sources or not spec.reads_teachers:
        return
    for number, (teacher, source) in sources.items():
        if isinstance(source, Cached):
            source.check_belongs(belongs(spec, number))
        if source.next_words and (spec.kind.masks or not spec.kind.is_lm):
            wish = f"the task is {spec.kind}"
            raise _refusal(wish, "it predicts the next word", teacher, source)
        source.check()
        _check_rollouts(spec, number, teacher, source)
        _check_borrowed(spec, number, teacher, source)
        _check_head(spec, number, teacher, source)
        for plan in spec.sampled_steps:
            for planned in plan.passes:
                _check_changes(planned, number, teacher, source)
                _check_captures(planned, number, teacher, source)
                _check_truncation(planned, number, teacher, source)


def check_later_answers(specs: Sequence[StageSpec]) -> None:
    """Reject a cache that lacks rows of a later stage, or files, before an earlier one is trained.

    Args:
        specs: The stages that are not finished, in order.

    Raises:
        DataError: Says how many rows, or which file.
    """
    for spec in specs[1:]:
        for number, teacher in enumerate(spec.teachers if spec.reads_teachers else ()):
            if isinstance(teacher.source, Cached) and not spec.is_written:
                device = pick_device(spec.config.parallel.device)
                teacher.source.check_rows(*read_by(spec, number, device))


def source_notes(spec: StageSpec) -> Iterator[str]:
    """Yield the way in which each server of a teacher is asked."""
    for teacher in spec.teachers:
        if isinstance(teacher.source, Served) and spec.reads_teachers:
            yield (
                f"{teacher.source.config.url} is asked for the likeliest words of "
                f"'{teacher.info.name}' by {teacher.source.way.name}"
            )


def _check_rollouts(
    spec: StageSpec, number: int, teacher: TeacherSpec, source: AnswerSource
) -> None:
    config = spec.config.rollout
    if config is not None and number == 0 and config.uses_teacher:
        if config.mixture or not isinstance(source, Served):
            setting = "rollout.mixture" if config.mixture else "rollout.teacher"
            reason = "there is no model that could"
            raise _refusal(f"{setting} makes the teacher write", reason, teacher, source)
        source.check_tokens()
    if config is not None and not source.any_text:
        reason = "it knows only the text of the training rows"
        raise _refusal("rollout has models write text", reason, teacher, source)


def _check_borrowed(
    spec: StageSpec, number: int, teacher: TeacherSpec, source: AnswerSource
) -> None:
    for member in spec.members:
        if member.takes_teacher and member.methods[number].borrows_blocks:
            reason = "no model is loaded whose blocks could run"
            raise _refusal(f"{member.name} runs blocks of the teacher", reason, teacher, source)


def _check_head(spec: StageSpec, number: int, teacher: TeacherSpec, source: AnswerSource) -> None:
    for member in spec.members:
        applies = member.takes_teacher and member.methods[number].applies_head
        if applies and not source.gives_head():
            raise _refusal(
                f"{member.name} applies the head of the teacher",
                "its logits come without one",
                teacher,
                source,
            )


def _check_changes(
    planned: PlannedPass, number: int, teacher: TeacherSpec, source: AnswerSource
) -> None:
    for request, write in planned.writes("teacher", number):
        wish = f"{request.member.name} changes {write.operation.site}"
        raise _refusal(wish, "no forward pass is made that could be changed", teacher, source)


def _check_captures(
    planned: PlannedPass, number: int, teacher: TeacherSpec, source: AnswerSource
) -> None:
    for capture in sorted(planned.captures("teacher", number), key=str):
        wish = (
            f"{' and '.join(planned.readers(capture, 'teacher', number))} reads teacher.{capture}"
        )
        if planned.name != MAIN:
            reason = "it answers about the batch alone"
            raise _refusal(f"{wish} in the pass '{planned.run}'", reason, teacher, source)
        missing = source.missing(capture)
        if missing is not None:
            raise _refusal(wish, missing, teacher, source)


def _check_truncation(
    planned: PlannedPass, number: int, teacher: TeacherSpec, source: AnswerSource
) -> None:
    temperature = source.truncated_at()
    if temperature is None:
        return
    for request in planned.requests_of(number):
        if LOGITS not in request.captures("teacher", planned.run):
            continue
        name, wanted = request.member.name, request.softens_at
        reason = (
            f"its likeliest words at temperature {temperature:g}, and the mass of all others, do "
            "not determine "
        )
        if wanted is None:
            wish = f"{name} needs teacher.logits as a whole"
            raise _refusal(wish, f"{reason}them", teacher, source)
        for other in sorted(set(wanted) - {temperature}):
            wish = f"{name} divides teacher.logits by a temperature of {other:g}"
            raise _refusal(
                wish,
                f"{reason}those at another. Set {name}.temperature = {temperature:g}",
                teacher,
                source,
            )


def _refusal(wish: str, reason: str, teacher: TeacherSpec, source: AnswerSource) -> ConfigError:
    setting = f"{teacher.setting.rpartition('.')[0]}.source"
    remedy = f"remove {setting} to run the model"
    if setting.startswith("stages."):
        remedy = (
            "name the source for the other stages only (stages.NAME.teacher.source) to run the "
            "model in this one"
        )
    return ConfigError(
        f"{wish}, but the answers of the teacher '{teacher.info.name}' come from '{source.name}' "
        f"({setting}): {reason}. Ask for less, or {remedy}"
    )
