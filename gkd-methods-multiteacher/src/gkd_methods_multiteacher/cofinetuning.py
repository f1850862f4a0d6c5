"""Co-finetuning: teachers are first fine-tuned jointly on the labels, with a shared head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gkd_core.api import Batch, ConfigError, hard_labels, tell
from gkd_core.data.loader import iterate
from gkd_core.distributed.groups import data_rank
from gkd_core.evaluation.evaluate import evaluate
from gkd_core.models.parts import find_parts
from gkd_core.objective.objective import name_seed
from gkd_core.optim.engine import Engine, LocalEngine, count_items
from gkd_core.training.checkpoint import load_weights, save_weights
from gkd_methods_multiteacher.mt_bert import MTBERT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gkd_core.api import ItemKind, RunInfo
    from gkd_core.hooks.extraction import Extractor
    from gkd_core.training.stage import Stage

TUNED = "teachers.safetensors"
"""File with the teachers' weights in the directory of an unfinished stage."""


def begin(run: RunInfo, stage: Stage) -> None:
    """Fine-tune a stage's teachers if its `mt-bert` asks for it; a resumed run reloads them."""
    combiners = (ensemble.combiner for ensemble in stage.objective.ensembles)
    epochs = sum(c.config.cofinetuning for c in combiners if isinstance(c, MTBERT))
    if not epochs:
        return
    _refuse_elsewhere(stage)
    share_heads(stage.live_teachers)
    teachers = nn.ModuleList(teacher.model for teacher in stage.live_teachers)
    if tell((stage.directory / TUNED).exists()):
        load_weights(teachers, stage.directory / TUNED)
        return
    _fine_tune(stage, teachers, epochs)
    save_weights(teachers, stage.directory / TUNED)
    run.say(f"teachers fine-tuned together: {', '.join(_performances(stage))}")


def share_heads(teachers: Sequence[Extractor]) -> None:
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
    engine: Engine, teachers: nn.ModuleList, batch: Batch, counts: Mapping[ItemKind, int]
) -> None:
    """Accumulate the gradients of all teachers' losses on a micro-batch, one teacher at a time."""
    for teacher in teachers:
        engine.backward(engine.forward(partial(_loss, teacher, batch, counts)))


def _fine_tune(stage: Stage, teachers: nn.ModuleList, epochs: int) -> None:
    """Minimize the sum of the teachers' losses with the stage's optimizer settings."""
    config, device = stage.config, stage.engine.device
    total = epochs * stage.sampler.steps_per_epoch
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(name_seed(config.seed, f"teachers of {stage.name} {data_rank()}"))
        teachers.requires_grad_(True).train()
        engine = LocalEngine([teachers], config.training, total, device)
        steps = iterate(stage.train, stage.collator, stage.sampler, 0, total)
        for index, (_, batches) in enumerate(steps):
            counts = count_items(batches)
            for batch in batches:
                accumulate(engine, teachers, batch.to(device), counts)
            engine.step(index)
    teachers.requires_grad_(False).eval()


def _loss(teacher: PreTrainedModel, batch: Batch, counts: Mapping[ItemKind, int]) -> Tensor:
    assert batch.labels is not None, "mt-bert needs labels"
    logits = teacher(**batch.inputs).logits
    return batch.counted * hard_labels(logits, batch.labels, batch.targets).mean(counts)


def _performances(stage: Stage) -> list[str]:
    """Return each teacher's metric on the validation rows."""
    found = []
    for source, teacher in zip(stage.spec.teachers, stage.live_teachers, strict=True):
        rows = (stage.validation, stage.collator, stage.kind, stage.engine.device)
        value = evaluate(teacher.model, *rows).metrics[stage.metric.name]
        found.append(f"{source.info.name} {stage.metric.name} {value:.4f}")
    return found


def _refuse_elsewhere(stage: Stage) -> None:
    """Reject teachers that cannot be trained: not live, sharded, offloaded or not in fp32."""
    for teacher, source in zip(stage.config.teachers, stage.spec.teachers, strict=True):
        if source.source is not None or source.tokenizer is not None:
            reason = "is no model here" if source.tokenizer is None else "has another tokenizer"
            raise ConfigError(
                "mt-bert.cofinetuning trains the teachers on the student's tokens, but "
                f"{teacher.name} {reason}. Set mt-bert.cofinetuning=0"
            )
        wanted = {
            "dtype": (teacher.dtype, "fp32"),
            "placement": (teacher.placement, "replicated"),
            "tensor": (source.tensor, 1),
        }
        for name, (value, needed) in wanted.items():
            if value != needed:
                raise ConfigError(
                    f"mt-bert.cofinetuning trains the teachers, but {teacher.name} has {name} = "
                    f"{value!r}. Set teachers.{teacher.name}.{name} = {needed}"
                )
