"""Output as JSON: with `--json`, a command prints nothing else to stdout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from gkd_core.plugins.isolation import stdout_as_stderr
from gkd_core.strict_json import json_text

Body = Callable[..., Any]


def json_option(help: str = "Print JSON.") -> Callable[[Body], Callable[..., None]]:
    """Add `--json` to a command, which then returns what is to be printed.

    What plugins and libraries print meanwhile goes to stderr.

    Args:
        help: Description of the option.
    """

    def add(command: Body) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*arguments: Any, as_json: bool, **options: Any) -> None:
            if as_json:
                print_json(lambda: command(*arguments, as_json=True, **options))
            else:
                command(*arguments, as_json=False, **options)

        return click.option("--json", "as_json", is_flag=True, help=help)(run)

    return add


def print_json(make: Callable[[], Any]) -> None:
    """Print a value as JSON; what is printed while it is made goes to stderr."""
    with stdout_as_stderr():
        value = make()
    click.echo(json_text(value, indent=2))
