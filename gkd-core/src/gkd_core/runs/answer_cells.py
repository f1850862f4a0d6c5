"""Writing a cache of answers by a launcher: a cell writes a share of the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gkd_core.contract.launcher import RESUMABLE, CellJob, JobEvent, Launch
from gkd_core.launchers.logged import logged, reason, tail
from gkd_core.launchers.shard import Shard
from gkd_core.models.content import WEIGHTS
from gkd_core.named_path import named_path

if TYPE_CHECKING:
    from gkd_core.contract.launcher import Launcher
    from gkd_core.runs.answer_cache import BegunCache
    from gkd_core.training.stage_spec import StageSpec

LOGS = "cells"
"""The folder within a cache for what cells print."""

MEMORY = 3 * 2**29
"""Bytes that a cell takes besides the weights of the teacher."""


@dataclass(frozen=True)
class Cells:
    """The division of a cache's shards.

    Attributes:
        command: `gkd` with the arguments that write the cache in one process.
        share: The shards that are written.
        count: Number of cells; None for one for each shard.
        jobs: How many run at a time; None for as many as there is room for.
        threads: Threads of each; None if the launcher decides.
    """

    command: tuple[str, ...]
    share: Shard
    count: int | None
    jobs: int | None
    threads: int | None


def launch_cells(
    spec: StageSpec,
    cache: BegunCache,
    cells: Cells,
    launcher: Launcher,
    say: Callable[[str], None],
) -> set[int]:
    """Write what is left of a cache in cells.

    Args:
        spec: The stage.
        cache: The cache.
        cells: How its shards are divided.
        launcher: Starts the cells.
        say: Told of progress.

    Returns:
        The exit statuses of the cells; empty if there was none, or if they wait in a queue.
    """
    jobs, statuses = list(_jobs(spec, cache, cells)), set[int]()
    if not jobs:
        return statuses
    launch = Launch(cache.folder, jobs, cells.command, cells.jobs, say)
    with closing(launcher.launch(launch)) as events:
        for event in events:
            if event.status is not None:
                say(f"{event.job.label} {_ended(event, cache.folder)}. {cache.progress}")
                statuses.add(event.status)
    return statuses


def _jobs(spec: StageSpec, cache: BegunCache, cells: Cells) -> Iterator[CellJob]:
    """Yield the cells that have something to do."""
    shards, left = range(cache.manifest.shards), cache.progress.left
    own = cells.share.of(shards, str)
    count = min(cells.count or len(own), len(own))
    memory, gpus = MEMORY + _weights(spec), _gpus(spec)
    for index in range(count):
        part = cells.share.part(index, count)
        missing = left.intersection(part.of(shards, str))
        if missing:
            name = f"{part.index}-of-{part.count}"
            command = logged(_log(cache.folder, name), (*cells.command, "--shard", str(part)))
            yield CellJob(name, _label(missing), command, cells.threads, memory, gpus)


def _label(shards: frozenset[int]) -> str:
    first = min(shards) + 1
    more = f" and {len(shards) - 1} more" if len(shards) > 1 else ""
    return f"shard {first}{more}"


def _log(folder: Path, name: str) -> Path:
    return folder / LOGS / f"{name}.log"


def _ended(event: JobEvent, folder: Path) -> str:
    """Return the outcome of a cell, in words."""
    if event.status == 0:
        return "done"
    if event.status in RESUMABLE:
        return "stopped, or written elsewhere"
    log = _log(folder, event.job.name)
    said = reason(tail(log)) or f"it ended with {event.status}"
    return f"failed: {said} ({log})"


def _weights(spec: StageSpec) -> int:
    """Return the bytes of the files with the teacher's weights, as far as they are here."""
    place = named_path(spec.teachers[0].trained)
    return sum(path.stat().st_size for path in place.glob(f"*{WEIGHTS}"))


def _gpus(spec: StageSpec) -> float:
    device = spec.config.parallel.device
    return float(device == "cuda" or (device == "auto" and torch.cuda.is_available()))
