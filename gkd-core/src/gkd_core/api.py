"""The plugin API: with `gkd_core.testing`, everything of gkd that a plugin may import.

Names are loaded on first use (PEP 562): importing this module imports neither torch nor
transformers. Core itself does not import it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_core.analysis.figures import curves as curves
    from gkd_core.atomic import write_file as write_file
    from gkd_core.config.schema import ParallelConfig as ParallelConfig
    from gkd_core.config.schema import RunConfig as RunConfig
    from gkd_core.config.schema import TaskConfig as TaskConfig
    from gkd_core.config.schema import TrainingConfig as TrainingConfig
    from gkd_core.contract.batch import Batch as Batch
    from gkd_core.contract.batch import ItemKind as ItemKind
    from gkd_core.contract.batch import Items as Items
    from gkd_core.contract.batch import RowSource as RowSource
    from gkd_core.contract.combiner import TeacherCombiner as TeacherCombiner
    from gkd_core.contract.launcher import CellJob as CellJob
    from gkd_core.contract.launcher import JobEvent as JobEvent
    from gkd_core.contract.launcher import Launch as Launch
    from gkd_core.contract.launcher import Launcher as Launcher
    from gkd_core.contract.method import Method as Method
    from gkd_core.contract.method_base import MethodBase as MethodBase
    from gkd_core.contract.model_info import DataInfo as DataInfo
    from gkd_core.contract.model_info import ModelInfo as ModelInfo
    from gkd_core.contract.model_info import Models as Models
    from gkd_core.contract.optimizer import OptimizerFactory as OptimizerFactory
    from gkd_core.contract.optimizer import StateTensor as StateTensor
    from gkd_core.contract.optimizer import TrainedWeight as TrainedWeight
    from gkd_core.contract.procedure import Procedure as Procedure
    from gkd_core.contract.requirements import same_heads as same_heads
    from gkd_core.contract.requirements import same_width as same_width
    from gkd_core.contract.rollout import Prompts as Prompts
    from gkd_core.contract.rollout import RolloutEngine as RolloutEngine
    from gkd_core.contract.rollout import TokenSampling as TokenSampling
    from gkd_core.contract.rollout import Written as Written
    from gkd_core.contract.run_info import GradientEngine as GradientEngine
    from gkd_core.contract.run_info import LoadedModel as LoadedModel
    from gkd_core.contract.run_info import RunInfo as RunInfo
    from gkd_core.contract.run_info import StageInfo as StageInfo
    from gkd_core.contract.schedule import Schedule as Schedule
    from gkd_core.contract.share import Share as Share
    from gkd_core.contract.sink import Sink as Sink
    from gkd_core.contract.step import Step as Step
    from gkd_core.contract.task import BLANK as BLANK
    from gkd_core.contract.task import DefaultTeacher as DefaultTeacher
    from gkd_core.contract.task import Fit as Fit
    from gkd_core.contract.task import Split as Split
    from gkd_core.contract.task import Task as Task
    from gkd_core.contract.task import TaskData as TaskData
    from gkd_core.contract.temperature import Temperature as Temperature
    from gkd_core.data.collate import Uncollated as Uncollated
    from gkd_core.data.encode import Encoded as Encoded
    from gkd_core.data.encode import encode_samples as encode_samples
    from gkd_core.data.table import Table as Table
    from gkd_core.distributed.data_parallel import sum_over_ranks as sum_over_ranks
    from gkd_core.distributed.ranks import is_first as is_first
    from gkd_core.distributed.ranks import tell as tell
    from gkd_core.distributed.samples import AllSamples as AllSamples
    from gkd_core.distributed.samples import all_samples as all_samples
    from gkd_core.distributed.samples import sum_samples as sum_samples
    from gkd_core.errors import ConfigError as ConfigError
    from gkd_core.errors import DataError as DataError
    from gkd_core.errors import GkdError as GkdError
    from gkd_core.errors import MethodError as MethodError
    from gkd_core.errors import PluginError as PluginError
    from gkd_core.hooks.features import Answer as Answer
    from gkd_core.hooks.features import View as View
    from gkd_core.hooks.operations import Add as Add
    from gkd_core.hooks.operations import Interchange as Interchange
    from gkd_core.hooks.operations import Operation as Operation
    from gkd_core.hooks.operations import OperationContext as OperationContext
    from gkd_core.hooks.operations import Pass as Pass
    from gkd_core.hooks.operations import Perturb as Perturb
    from gkd_core.hooks.operations import Replace as Replace
    from gkd_core.hooks.operations import Swap as Swap
    from gkd_core.hooks.operations import When as When
    from gkd_core.hooks.paths import LOGITS as LOGITS
    from gkd_core.hooks.paths import Capture as Capture
    from gkd_core.hookspecs import API_VERSION as API_VERSION
    from gkd_core.hookspecs import hookimpl as hookimpl
    from gkd_core.kinds.classification import Classification as Classification
    from gkd_core.kinds.metrics import Metric as Metric
    from gkd_core.kinds.regression import Regression as Regression
    from gkd_core.kinds.task_kind import Evaluation as Evaluation
    from gkd_core.kinds.task_kind import ReadRows as ReadRows
    from gkd_core.kinds.task_kind import RowMeasure as RowMeasure
    from gkd_core.kinds.task_kind import TaskKind as TaskKind
    from gkd_core.losses.angles import angles as angles
    from gkd_core.losses.angles import windows as windows
    from gkd_core.losses.contrast import contrast as contrast
    from gkd_core.losses.distances import cosine as cosine
    from gkd_core.losses.distances import huber as huber
    from gkd_core.losses.distances import mse as mse
    from gkd_core.losses.distances import normalized_mse as normalized_mse
    from gkd_core.losses.divergences import adaptive_kl as adaptive_kl
    from gkd_core.losses.divergences import cross_entropy as cross_entropy
    from gkd_core.losses.divergences import js as js
    from gkd_core.losses.divergences import kl as kl
    from gkd_core.losses.divergences import reverse_kl as reverse_kl
    from gkd_core.losses.divergences import skew_kl as skew_kl
    from gkd_core.losses.divergences import skew_reverse_kl as skew_reverse_kl
    from gkd_core.losses.divergences import soft_cross_entropy as soft_cross_entropy
    from gkd_core.losses.divergences import total_variation as total_variation
    from gkd_core.losses.importance import importance as importance
    from gkd_core.losses.left_out import merged_columns as merged_columns
    from gkd_core.losses.left_out import nearest_columns as nearest_columns
    from gkd_core.losses.logits import LinearLogits as LinearLogits
    from gkd_core.losses.logits import Logits as Logits
    from gkd_core.losses.logits import match_vocabulary as match_vocabulary
    from gkd_core.losses.logits import most_likely as most_likely
    from gkd_core.losses.own_divergence import CustomDivergence as CustomDivergence
    from gkd_core.losses.own_divergence import DivergenceRule as DivergenceRule
    from gkd_core.losses.own_divergence import divergence as divergence
    from gkd_core.losses.relation import Relation as Relation
    from gkd_core.losses.relation import RelationBlock as RelationBlock
    from gkd_core.losses.relation import self_relation as self_relation
    from gkd_core.losses.relation_losses import relation_kl as relation_kl
    from gkd_core.losses.relation_losses import relation_mse as relation_mse
    from gkd_core.losses.soft_labels import Divergence as Divergence
    from gkd_core.losses.soft_labels import hard_labels as hard_labels
    from gkd_core.losses.soft_labels import logits_mse as logits_mse
    from gkd_core.losses.soft_labels import soft_labels as soft_labels
    from gkd_core.losses.term import Term as Term
    from gkd_core.losses.top_k import TopKLogits as TopKLogits
    from gkd_core.models.layer_map import LayerMap as LayerMap
    from gkd_core.models.layer_map import layer_pairs as layer_pairs
    from gkd_core.models.layer_map import layer_segments as layer_segments
    from gkd_core.models.parts import Part as Part
    from gkd_core.models.parts import find_parts as find_parts
    from gkd_core.models.sites import Sites as Sites
    from gkd_core.models.slicing.widths import Widths as Widths
    from gkd_core.optim.joined import JoinedOptimizer as JoinedOptimizer
    from gkd_core.parallel.tp_plans import ColumnParallel as ColumnParallel
    from gkd_core.parallel.tp_plans import RowParallel as RowParallel
    from gkd_core.parallel.tp_plans import Summed as Summed
    from gkd_core.rollouts.decoding import Decoding as Decoding
    from gkd_core.rollouts.writer import Writer as Writer
    from gkd_core.runs.outline import RunOutline as RunOutline
    from gkd_core.runs.outline import StageOutline as StageOutline
    from gkd_core.runs.result import StageResult as StageResult
    from gkd_core.strict_json import json_text as json_text
    from gkd_core.students.budget import count_sliced as count_sliced
    from gkd_core.students.importance import measure_importance as measure_importance
    from gkd_core.students.ranking import Slicer as Slicer
    from gkd_core.students.scale import cut_ordered as cut_ordered
    from gkd_core.teachers.source import AnswerSource as AnswerSource
    from gkd_core.training.checkpoint import load_weights as load_weights
    from gkd_core.training.checkpoint import save_weights as save_weights
    from gkd_core.training.manifest import Difference as Difference

_HOME = {
    "API_VERSION": "hookspecs",
    "Add": "hooks.operations",
    "AllSamples": "distributed.samples",
    "Answer": "hooks.features",
    "AnswerSource": "teachers.source",
    "BLANK": "contract.task",
    "Batch": "contract.batch",
    "Capture": "hooks.paths",
    "CellJob": "contract.launcher",
    "Classification": "kinds.classification",
    "ColumnParallel": "parallel.tp_plans",
    "ConfigError": "errors",
    "CustomDivergence": "losses.own_divergence",
    "DataError": "errors",
    "DataInfo": "contract.model_info",
    "Decoding": "rollouts.decoding",
    "DefaultTeacher": "contract.task",
    "Difference": "training.manifest",
    "Divergence": "losses.soft_labels",
    "DivergenceRule": "losses.own_divergence",
    "Encoded": "data.encode",
    "Evaluation": "kinds.task_kind",
    "Fit": "contract.task",
    "GkdError": "errors",
    "GradientEngine": "contract.run_info",
    "Interchange": "hooks.operations",
    "ItemKind": "contract.batch",
    "Items": "contract.batch",
    "JobEvent": "contract.launcher",
    "JoinedOptimizer": "optim.joined",
    "LOGITS": "hooks.paths",
    "Launch": "contract.launcher",
    "Launcher": "contract.launcher",
    "LayerMap": "models.layer_map",
    "LinearLogits": "losses.logits",
    "LoadedModel": "contract.run_info",
    "Logits": "losses.logits",
    "Method": "contract.method",
    "MethodBase": "contract.method_base",
    "MethodError": "errors",
    "Metric": "kinds.metrics",
    "ModelInfo": "contract.model_info",
    "Models": "contract.model_info",
    "Operation": "hooks.operations",
    "OperationContext": "hooks.operations",
    "OptimizerFactory": "contract.optimizer",
    "ParallelConfig": "config.schema",
    "Part": "models.parts",
    "Pass": "hooks.operations",
    "Perturb": "hooks.operations",
    "PluginError": "errors",
    "Procedure": "contract.procedure",
    "Prompts": "contract.rollout",
    "ReadRows": "kinds.task_kind",
    "Regression": "kinds.regression",
    "Relation": "losses.relation",
    "RelationBlock": "losses.relation",
    "Replace": "hooks.operations",
    "RolloutEngine": "contract.rollout",
    "RowMeasure": "kinds.task_kind",
    "RowParallel": "parallel.tp_plans",
    "RowSource": "contract.batch",
    "RunConfig": "config.schema",
    "RunInfo": "contract.run_info",
    "RunOutline": "runs.outline",
    "Schedule": "contract.schedule",
    "Share": "contract.share",
    "Sink": "contract.sink",
    "Sites": "models.sites",
    "Slicer": "students.ranking",
    "Split": "contract.task",
    "StageInfo": "contract.run_info",
    "StageOutline": "runs.outline",
    "StageResult": "runs.result",
    "StateTensor": "contract.optimizer",
    "Step": "contract.step",
    "Summed": "parallel.tp_plans",
    "Swap": "hooks.operations",
    "Table": "data.table",
    "Task": "contract.task",
    "TaskConfig": "config.schema",
    "TaskData": "contract.task",
    "TaskKind": "kinds.task_kind",
    "TeacherCombiner": "contract.combiner",
    "Temperature": "contract.temperature",
    "Term": "losses.term",
    "TokenSampling": "contract.rollout",
    "TopKLogits": "losses.top_k",
    "TrainedWeight": "contract.optimizer",
    "TrainingConfig": "config.schema",
    "Uncollated": "data.collate",
    "View": "hooks.features",
    "When": "hooks.operations",
    "Widths": "models.slicing.widths",
    "Writer": "rollouts.writer",
    "Written": "contract.rollout",
    "adaptive_kl": "losses.divergences",
    "all_samples": "distributed.samples",
    "angles": "losses.angles",
    "contrast": "losses.contrast",
    "cosine": "losses.distances",
    "count_sliced": "students.budget",
    "cross_entropy": "losses.divergences",
    "curves": "analysis.figures",
    "cut_ordered": "students.scale",
    "divergence": "losses.own_divergence",
    "encode_samples": "data.encode",
    "find_parts": "models.parts",
    "hard_labels": "losses.soft_labels",
    "hookimpl": "hookspecs",
    "huber": "losses.distances",
    "importance": "losses.importance",
    "is_first": "distributed.ranks",
    "js": "losses.divergences",
    "json_text": "strict_json",
    "kl": "losses.divergences",
    "layer_pairs": "models.layer_map",
    "layer_segments": "models.layer_map",
    "load_weights": "training.checkpoint",
    "logits_mse": "losses.soft_labels",
    "match_vocabulary": "losses.logits",
    "merged_columns": "losses.left_out",
    "nearest_columns": "losses.left_out",
    "measure_importance": "students.importance",
    "most_likely": "losses.logits",
    "mse": "losses.distances",
    "normalized_mse": "losses.distances",
    "relation_kl": "losses.relation_losses",
    "relation_mse": "losses.relation_losses",
    "reverse_kl": "losses.divergences",
    "same_heads": "contract.requirements",
    "same_width": "contract.requirements",
    "save_weights": "training.checkpoint",
    "self_relation": "losses.relation",
    "skew_kl": "losses.divergences",
    "skew_reverse_kl": "losses.divergences",
    "soft_cross_entropy": "losses.divergences",
    "soft_labels": "losses.soft_labels",
    "sum_over_ranks": "distributed.data_parallel",
    "sum_samples": "distributed.samples",
    "tell": "distributed.ranks",
    "total_variation": "losses.divergences",
    "windows": "losses.angles",
    "write_file": "atomic",
}

RENAMED = {"Kind": "TaskKind", "OwnTeacher": "DefaultTeacher", "Participant": "MethodBase"}
"""Names of version 0.1, and their current names."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name in RENAMED:
        raise ImportError(f"{name} is called {RENAMED[name]} since version 0.2 of gkd")
    if name not in _HOME:
        raise AttributeError(f"module 'gkd_core.api' has no attribute {name!r}")
    return getattr(import_module(f"gkd_core.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the names."""
    return __all__
