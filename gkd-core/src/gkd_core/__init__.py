"""gkd: distil large language models.

Everything here is loaded on first use: `import gkd_core` imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_core.config.schema import RunConfig as RunConfig
    from gkd_core.contract.batch import Batch as Batch
    from gkd_core.contract.batch import Items as Items
    from gkd_core.contract.combiner import TeacherCombiner as TeacherCombiner
    from gkd_core.contract.method import Method as Method
    from gkd_core.contract.model_info import ModelInfo as ModelInfo
    from gkd_core.contract.model_info import Models as Models
    from gkd_core.contract.procedure import Procedure as Procedure
    from gkd_core.contract.schedule import Schedule as Schedule
    from gkd_core.contract.step import Step as Step
    from gkd_core.contract.task import Split as Split
    from gkd_core.contract.task import Task as Task
    from gkd_core.contract.task import TaskData as TaskData
    from gkd_core.contract.temperature import Temperature as Temperature
    from gkd_core.errors import ConfigError as ConfigError
    from gkd_core.errors import DataError as DataError
    from gkd_core.errors import GkdError as GkdError
    from gkd_core.errors import MethodError as MethodError
    from gkd_core.errors import PluginError as PluginError
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
    from gkd_core.hookspecs import hookimpl as hookimpl
    from gkd_core.losses.term import Term as Term
    from gkd_core.models.layer_map import LayerMap as LayerMap
    from gkd_core.models.parts import Part as Part
    from gkd_core.models.sites import Sites as Sites

_HOME = {
    "Add": "hooks.operations",
    "Batch": "contract.batch",
    "ConfigError": "errors",
    "DataError": "errors",
    "GkdError": "errors",
    "Interchange": "hooks.operations",
    "Items": "contract.batch",
    "LayerMap": "models.layer_map",
    "Method": "contract.method",
    "MethodError": "errors",
    "ModelInfo": "contract.model_info",
    "Models": "contract.model_info",
    "Operation": "hooks.operations",
    "OperationContext": "hooks.operations",
    "Part": "models.parts",
    "Pass": "hooks.operations",
    "Perturb": "hooks.operations",
    "PluginError": "errors",
    "Procedure": "contract.procedure",
    "Replace": "hooks.operations",
    "RunConfig": "config.schema",
    "Schedule": "contract.schedule",
    "Sites": "models.sites",
    "Split": "contract.task",
    "Step": "contract.step",
    "Swap": "hooks.operations",
    "Task": "contract.task",
    "TaskData": "contract.task",
    "TeacherCombiner": "contract.combiner",
    "Temperature": "contract.temperature",
    "Term": "losses.term",
    "View": "hooks.features",
    "When": "hooks.operations",
    "hookimpl": "hookspecs",
}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'gkd_core' has no attribute {name!r}")
    return getattr(import_module(f"gkd_core.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
