"""`gkd explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gkd_core.cli.json_output import json_option
from gkd_core.cli.options import RunOptions, run_options, show_warnings


@click.command()
@click.argument("expression", required=False)
@run_options
@json_option()
def explain(
    expression: str | None,
    files: tuple[Path, ...],
    recipe: str | None,
    settings: tuple[str, ...],
    as_json: bool,
    **flags: Any,
) -> dict[str, Any] | None:
    """Print what a run would compute, without loading any weights.

    EXPRESSION is a sum of methods such as pkd+soft; all settings of `gkd run` can be given as well.
    Shows stages, methods with the origin of each option, passes, and all captured tensors.
    """
    from rich.console import Console

    from gkd_core.analysis.explanation import explain as as_text
    from gkd_core.plugins import registry
    from gkd_core.runs.outline import RunOutline, outline_stage
    from gkd_core.runs.run import prepare_run

    if expression is not None and Path(expression).suffix in (".toml", ".yaml", ".yml", ".json"):
        files, expression = (Path(expression), *files), None
    if expression is not None:
        if flags["method"] is not None:
            raise click.UsageError("give the methods only once: as EXPRESSION or with --method")
        flags["method"] = expression
    resolved = RunOptions(files, recipe, settings, flags).resolve()
    show_warnings(resolved)
    stages = tuple(outline_stage(spec) for spec in prepare_run(resolved, registry()))
    outline = RunOutline(stages)
    if as_json:
        return outline.to_json()
    click.echo(as_text(outline, Console().width))
    return None
