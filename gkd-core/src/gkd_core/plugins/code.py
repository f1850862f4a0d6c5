"""The code of a plugin: the modules and the data of its distribution.

A wheel lists its files. Those of an editable install, or of a folder in PYTHONPATH, are in the
folder from which the plugin is imported.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec, resolve_name
from pathlib import Path

from gkd_core import digest

PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
"""Files of the root of a project, which holds more than the code: tests, documentation, runs."""

METADATA = (".dist-info", ".egg-info")
"""Endings of the folders in which installers keep the metadata of a distribution."""

SCRIPTS = ("bin", "Scripts")
"""Folders of generated commands, which name the interpreter that they were installed for."""


def code_digests(module: str, distribution: str) -> dict[str, str]:
    """Return the hash of each file of a plugin, by the file's name.

    Args:
        module: The plugin's module, which is imported.
        distribution: The distribution that ships it.
    """
    return digest.of_each_named(code_files(module, distribution))


def code_files(module: str, distribution: str) -> dict[str, Path]:
    """Return the files of a plugin by name, such as `gkd_method_x/loss.py`.

    They are none if the plugin has no file, such as one in a zip archive.

    Args:
        module: The plugin's module, which is imported.
        distribution: The distribution that ships it.
    """
    file = module_file(module)
    if file is None:
        return {}
    installed = _find_distribution(distribution)
    if installed is None:
        return _files_in(_own_place(module, file))
    listed = _listed_files(installed)
    if file in listed.values():
        return listed
    return {
        name: path
        for place in _places(module, file, installed)
        for name, path in _files_in(place).items()
    }


def code_modules(module: str, distribution: str) -> dict[str, Path]:
    """Return the files of the modules of a plugin's code by the names of the modules.

    Args:
        module: The plugin's module, which is imported.
        distribution: The distribution that ships it.
    """
    files = code_files(module, distribution).items()
    return {_module_name(name): path for name, path in files if name.endswith(".py")}


def _module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(module: str, file: Path) -> frozenset[str]:
    """Return the full names of what a module imports anywhere in its code.

    Args:
        module: Its name.
        file: Its file.
    """
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return _imports(file, package, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _imports(file: Path, package: str, changed: int) -> frozenset[str]:
    """Return the imports of a file; it is read again if it has changed."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # such as a template, which is never imported
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            with suppress(ImportError):  # it is relative to what is not there
                source = resolve_name(start, package)
                found.update([source, *(f"{source}.{alias.name}" for alias in node.names)])
    return frozenset(found)


def module_file(module: str) -> Path | None:
    """Return the file of an imported module, if it has one."""
    file = getattr(sys.modules.get(module), "__file__", None)
    path = _resolved(file) if file else None
    return path if path is not None and path.is_file() else None


@functools.cache  # a stage asks for hundreds of modules
def _resolved(file: str) -> Path:
    return Path(file).resolve()


def _find_distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except (PackageNotFoundError, ValueError):
        return None


def _listed_files(installed: Distribution) -> dict[str, Path]:
    """Return the files that a wheel has installed; none if it was not installed from one."""
    if installed.read_text("RECORD") is None:
        return {}
    found = {}
    for listed in installed.files or ():
        is_script = listed.parts[0] == ".." and listed.parent.name in SCRIPTS
        path = Path(str(installed.locate_file(listed))).resolve()
        is_code = all(part == ".." or _is_code_name(part) for part in listed.parts)
        if is_code and not is_script and path.is_file():
            found[listed.as_posix()] = path
    return found


def _places(module: str, file: Path, installed: Distribution) -> Iterator[Path]:
    """Yield the modules and folders of a distribution that lists no files.

    A folder into which several distributions are installed shows only what is named. All else is
    the plugin's own; from the root of a project, modules and packages, and the data that the
    modules name.
    """
    own = _own_place(module, file)
    root = own.parent
    yield own
    yield from _named_places(installed, root)
    if any(root.glob("*.dist-info")):
        return
    is_project = any((root / name).exists() for name in PROJECT_FILES)
    modules = [path for path in root.glob("*.py") if path.name not in PROJECT_FILES]
    code = "".join(path.read_text(encoding="utf-8", errors="replace") for path in modules)
    for path in root.iterdir():
        is_code = path.suffix == ".py" or (path / "__init__.py").exists()
        if not is_project or is_code or _names(code, path.name):
            yield path


def _names(code: str, file: str) -> bool:
    """Return whether code has the name of a file or folder in a string, perhaps in a path."""
    return re.search(rf"""["'/]{re.escape(file)}["'/]""", code) is not None


def _own_place(module: str, file: Path) -> Path:
    """Return the outermost package that a module is in, or the file of a module in none."""
    top = sys.modules.get(module.partition(".")[0])
    folders = [Path(place).resolve() for place in getattr(top, "__path__", ())]
    return next((folder for folder in folders if folder in file.parents), file)


def _named_places(installed: Distribution, root: Path) -> Iterator[Path]:
    """Yield the top-level modules and packages that setuptools names, as they would be imported.

    Of a namespace package, which other distributions share, only what is in `root`.
    """
    for name in (installed.read_text("top_level.txt") or "").split():
        found = _find_spec(name)
        if found is None:
            continue
        folders = [Path(place).resolve() for place in found.submodule_search_locations or ()]
        if found.origin is None:
            yield from (folder for folder in folders if folder.parent == root)
        else:
            yield from folders or [Path(found.origin).resolve()]


def _find_spec(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ImportError, ValueError):  # its module, already imported, says nothing of itself
        return None


def _files_in(place: Path) -> dict[str, Path]:
    """Return the files of a module or folder by their names relative to where it is."""
    if not _is_code_name(place.name):
        return {}
    found = _walk(place) if place.is_dir() else [str(place)]
    start = len(str(place.parent / "_")) - 1
    return {path[start:].replace(os.sep, "/"): Path(path) for path in found}


def _walk(folder: str | Path) -> Iterator[str]:
    """Yield the files of code in a folder and those below it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _is_code_name(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.is_file():
                yield entry.path


def _is_code_name(name: str) -> bool:
    """Return whether a file or folder is neither metadata nor hidden nor compiled by Python."""
    return not name.endswith((".pyc", *METADATA)) and name != "__pycache__" and name[0] != "."
