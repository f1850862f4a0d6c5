"""`gkd new-run`: a run file to begin with."""

from __future__ import annotations

import click


@click.command("new-run")
@click.option("--teacher", required=True, metavar="MODEL", help="Directory or hub id.")
@click.option("--data", required=True, metavar="PATH", help="Training rows, as for a run.")
@click.option("--output", default="run.toml", show_default=True, help="The file to write.")
def new_run(teacher: str, data: str, output: str) -> None:
    """Write a commented run file for a teacher and rows.

    Its comments describe both: kind of task, labels, lengths, blocks. No weight is loaded, and an
    existing file is not replaced.
    """
    from gkd_core.atomic import write_file
    from gkd_core.distillation.run_file import run_file
    from gkd_core.errors import ConfigError
    from gkd_core.named_path import named_path

    path = named_path(output)
    if path.suffix != ".toml":
        raise ConfigError(f"{path} is not the name of a TOML file; end it in .toml")
    if path.exists():
        raise ConfigError(f"{path} exists; name another file with --output")
    write_file(path, run_file(teacher, data, str(path)))
    click.echo(f"{path} is written. Next: gkd explain {path}, then gkd run {path}")
