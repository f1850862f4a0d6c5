"""Sphinx configuration. Reference pages are written from the code by `generate.py`."""

import gkd_core

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
exclude_patterns = ["_build", "examples"]
source_suffix = {".md": "markdown"}
default_role = "code"  # docstrings are written with single backticks
html_theme = "furo"
html_title = "gkd"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # of mermaid, which Pygments does not know
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_use_ivar = True
