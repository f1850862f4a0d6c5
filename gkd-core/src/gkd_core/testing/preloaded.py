"""Imports and values that the server of processes computes once for all of them.

Beside the packages that a run imports, these are the modules of all plugins and the table of names
of weights that transformers makes when it first reads a model.
"""

from __future__ import annotations

import importlib
import warnings
from contextlib import suppress

from transformers import BertConfig

from gkd_core.models.conversion import name_tensors
from gkd_core.models.meta import meta_model
from gkd_core.plugins import Registry
from gkd_core.plugins.discovery import installed

MODULES = (
    "deepspeed",
    "deepspeed.runtime.engine",
    "gkd_core.parallel.sharding",
    "gkd_core.models.load",
    "gkd_core.runs.run",
    "gkd_core.analysis.run_summary",
    "gkd_core.cli.run",
    "gkd_core.testing",
    "pytest",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)
"""Modules that ranks and commands import; those of extras need not be there."""


def _preload() -> None:
    for module in MODULES:
        with suppress(ImportError):
            importlib.import_module(module)
    # A process has a registry of its own: other plugins may be installed or disabled there.
    with warnings.catch_warnings(action="ignore"):
        registry = Registry(installed())
        registry.provided()
        shape = meta_model(registry.kind("classification"), BertConfig(num_hidden_layers=1), False)
    list(name_tensors(shape, shape.state_dict()))


_preload()
