"""Which methods need a teacher that reads the same token ids as the student."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gkd_core.contract.model_info import ModelInfo, Models
from gkd_core.contract.schedule import ALWAYS_1
from gkd_core.errors import ConfigError
from gkd_core.models.tokenizer import tokenizer_mismatch
from gkd_core.objective.step_plan import ActiveMethod, sample_steps

if TYPE_CHECKING:
    from collections.abc import Collection

    from gkd_core.contract.method import Method
    from gkd_core.contract.model_info import Predicted
    from gkd_core.hooks.paths import Capture
    from gkd_core.objective.step_plan import Side, StepRequest
    from gkd_core.training.stage_spec import StageSpec, TeacherSpec


EXAMPLE = Models(
    ModelInfo("student", "bert", 6, 768, 12, 12, 64, 3072, 30522, 2, 512),
    ModelInfo("teacher", "bert", 12, 768, 12, 12, 64, 3072, 30522, 2, 512),
)
"""Shapes for which a method is asked what it reads where there are no models."""


def check_tokenizers(spec: StageSpec) -> None:
    """Reject methods that compare the tokens of a student and a teacher with other tokens.

    Raises:
        ConfigError: Says which method, what it compares, and how the tokenizers differ.
    """
    _check_aligned(spec)
    if spec.data.train.chat and spec.needs_byte_offsets:
        _check_templates(spec)
    others = {n: t for n, t in enumerate(spec.teachers) if t.tokenizer is not spec.tokenizer}
    if not others or not spec.reads_teachers:
        return
    if spec.config.rollout is not None:
        written = "rollout has text written in the student's tokens"
        raise ConfigError(
            f"{written}, but {_difference(spec, next(iter(others.values())))}. Remove the rollout "
            "table, or choose a student of the teacher's family"
        )
    for plan in spec.sampled_steps:
        for request in (one for requests in plan.requests.values() for one in requests):
            teacher = others.get(request.number)
            reason = _need(request, spec.kind.predicted)
            if teacher is not None and request.member.takes_teacher and reason:
                raise ConfigError(_refusal(spec, request.member.name, teacher, reason))


def _check_aligned(spec: StageSpec) -> None:
    """Reject methods that align tokens by their text where the text is only written in a step."""
    aligning = [member.name for member in spec.members if member.methods[0].aligns]
    if aligning and spec.config.rollout is not None:
        raise ConfigError(
            f"{aligning[0]} aligns tokens by their place in the text, which is unknown for text "
            "that models write. Remove the rollout table, or use another method"
        )


def _check_templates(spec: StageSpec) -> None:
    """Reject conversations that a tokenizer has no template for where tokens are aligned."""
    readers = [(t.setting, t.own_tokenizer or t.tokenizer) for t in spec.teachers]
    for name, tokenizer in [("the student", spec.tokenizer), *readers]:
        if tokenizer.chat_template is None:
            raise ConfigError(
                f"{spec.data.source} has conversations, which the chat template of each tokenizer "
                f"writes where tokens are aligned, but that of {name} has none. Save one with it "
                "(`chat_template`), or choose methods that do not align tokens and a student with "
                "the teacher's tokenizer"
            )


def tokenizer_need(method: type[Method]) -> str:
    """Return the tokenizer that a teacher of a method needs, by default options, as text."""
    alone = method.teachers == "none"
    models = Models(EXAMPLE.student, None if alone else EXAMPLE.teacher)
    member = ActiveMethod(method.name, ALWAYS_1, (method(),), (models,), torch.Generator())
    plans = sample_steps([member], "example")
    requests = [one for plan in plans for one in plan.requests[method.name]]
    if any(_need(one, "sample") for one in requests):
        return "the student's"
    if any(_need(one, "token") for one in requests):
        return "the student's where tokens are predicted, any in other tasks"
    return "any"


def is_per_position(capture: Capture, predicted: Predicted) -> bool:
    """Return whether a tensor has values for each position, and not one per row."""
    if capture.site == "logits":
        return predicted != "sample"
    return capture.site != "pooled" and not capture.reduce


def _need(request: StepRequest, predicted: Predicted) -> str:
    """Return the reason that a method needs the same token ids; empty if it does not."""
    method = request.member.methods[0]
    for own in request.passes:
        if own.inputs is not None and request.captures("teacher", own.name):
            return f"makes the inputs of its pass '{own.name}' from the student's tokens"
    if method.aligns:
        return ""
    if method.same_tokenizer:
        return "needs a teacher with the student's tokenizer"
    learned, known = (_positions(request, side, predicted) for side in ("student", "teacher"))
    if known and learned:
        return f"compares student.{min(learned)} and teacher.{min(known)} position by position"
    if known and method.needs_labels and predicted != "sample":
        return f"compares teacher.{min(known)} with the labels, which are the student's tokens"
    return ""


def _positions(request: StepRequest, side: Side, predicted: Predicted) -> Collection[Capture]:
    """Return the features that a method reads of a model at each position, in any pass."""
    reads = request.reads.student if side == "student" else request.reads.teacher
    return [one for found in reads.values() for one in found if is_per_position(one, predicted)]


def _refusal(spec: StageSpec, method: str, teacher: TeacherSpec, reason: str) -> str:
    return (
        f"{method} {reason}, but {_difference(spec, teacher)}. Choose a student of the teacher's "
        "family, or methods that compare whole rows, such as pkd"
    )


def _difference(spec: StageSpec, teacher: TeacherSpec) -> str:
    """Return a sentence on how the tokenizers of a teacher and the student differ."""
    difference = tokenizer_mismatch(teacher.tokenizer, spec.tokenizer)
    return (
        f"{teacher.setting} = '{teacher.model}' and {_student(spec)} have different tokenizers: "
        f"{difference}"
    )


def _student(spec: StageSpec) -> str:
    """Return a sentence on the origin of the student's tokenizer."""
    if spec.follows is not None:
        return f"the student of stage '{spec.follows.name}'"
    if spec.config.student.model is not None:
        return f"student.model = '{spec.config.student.model}'"
    return f"the student, which is made from {spec.teachers[0].setting},"
