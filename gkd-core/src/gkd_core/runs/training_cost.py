"""The arithmetic of training a stage, estimated from shapes, to compare it with that of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_core.training.augmentation import copies

if TYPE_CHECKING:
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.training.stage_spec import StageSpec

TRAINED = 3
"""Arithmetic of a training step, in forward passes: backward is twice forward."""


def training_cost(spec: StageSpec) -> float:
    """Return the arithmetic of all steps of a stage, for one token of each sample.

    Every pass counts whole, also that of a teacher whose last blocks are not computed.
    """
    passes = spec.first_step.passes
    each = len(passes) * TRAINED * forward_cost(spec.student)
    for number, teacher in enumerate(spec.live_teachers):
        runs = sum(bool(one.captures("teacher", number)) for one in passes)
        each += runs * forward_cost(teacher.info)
    return steps(spec) * spec.config.training.batch_size * each


def steps(spec: StageSpec) -> int:
    """Return the number of steps of a stage; rows that its kind splits into blocks count once."""
    training = spec.config.training
    return training.steps or training.epochs * -(-training_rows(spec) // training.batch_size)


def training_rows(spec: StageSpec) -> int:
    """Return the number of training rows of a stage with their augmented copies."""
    return len(spec.data.train) * (1 + copies(spec.config, spec.kind))


def forward_cost(model: ModelInfo) -> int:
    """Return the multiplications of a forward pass of one token with the weights of a model."""
    width, queries = model.hidden_size, model.heads * model.head_size
    keys = 2 * model.kv_heads * model.head_size
    block = width * (2 * queries + keys + 2 * model.ffn_size)
    head = width * model.labels if model.is_lm else 0
    return model.layers * block + head
