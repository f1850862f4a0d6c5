"""Build the rollouts of a stage from its spec."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from gkd_core.contract.batch import RowSource
from gkd_core.contract.rollout import RolloutEngine
from gkd_core.hooks.extraction import Extractor
from gkd_core.objective.objective import name_seed
from gkd_core.optim.engine import autocast
from gkd_core.plugins import Registry
from gkd_core.rollouts.decoding import CoWriter
from gkd_core.rollouts.engines.generate import Generate
from gkd_core.rollouts.remote_writer import RemoteWriter
from gkd_core.rollouts.rollouts import Rollouts
from gkd_core.rollouts.rows import RowWriter
from gkd_core.rollouts.writer import Writer
from gkd_core.teachers.served import Served
from gkd_core.teachers.teacher import Teacher
from gkd_core.training.stage_spec import StageSpec

EXACT, ROUNDED = 1e-3, 0.1
"""Largest mean difference between the log-probabilities with which tokens are drawn and those of
training, where both are computed in fp32 and where one is not: logits near 16 are 1/8 apart in
bf16."""


def build_rollouts(
    spec: StageSpec,
    registry: Registry,
    student: Extractor,
    teachers: Sequence[Teacher],
    pad_id: int,
    device: torch.device,
) -> Rollouts | None:
    """Return the writer of text in the steps of a stage, or None if there is none.

    Args:
        spec: The stage.
        registry: Provides the engines.
        student: The student.
        teachers: The teachers; the first one writes.
        pad_id: The token for padding.
        device: Where the models run.
    """
    config = spec.config.rollout
    if config is None:
        return None
    precision = partial(
        autocast, spec.config.training, device, caches=spec.config.parallel.zero < 3
    )
    co_writer = CoWriter(_first_live(teachers), config.mixture) if config.mixture else None
    engine = registry.rollout_engine(config)
    writers: dict[RowSource, Writer | RemoteWriter] = {
        "student": Writer("student", student, device, precision, co_writer)
    }
    if config.teacher_writes:
        writers["teacher"] = _remote(spec, engine) or Writer(
            "teacher", _first_live(teachers), device, precision
        )
    read = spec.teachers if spec.reads_teachers else ()
    readers = [t.own_tokenizer or t.tokenizer for t in read]
    ends = dict.fromkeys(one.eos_token_id for one in (spec.tokenizer, *readers))
    return Rollouts(
        engine=engine,
        config=config,
        writers=writers,
        rows=RowWriter(spec.tokenizer, pad_id),
        end_ids=[end for end in ends if end is not None],
        seed=name_seed(spec.config.seed, f"rollout {spec.name}"),
        limit=_largest_mismatch(spec, engine),
    )


def _largest_mismatch(spec: StageSpec, engine: RolloutEngine) -> float | None:
    """Return the largest mismatch of the student's own text; None if no method depends on it."""
    asks = any(member.methods[0].on_policy for member in spec.members)
    if not asks or (spec.config.rollout is not None and spec.config.rollout.mixture):
        return None
    # A server may compute in 16 bits whatever the precision of training.
    exact = spec.config.training.precision == "fp32" and isinstance(engine, Generate)
    return EXACT if exact else ROUNDED


def _remote(spec: StageSpec, engine: RolloutEngine) -> RemoteWriter | None:
    """Return the first teacher if a server runs it."""
    source, sampling = spec.teachers[0].source, engine.sampling()
    if not isinstance(source, Served):
        return None
    assert sampling is not None, "an engine that does not say is refused"
    return RemoteWriter(source, sampling)


def _first_live(teachers: Sequence[Teacher]) -> Extractor:
    """Return the first teacher, which writes."""
    first = teachers[0]
    assert isinstance(first, Extractor), "a teacher that writes is live"
    return first
