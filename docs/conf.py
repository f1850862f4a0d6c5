"""Sphinx configuration. Reference pages are written from the code by `generate.py`."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import gkd_core
from gkd_core import api

project = "gkd"
author = "The gkd authors"
copyright = "2026, the gkd authors"
release = version = gkd_core.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
sys.path.insert(0, str(Path(__file__).parent))
extensions.append("mermaid")
if find_spec("latex2mathml") is not None:  # else formulae need the network
    extensions.append("mathml")
    html_math_renderer = "mathml"
exclude_patterns = ["_build", "examples"]
source_suffix = {".md": "markdown"}
default_role = "code"  # docstrings are written with single backticks
html_theme = "furo"
html_title = "gkd"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_use_ivar = True


def setup(app: Sphinx) -> None:
    """Register the handler below."""
    app.connect("autodoc-process-docstring", _find_text)


def _find_text(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Take the docstring of an alias or a constant of `gkd_core.api` from the module it lives in.

    Autodoc finds the docstrings of imported classes and functions by itself, but only the objects
    carry theirs: the text below an assignment is in the source alone.
    """
    module, _, short = name.rpartition(".")
    if what == "data" and module == api.__name__:
        home = ModuleAnalyzer.for_module(f"gkd_core.{api._HOME[short]}")
        lines[:] = [*home.find_attr_docs()["", short], ""]
