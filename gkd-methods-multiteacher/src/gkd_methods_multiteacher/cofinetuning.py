"""Co-finetuning: teachers are first fine-tuned jointly on the labels, with a shared head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from gkd_core.api import (
    Batch,
    ConfigError,
    find_parts,
    hard_labels,
    load_weights,
    save_weights,
    tell,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gkd_core.api import GradientEngine, ItemKind, LoadedModel, StageInfo

TUNED = "teachers.safetensors"
"""File with the teachers' weights in the directory of an unfinished stage."""


def begin(stage: StageInfo, epochs: int) -> None:
    """Fine-tune a stage's teachers, or reload them if that has been done."""
    _refuse_elsewhere(stage)
    share_heads(stage.loaded_teachers)
    teachers = nn.ModuleList(teacher.model for teacher in stage.loaded_teachers)
    if tell((stage.directory / TUNED).exists()):
        load_weights(teachers, stage.directory / TUNED)
        return
    _fine_tune(stage, teachers, epochs)
    save_weights(teachers, stage.directory / TUNED)
    stage.say(f"teachers fine-tuned together: {', '.join(_performances(stage))}")


def share_heads(teachers: Sequence[LoadedModel]) -> None:
    """Share the first teacher's head (pooling and prediction) with all teachers.

    Args:
        teachers: Models of one architecture and width.
    """
    first, *others = teachers
    head = set(find_parts(first.sites)["head"])
    shared = {name: weight for name, weight in first.model.named_parameters() if weight in head}
    for other in others:
        for name, weight in shared.items():
            module, _, own = name.rpartition(".")
            setattr(other.model.get_submodule(module), own, weight)


def accumulate(
    engine: GradientEngine, teachers: nn.ModuleList, batch: Batch, counts: Mapping[ItemKind, int]
) -> None:
    """Accumulate the gradients of all teachers' losses on a micro-batch, one teacher at a time."""
    for teacher in teachers:
        engine.backward(engine.forward(partial(_loss, teacher, batch, counts)))


def _fine_tune(stage: StageInfo, teachers: nn.ModuleList, epochs: int) -> None:
    """Minimize the sum of the teachers' losses with the stage's optimizer settings."""
    teachers.requires_grad_(True).train()
    stage.train(teachers, accumulate, epochs, f"teachers of {stage.name}")
    teachers.requires_grad_(False).eval()


def _loss(teacher: PreTrainedModel, batch: Batch, counts: Mapping[ItemKind, int]) -> Tensor:
    logits = teacher(**batch.inputs).logits
    return batch.counted * hard_labels(logits, batch.require_labels(), batch.targets).mean(counts)


def _performances(stage: StageInfo) -> list[str]:
    """Return each teacher's metric on the validation rows."""
    values = [stage.evaluate_teacher(n)[stage.metric] for n in range(len(stage.teachers))]
    return [
        f"{teacher.name} {stage.metric} {value:.4f}"
        for teacher, value in zip(stage.teachers, values, strict=True)
    ]


def _refuse_elsewhere(stage: StageInfo) -> None:
    """Reject teachers that cannot be trained: not live, sharded, offloaded or not in fp32."""
    if len(stage.loaded_teachers) < len(stage.teachers) or stage.foreign_tokens:
        names = ", ".join(stage.foreign_tokens) or "a teacher"
        reason = "has another tokenizer" if stage.foreign_tokens else "is no model here"
        raise ConfigError(
            f"mt-bert.cofinetuning trains the teachers on the student's tokens, but {names} "
            f"{reason}. Set mt-bert.cofinetuning=0"
        )
    for teacher in stage.config.teachers:
        wanted = {
            "dtype": (teacher.dtype, "fp32"),
            "placement": (teacher.placement, "replicated"),
            "tensor": (teacher.tensor or stage.config.parallel.tensor, 1),
        }
        for name, (value, needed) in wanted.items():
            if value != needed:
                raise ConfigError(
                    f"mt-bert.cofinetuning trains the teachers, but {teacher.name} has {name} = "
                    f"{value!r}. Set teachers.{teacher.name}.{name} = {needed}"
                )
