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
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("gkd-*/README.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts),
]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

PUBLIC = {(module.__name__, name) for module in (gkd_core, api, testing) for name in module.__all__}
"""What may be imported: pairs of a module and a name."""

INSIDE = {
    "gkd_methods_multiteacher.autodisc.lifecycle": {
        ("gkd_core.evaluation.evaluate", "evaluate"),
        ("gkd_core.hooks.forward", "Change"),
        ("gkd_core.training.calibration", "calibration_batches"),
        ("gkd_core.training.checkpoint", "save_weights"),
        ("gkd_core.training.stage", "Stage"),
    },
    "gkd_methods_multiteacher.autodisc.report": {
        ("gkd_core.runs.directory", "STAGES"),
    },
    "gkd_methods_multiteacher.autodisc.sandwich": {
        ("gkd_core.students.scale", "MULTIPLE"),
        ("gkd_core.training.checkpoint", "load_weights"),
    },
    "gkd_methods_multiteacher.cofinetuning": {
        ("gkd_core.data.loader", "iterate"),
        ("gkd_core.distributed.groups", "data_rank"),
        ("gkd_core.evaluation.evaluate", "evaluate"),
        ("gkd_core.hooks.extraction", "Extractor"),
        ("gkd_core.models.parts", "find_parts"),
        ("gkd_core.objective.objective", "name_seed"),
        ("gkd_core.optim.engine", "Engine"),
        ("gkd_core.optim.engine", "LocalEngine"),
        ("gkd_core.optim.engine", "count_items"),
        ("gkd_core.training.checkpoint", "load_weights"),
        ("gkd_core.training.checkpoint", "save_weights"),
        ("gkd_core.training.stage", "Stage"),
    },
    "gkd_methods_multiteacher.plugin": {
        ("gkd_core.training.stage", "stage_behind"),
    },
}
"""The only exceptions, by importing module. The reason of each: it takes the engine of a stage;
until methods can act at the start and the end of a stage themselves."""


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
    for path in EXAMPLES:
        yield str(path.relative_to(ROOT)), path.read_text()
    for page in PAGES:
        for number, (_, block) in enumerate(BLOCK.findall(page.read_text()), start=1):
            yield f"{page.relative_to(ROOT)}:{number}", dedent(block)


SOURCES = dict(sources())


def test_packages_examples_and_pages_are_found():
    assert {*INSIDE, "README.md:1"} <= SOURCES.keys()
    assert "docs/examples/gkd-method-cosine/gkd_method_cosine.py" in SOURCES


@pytest.mark.parametrize("name", SOURCES)
def test_only_the_api_is_imported(name):
    assert not imports(SOURCES[name]) - PUBLIC - INSIDE.get(name, set())


@pytest.mark.parametrize("name", INSIDE)
def test_every_exception_is_used(name):
    assert not INSIDE[name] - imports(SOURCES[name])
    assert not INSIDE[name] & PUBLIC


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
