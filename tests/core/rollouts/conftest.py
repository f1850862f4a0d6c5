"""The engines that stand as plugins of one file each under tests/plugins."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture(scope="session")
def plugin():
    """Load a plugin: `plugin("greedy")` -> its module."""

    def _plugin(name):
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, PLUGINS / f"{name}.py")
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return _plugin
