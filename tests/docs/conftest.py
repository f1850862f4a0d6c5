"""The pages of the documentation, and their fenced blocks."""

from __future__ import annotations

import importlib.util
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(
    r"(?P<skip><!-- not run: [^\n]* -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block; `skip` if the page says that it cannot be run."""

    language: str
    text: str
    skip: bool


def blocks(page: Path, language: str) -> list[Block]:
    """Return the blocks of a page in a language."""
    return [block for block in all_blocks(page) if block.language == language]


def all_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    found = FENCE.finditer(page.read_text())
    return [Block(m["language"], m["text"], bool(m["skip"])) for m in found]


def write_file(block: Block, folder: Path) -> None:
    """Write the run file of a block whose first line is a comment with its name."""
    name = block.text.partition("\n")[0].removeprefix("# ")
    if block.language == "toml" and name.endswith(".toml"):
        (folder / name).write_text(block.text)


@pytest.fixture(scope="session")
def generate():
    """The module that writes reference pages."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _install(site, folder, entry):
    """Leave an example plugin in a folder, as `pip install --target` does."""
    module = folder.replace("-", "_")
    info = site / f"{module}-0.1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(DOCS / "examples" / folder / f"{module}.py", site)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[gkd]\n{entry} = {module}\n")


@pytest.fixture
def install(tmp_path):
    """`install("gkd-losses-csv", "losses-csv")`: a folder with an example plugin."""

    def _installed(folder, entry):
        _install(tmp_path / "site", folder, entry)
        return tmp_path / "site"

    return _installed


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Install the example plugins for this process."""
    from gkd_core.plugins import registry

    site = tmp_path / "site"
    examples = {
        "gkd-combiner-confidence": "confidence",
        "gkd-kind-ratings": "ratings",
        "gkd-losses-csv": "losses-csv",
        "gkd-method-cosine": "cosine",
        "gkd-optimizer-adamw-8bit": "adamw-8bit",
        "gkd-rollouts-sampling": "sampling",
        "gkd-rollouts-vllm": "vllm",
        "gkd-task-copa": "copa",
    }
    for folder, entry in examples.items():
        _install(site, folder, entry)
    monkeypatch.syspath_prepend(site)
    registry.cache_clear()
    yield
    registry.cache_clear()


CHOSEN = {
    "page": lambda page: True,
    "lesson": lambda page: any(not block.skip for block in blocks(page, "python")),
    "console": lambda page: "$ gkd " in page.read_text(),
}
"""Which pages a test is given, by the name that it asks for."""


def pytest_generate_tests(metafunc):
    """Give tests the pages they ask for: `page` all of them, `lesson` those with code to run."""
    for name in (name for name in CHOSEN if name in metafunc.fixturenames):
        written = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
        built = (page for page in written if "_build" not in page.parts)
        pages = [
            pytest.param(page, id=str(page.relative_to(ROOT)), marks=_marks(name, page))
            for page in built
            if CHOSEN[name](page)
        ]
        metafunc.parametrize(name, pages)


def _marks(name, page):
    """Lessons that check what they have built take 3 to 30 seconds."""
    takes_long = name == "lesson" and "from gkd_core.testing import" in page.read_text()
    return [pytest.mark.exhaustive] if takes_long else []


@pytest.fixture
def fenced():
    """`fenced(page, language)`: the blocks of a page in a language."""
    return blocks
