"""Plugins that are installed into an empty folder."""

from __future__ import annotations

from importlib.metadata import distributions

import pytest

METHOD = '''
from gkd_core.api import Method, hookimpl


class {cls}(Method):
    """A method."""

    name = "{name}"
    paper = "Nobody, 2026"

    def reads(self, models, step):
        return []

    def loss(self, student, teacher, batch, step):
        return {{}}


@hookimpl
def gkd_register_methods():
    return [{cls}]
'''


@pytest.fixture
def method():
    """Return the source of a plugin with one method: `method("name", "Class")`."""
    return lambda name, cls="Some": METHOD.format(name=name, cls=cls)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install plugins: `install("dist", entry="module source")`; `requires` lists requirements."""
    monkeypatch.syspath_prepend(tmp_path)

    def _install(distribution, requires=(), **plugins):
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n{needs}"
        )
        lines = ["[gkd]"]
        for entry, source in plugins.items():
            module = f"plugin_{distribution.replace('-', '_')}_{entry}_{tmp_path.name}"
            module = module.replace("-", "_")
            (tmp_path / f"{module}.py").write_text(source)
            lines.append(f"{entry} = {module}")
        (info / "entry_points.txt").write_text("\n".join(lines))

    return _install


@pytest.fixture
def load(tmp_path):
    """Load the plugins that are installed: `load()` -> Registry."""
    from gkd_core.plugins import Registry

    def _load():
        return Registry(
            entry
            for distribution in distributions(path=[str(tmp_path)])
            for entry in distribution.entry_points
        )

    return _load
