"""Settings that are incompatible with a teacher that reads other prompts or follows the student."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from gkd_core.config.schema import named_in
from gkd_core.data.encode_chats import has_answers
from gkd_core.errors import ConfigError

if TYPE_CHECKING:
    from gkd_core.config.schema import TeacherConfig
    from gkd_core.training.stage_spec import StageSpec, TeacherSpec


def check_self_teaching(spec: StageSpec) -> None:
    """Reject teachers with a prompt of their own, or that move, where that cannot be.

    Raises:
        ConfigError: Says which setting it is, and what it does not go with.
    """
    for teacher, settings in zip(spec.teachers, spec.config.teachers, strict=False):
        setting = teacher.setting.removesuffix("model")
        if settings.prompt is not None:
            reason = next(_against_prompt(spec, teacher, named_in(settings.prompt)), None)
            _refuse(spec, f"{setting}prompt", reason)
        if settings.follow is not None:
            reason = next(_against_following(spec, teacher, settings), None)
            _refuse(spec, f"{setting}follow", reason)


def _refuse(spec: StageSpec, setting: str, reason: str | None) -> None:
    if reason is not None:
        raise ConfigError(f"{setting} ({spec.origin(setting)}): {reason}")


def _against_prompt(spec: StageSpec, teacher: TeacherSpec, named: Collection[str]) -> Iterator[str]:
    train = spec.data.train
    if not spec.kind.generates:
        yield f"rows of {spec.kind} have no prompts. Use task.kind = 'causal-lm'"
    if "context" in named and train.context is None:
        yield (
            f"it has {{context}}, but the rows of {spec.data.source} have none. Name its column "
            "(task.context)"
        )
    if train.context is not None and "context" not in named:
        yield (
            f"it has no {{context}}, so that no model reads task.context "
            f"({spec.origin('task.context')}). Write it into the prompt, or remove task.context"
        )
    if train.target is None and ("answer" in named or has_answers(train)):
        yield (
            f"the rows of {spec.data.source} have no prompts with an answer each, which the "
            "teacher would be shown. Give columns such as prompt and response (task.target)"
        )
    if teacher.tokenizer is not spec.tokenizer:
        yield "the teacher reads what the student wrote, so it needs the student's tokenizer"
    if teacher.source is not None:
        yield "the teacher must be a live model, not a source of answers"
    if spec.config.task.packing:
        yield "rows that are packed have no prompt each. Set task.packing = false"
    if spec.config.rollout is not None and spec.config.rollout.mixture:
        yield (
            "what the student writes is not drawn with a teacher that reads another prompt. "
            "Remove rollout.mixture"
        )
    names = [o.name for o in spec.owners if not o.methods[0].other_prompts]
    if names:
        yield (
            f"{names[0]} compares teacher and student position by position, but the answers begin "
            "at another one behind the teacher's prompt. Use the method sdft"
        )


def _against_following(
    spec: StageSpec, teacher: TeacherSpec, settings: TeacherConfig
) -> Iterator[str]:
    parallel = spec.config.parallel
    if teacher.source is not None:
        yield "the teacher must be a live model, not a source of answers"
    if replace(spec.student, name=teacher.info.name) != teacher.info:
        yield (
            "weights can only follow those of a student of the same shape. Leave out "
            "student.layers, and give the same model as teacher and student"
        )
    if spec.config.student.lora is not None:
        yield (
            "the weights of a student with adapters stay as they are, and the teacher has no "
            "adapters that could follow. Remove student.lora, or teacher.follow"
        )
    if parallel.zero == 3:
        yield "the student's weights are sharded by parallel.zero = 3. Use at most 2"
    if teacher.tensor != parallel.tensor:
        yield (
            f"the teacher is divided over {teacher.tensor} processes and the student over "
            f"{parallel.tensor}. Set parallel.tensor alone"
        )
    if teacher.placement != "replicated" or settings.dtype != "fp32":
        yield "the teacher must be replicated, in fp32 (teacher.placement, teacher.dtype)"
    if settings.keep in ("memory", "disk", "share"):
        yield "answers of a teacher that changes cannot be kept. Set teacher.keep = 'auto'"
