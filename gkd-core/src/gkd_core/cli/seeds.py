"""`gkd run --seeds N`: the same run with several seeds, and how much they differ."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click

from gkd_core.cli.options import RunOptions

SEED, SEEDS, OUTPUT = "seed", "seeds", "output"
"""Names of the parameters."""


def run_seeds(options: RunOptions, count: int, run_once: Callable[[RunOptions], None]) -> None:
    """Run with several seeds, each in a directory of its own, and print how much they differ.

    Args:
        options: The options; their seed is the first.
        count: Number of seeds.
        run_once: Carries out the run of one seed.

    Raises:
        GkdError: A value is invalid, or a run failed.
    """
    from gkd_core.distributed.rank_info import read_launcher_env

    if read_launcher_env(os.environ) is not None:
        raise click.UsageError("--seeds starts several runs; give --seed to each process instead")
    directories = []
    for directory, one in _runs(options, count):
        click.echo(f"seed {one.flags[SEED]}: {directory}")
        run_once(one)
        directories.append(directory)
    _show(directories)


def _runs(options: RunOptions, count: int) -> Iterator[tuple[Path, RunOptions]]:
    """Yield the directory and the options of the run of each seed."""
    from gkd_core.runs.directory import free_directory, run_name

    resolved = options.resolve()
    chosen = resolved.config.output.dir
    parent = Path(chosen) if chosen else free_directory(run_name(resolved))
    first = resolved.config.seed
    for seed in range(first, first + count):
        directory = parent / f"seed-{seed}"
        flags = {**options.flags, SEED: seed, OUTPUT: str(directory)}
        yield directory, replace(options, flags=flags)


def _show(directories: list[Path]) -> None:
    from rich.console import Console

    from gkd_core.analysis.finished_run import FinishedRun
    from gkd_core.analysis.seeds import SeedSummary
    from gkd_core.plugins import registry

    summary = SeedSummary([FinishedRun.read(each, registry()) for each in directories])
    console = Console(highlight=False)
    console.print()
    console.print(summary.table())
    said = summary.verdict(registry())
    if said is not None:
        console.print(said, markup=False)
