"""The plugin of core: kinds, tasks, optimizers, rollout engines, sinks, launchers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gkd_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from gkd_core.contract.launcher import Launcher
    from gkd_core.contract.optimizer import OptimizerFactory
    from gkd_core.contract.rollout import RolloutEngine
    from gkd_core.contract.sink import Sink
    from gkd_core.contract.task import Task
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.teachers.source import AnswerSource


@hookimpl
def gkd_register_kinds() -> Iterable[type[TaskKind]]:
    """Return the built-in kinds of task."""
    from gkd_core.kinds.causal_cloze import CausalCloze
    from gkd_core.kinds.causal_lm import CausalLM
    from gkd_core.kinds.classification import Classification
    from gkd_core.kinds.embedding import Embedding
    from gkd_core.kinds.masked_cloze import MaskedCloze
    from gkd_core.kinds.masked_lm import MaskedLM
    from gkd_core.kinds.multi_label import MultiLabel
    from gkd_core.kinds.multiple_choice import MultipleChoice
    from gkd_core.kinds.regression import Regression
    from gkd_core.kinds.similarity import Similarity
    from gkd_core.kinds.span_classification import SpanClassification
    from gkd_core.kinds.span_extraction import SpanExtraction
    from gkd_core.kinds.token_classification import TokenClassification

    rows = [Classification, MultiLabel, Regression, MultipleChoice, Embedding, Similarity]
    spans = [TokenClassification, SpanClassification, SpanExtraction]
    return [*rows, *spans, MaskedCloze, CausalCloze, MaskedLM, CausalLM]


@hookimpl
def gkd_register_tasks() -> Iterable[type[Task]]:
    """Return the built-in tasks: sources of data, and the tasks of benchmarks."""
    from gkd_core.benchmarks import glue, superglue
    from gkd_core.data.embedded import Embedded
    from gkd_core.data.files import Files
    from gkd_core.data.functions import Functions
    from gkd_core.data.hub import Hub
    from gkd_core.data.mixture import MixedData

    return [Embedded, Files, Functions, Hub, MixedData, *glue.TASKS, *superglue.TASKS]


@hookimpl
def gkd_register_teachers() -> Iterable[type[AnswerSource]]:
    """Return the built-in sources of a teacher's answers."""
    from gkd_core.teachers.cached import Cached
    from gkd_core.teachers.served import Served

    return [Cached, Served]


@hookimpl
def gkd_register_optimizers() -> Iterable[type[OptimizerFactory]]:
    """Return the built-in optimizers."""
    from gkd_core.optim.optimizers.adafactor import Adafactor
    from gkd_core.optim.optimizers.adamw import AdamW
    from gkd_core.optim.optimizers.muon import Muon

    return [Adafactor, AdamW, Muon]


@hookimpl
def gkd_register_rollouts() -> Iterable[type[RolloutEngine]]:
    """Return the built-in rollout engine."""
    from gkd_core.rollouts.engines.generate import Generate

    return [Generate]


@hookimpl
def gkd_register_sinks() -> Iterable[type[Sink]]:
    """Return the built-in sinks."""
    from gkd_core.tracking.sinks.mlflow import MLflow
    from gkd_core.tracking.sinks.tensorboard import TensorBoard
    from gkd_core.tracking.sinks.wandb import WandB

    return [MLflow, TensorBoard, WandB]


@hookimpl
def gkd_register_launchers() -> Iterable[type[Launcher]]:
    """Return the built-in launchers."""
    from gkd_core.launchers.local import Local
    from gkd_core.launchers.ray import Ray
    from gkd_core.launchers.slurm import Slurm

    return [Local, Ray, Slurm]
