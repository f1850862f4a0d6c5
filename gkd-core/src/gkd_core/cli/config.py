"""`gkd config`: show all settings of a run and their origins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gkd_core.cli.options import RunOptions, run_options, show_warnings


@click.command()
@run_options
@click.option("--schema", is_flag=True, help="Print the JSON schema of run files instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without origins.")
def config(
    files: tuple[Path, ...],
    recipe: str | None,
    settings: tuple[str, ...],
    schema: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Show all settings of a run and their origins.

    FILE is a run file in TOML, YAML or JSON. The output is itself a run file.
    """
    from gkd_core.config.render import complete, json_schema, to_toml
    from gkd_core.plugins import registry

    if schema:
        click.echo(json.dumps(json_schema(registry()), indent=2))
        return
    resolved = RunOptions(files, recipe, settings, flags).resolve()
    show_warnings(resolved)
    if as_json:
        click.echo(json.dumps(complete(resolved), indent=2))
    else:
        click.echo(to_toml(resolved), nl=False)
