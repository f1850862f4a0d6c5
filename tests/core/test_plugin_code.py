"""The code of a plugin is all of it and nothing else, however it is installed."""

from __future__ import annotations

import sys
from importlib import import_module, invalidate_caches
from pathlib import Path

import pytest

from gkd_core.plugins.code import code_digests, code_files, code_modules, imports

INFO = "acme_gkd-1.2.dist-info"


class Installed:
    """A distribution `acme-gkd` whose plugin is imported.

    Attributes:
        root: The folder of its modules.
        module: The module of the plugin.
    """

    def __init__(self, root: Path, module: str) -> None:
        self.root, self.module = root, module

    @property
    def names(self) -> set[str]:
        return set(code_files(self.module, "acme-gkd"))

    @property
    def digests(self) -> dict[str, str]:
        return code_digests(self.module, "acme-gkd")


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("SCALE = 1\n" if path.suffix == ".py" else f"1 of {name}\n")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install files: `install("wheel", "acme.plugin", "acme/plugin.py", ...)`.

    The way is `wheel`, `shadowed` (a wheel, and a folder in PYTHONPATH that wins), `src`
    (editable, modules in `src`) or `flat` (editable, modules beside `pyproject.toml`).
    """
    before = set(sys.modules)

    def _install(way: str, module: str, *names: str, top_level: str = "") -> Installed:
        site, project = tmp_path / "site-packages", tmp_path / "project"
        write(site, "other/__init__.py", "other-2.0.dist-info/METADATA")
        write(project, "pyproject.toml", "README.md", "runs/soft-1/student/config.json")
        shadow = tmp_path / "checkout"
        root = {"wheel": site, "shadowed": shadow, "src": project / "src", "flat": project}[way]
        write(root, *names)
        is_wheel = way in ("wheel", "shadowed")
        listed = [*(names if is_wheel else ["acme.pth"]), f"{INFO}/METADATA", "../bin/acme"]
        if is_wheel:
            write(site, *names)
        write(site, "acme.pth", "../bin/acme")
        (site / INFO).mkdir()
        (site / INFO / "METADATA").write_text("Name: acme-gkd\nVersion: 1.2\n")
        (site / INFO / "RECORD").write_text("".join(f"{name},,\n" for name in listed))
        (site / INFO / "top_level.txt").write_text(top_level)
        for folder in (site, root):
            monkeypatch.syspath_prepend(folder)
        invalidate_caches()
        import_module(module)
        return Installed(root, module)

    yield _install
    for name in set(sys.modules) - before:
        del sys.modules[name]


PACKAGE = ("acme/__init__.py", "acme/plugin.py", "acme/deep/helper.py", "acme/tables/words.json")
MODULES = ("acme_plugin.py", "acme_helper.py")
NAMESPACE = ("acme/kd/plugin.py", "acme/kd/helper.py", "acme/shared/words.txt")


@pytest.mark.parametrize(
    ("way", "module", "names"),
    [
        ("wheel", "acme.plugin", PACKAGE),
        ("wheel", "acme", PACKAGE),
        ("wheel", "acme_plugin", ("acme_plugin.py",)),
        ("wheel", "acme_plugin", MODULES),
        ("wheel", "acme.kd.plugin", NAMESPACE),
        ("shadowed", "acme.plugin", PACKAGE),
        ("src", "acme.plugin", PACKAGE),
        ("src", "acme_plugin", ("acme_plugin.py",)),
        ("src", "acme_plugin", MODULES),
        ("src", "acme.kd.plugin", NAMESPACE),
        ("src", "acme_plugin", ("acme_plugin.py", "acme_data/words.json")),
        ("flat", "acme.plugin", PACKAGE),
        ("flat", "acme_plugin", MODULES),
        ("flat", "acme.kd.plugin", NAMESPACE),
        ("flat", "acme_plugin", ("acme_plugin.py", *PACKAGE)),
    ],
)
def test_the_code_is_every_module_and_all_data(install, way, module, names):
    installed = install(way, module, *names)
    assert installed.names == set(names)
    before = installed.digests
    for name in names:
        (installed.root / name).write_text("SCALE = 1000\n")
        changed = installed.digests
        assert {n for n in names if changed[n] != before[n]} == {name}
        before = changed


def test_a_namespace_beside_the_plugin_is_code_if_setuptools_names_it(install):
    names = ("acme_plugin.py", "constants/acme/scale.py")
    assert install("flat", "acme_plugin", *names, top_level="acme_plugin\nconstants\n").names == {
        *names
    }


def test_data_beside_a_module_of_a_project_is_code_if_the_module_names_it(install):
    names = ("acme_plugin.py", "words.json", "tables/scale.csv", "other.json")
    installed = install("flat", "acme_plugin", *names)
    assert installed.names == {"acme_plugin.py"}
    (installed.root / "acme_plugin.py").write_text(
        'HERE = Path(__file__).parent\nWORDS = HERE / "words.json", HERE / "tables/scale.csv"\n'
    )
    assert installed.names == {"acme_plugin.py", "words.json", "tables/scale.csv"}


def test_modules_are_imported_anywhere_in_the_code(install):
    installed = install("src", "acme.plugin", *PACKAGE)
    (installed.root / "acme/deep/helper.py").write_text(
        "from .one import x\nimport other.two\ndef late():\n    from third import four\n"
    )
    (installed.root / "acme/deep/template.py").write_text("{{ no code }} x\n")
    modules = code_modules("acme.plugin", "acme-gkd")
    assert set(modules) == {"acme", "acme.plugin", "acme.deep.helper", "acme.deep.template"}
    found = {name: set(imports(name, file)) for name, file in modules.items()}
    named = {"acme.deep.one", "acme.deep.one.x", "other.two", "third", "third.four"}
    assert found == {name: set() for name in modules} | {"acme.deep.helper": named}


def test_metadata_and_what_python_writes_are_no_code(install):
    installed = install("src", "acme.plugin", *PACKAGE)
    write(
        installed.root, "acme/__pycache__/x.pyc", "acme/.cache/x.txt", "acme_gkd.egg-info/PKG-INFO"
    )
    assert installed.names == set(PACKAGE)
