"""The share of a study that one of several processes runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gkd_core.errors import ConfigError
from gkd_core.studies.cell import Cell

INDICES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")
"""Variables by which schedulers number the processes that they start, from 0."""


@dataclass(frozen=True)
class Shard:
    """One of several shares of a study.

    Attributes:
        index: Its number, from 0.
        count: The number of shares.
    """

    index: int = 0
    count: int = 1

    def of(self, cells: Sequence[Cell], is_tuned: bool) -> list[Cell]:
        """Return the cells of this share.

        Args:
            cells: All cells of the study.
            is_tuned: Whether cells wait for others that tune their learning rate; they then belong
                to the same share, so that no process waits for another.
        """
        keys = [cell.group if is_tuned else cell.name for cell in cells]
        own = set(list(dict.fromkeys(keys))[self.index :: self.count])
        return [cell for cell, key in zip(cells, keys, strict=True) if key in own]


def read_shard(given: str | None, count: int | None, environment: Mapping[str, str]) -> Shard:
    """Return the share that flags and environment ask for.

    Args:
        given: The value of `--shard`, such as `2/8`.
        count: The value of `--shards`.
        environment: The environment, which numbers the process if `--shards` is given.

    Raises:
        ConfigError: A value is wrong, or nothing numbers the process.
    """
    if given is not None and count is not None:
        raise ConfigError("--shard and --shards are mutually exclusive")
    if given is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", given)
        if match is None or not int(match[1]) < int(match[2]):
            raise ConfigError(
                f"--shard {given}: expected INDEX/COUNT with the index from 0, such as 0/4 or 3/4"
            )
        return Shard(int(match[1]), int(match[2]))
    if count is None:
        return Shard()
    for name in INDICES:
        if name in environment:
            return Shard(int(environment[name]) % count, count)
    raise ConfigError(
        f"--shards {count} needs the number of this process in {' or '.join(INDICES)}, which "
        "schedulers set. Give it yourself: --shard INDEX/COUNT"
    )
