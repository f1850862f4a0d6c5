"""The border of the plugin API: what plugins, examples and the documentation import of gkd_core."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

import gkd_core
from gkd_core import api, testing

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(ROOT.glob("gkd-methods-*/src/**/*.py"))
EXAMPLES = sorted((ROOT / "docs" / "examples").rglob("*.py"))
PLUGINS = sorted((ROOT / "tests" / "plugins").glob("*.py"))
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("gkd-*/README.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts),
]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

PUBLIC = {(module.__name__, name) for module in (gkd_core, api, testing) for name in module.__all__}
"""What may be imported: pairs of a module and a name."""


def imports(code: str) -> set[tuple[str, str]]:
    """Return every (module, name) that code imports of gkd_core, under TYPE_CHECKING too.

    The name is empty for `import MODULE`, which is never allowed: it hides what is used.
    """
    nodes = list(ast.walk(ast.parse(code)))
    whole = [(a.name, "") for n in nodes if isinstance(n, ast.Import) for a in n.names]
    found = [
        (n.module or "", a.name) for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names
    ]
    return {pair for pair in (*whole, *found) if pair[0].split(".")[0] == "gkd_core"}


def module_name(path: Path) -> str:
    """Return the name that a file of a package is imported by."""
    parts = path.with_suffix("").parts
    return ".".join(parts[parts.index("src") + 1 :]).removesuffix(".__init__")


def sources() -> Iterator[tuple[str, str]]:
    """Yield the name and the code of every file and every block that stands outside of core."""
    for path in PACKAGES:
        yield module_name(path), path.read_text()
    for path in (*EXAMPLES, *PLUGINS):
        yield str(path.relative_to(ROOT)), path.read_text()
    for page in PAGES:
        for number, (_, block) in enumerate(BLOCK.findall(page.read_text()), start=1):
            yield f"{page.relative_to(ROOT)}:{number}", dedent(block)


SOURCES = dict(sources())


def test_packages_examples_and_pages_are_found():
    assert {"gkd_methods_multiteacher.plugin", "README.md:1"} <= SOURCES.keys()
    assert "docs/examples/gkd-method-cosine/gkd_method_cosine.py" in SOURCES
    assert "tests/plugins/dist.py" in SOURCES


@pytest.mark.parametrize("name", SOURCES)
def test_only_the_api_is_imported(name):
    assert not imports(SOURCES[name]) - PUBLIC


@pytest.mark.parametrize(
    "code",
    [
        "import gkd_core",
        "import gkd_core.api",
        "from gkd_core import api",
        "from gkd_core import Batch",
        "from gkd_core.api import *",
        "from gkd_core.api import Extractor",
        "from gkd_core.hooks.extraction import Extractor as View",
        "if TYPE_CHECKING:\n    from gkd_core.training.stage import Stage",
        "def begin():\n    from gkd_core.training import stage",
    ],
)
def test_an_import_from_inside_is_seen(code):
    assert imports(code) - PUBLIC


@pytest.mark.parametrize(
    "code",
    [
        "from gkd_core import Method, cosine, hookimpl",
        "from gkd_core.api import Batch",
        "from gkd_core.testing import check_method",
        "import gkd_core_of_another",
    ],
)
def test_an_import_of_the_api_is_not(code):
    assert not imports(code) - PUBLIC
