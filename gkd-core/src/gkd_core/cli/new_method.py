"""`gkd new-method`: a plugin package to begin with.

What is written is what lies in the folder `new_method_files`: templates whose paths are templates,
too. A file that is added there is written as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from gkd_core.cli.new_directory import new_directory

TEMPLATES = "new_method_files"
SUFFIX = ".jinja"


@click.command("new-method")
@click.argument("name")
@click.option("--output", help="Directory to make. Default: gkd-method-NAME.")
def new_method(name: str, output: str | None) -> None:
    """Write a plugin package that contains a working method NAME.

    The folder contains pyproject.toml, the method in one file, its tests and a page. The method
    works as it is, so you can try each change at once.
    """
    _refuse_name(name)
    values = _values(name)
    folder = new_directory(output or values["distribution"])
    _write(folder, values)
    click.echo(
        f"{folder} contains the method {name}, which works and passes its tests. Next:\n\n"
        f"  cd {folder}\n"
        "  pip install -e '.[test]'\n"
        "  python -m pytest\n"
        f"  gkd run --method {name}+soft\n\n"
        f"Then write your loss in {values['module']}.py; the remaining work is marked TODO."
    )


def _refuse_name(name: str) -> None:
    """Reject a name that a method cannot have, or that something else has already.

    Raises:
        ConfigError: It is one; the message says why.
    """
    from gkd_core.contract.method import Method
    from gkd_core.contract.method_base import NAME
    from gkd_core.errors import ConfigError
    from gkd_core.plugins import registry
    from gkd_core.plugins.contributions import METHOD

    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a method cannot be named {name!r}: its name is lower-case words joined by '-', such "
            "as 'rail-kd'"
        )
    if name in METHOD.reserved(Method):
        raise ConfigError(
            f"a method cannot be named {name!r}, which has another meaning in the settings of "
            "every run; choose another name"
        )
    found = registry()
    taken = found.methods.get(name) or found.combiners.get(name)
    if taken is not None:
        raise ConfigError(
            f"there is a method {name!r} already, of {found.provider(name).distribution}; choose "
            "another name"
        )


def _values(name: str) -> Mapping[str, str]:
    """Return the values that fill the templates."""
    from gkd_core import __version__

    return {
        "name": name,
        "distribution": f"gkd-method-{name}",
        "module": f"gkd_method_{name.replace('-', '_')}",
        "class": "".join(word.capitalize() for word in name.split("-")) + "Method",
        "version": __version__,
    }


def _write(folder: Path, values: Mapping[str, str]) -> None:
    """Write the package: the folder is there either with all files or not at all.

    Raises:
        ConfigError: It cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    from gkd_core.atomic import publish
    from gkd_core.errors import ConfigError

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for path, template in _templates(files(__package__).joinpath(TEMPLATES)):
            file = aside / environment.from_string(path).render(values).removesuffix(SUFFIX)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = environment.from_string(template.read_text(encoding="utf-8")).render(values)
            file.write_text(text, encoding="utf-8")
        publish(aside, folder)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror}; name another directory with --output"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _templates(folder: Traversable, place: str = "") -> Iterator[tuple[str, Traversable]]:
    """Yield the templates in a folder and those below it, with their paths."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _templates(entry, f"{place}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            yield place + entry.name, entry
