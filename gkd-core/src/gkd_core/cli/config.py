"""`gkd config`: show all settings of a run and their origins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gkd_core.cli.json_output import json_option, print_json
from gkd_core.cli.options import RunOptions, run_options, show_warnings


@click.command()
@run_options
@click.option("--schema", is_flag=True, help="Print the JSON schema of run files instead.")
@json_option("Print JSON, without origins.")
def config(
    files: tuple[Path, ...],
    recipe: str | None,
    settings: tuple[str, ...],
    schema: bool,
    as_json: bool,
    **flags: Any,
) -> dict[str, Any] | None:
    """Show all settings of a run and their origins.

    FILE is a run file in TOML, YAML or JSON. The output is itself a run file.
    """
    from gkd_core.config.render import complete, json_schema, to_toml
    from gkd_core.plugins import registry

    if schema:
        print_json(lambda: json_schema(registry()))
        return None
    resolved = RunOptions(files, recipe, settings, flags).resolve()
    show_warnings(resolved)
    if as_json:
        return complete(resolved)
    click.echo(to_toml(resolved), nl=False)
    return None
