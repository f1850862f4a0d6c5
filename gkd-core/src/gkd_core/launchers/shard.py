"""The share of cells that one of several processes runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gkd_core.errors import ConfigError

Part = TypeVar("Part")

INDICES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")
"""Variables by which schedulers number the processes that they start, from 0."""


@dataclass(frozen=True)
class Shard:
    """One of several shares of something.

    Attributes:
        index: Its number, from 0.
        count: The number of shares.
    """

    index: int = 0
    count: int = 1

    def of(self, parts: Sequence[Part], group: Callable[[Part], str]) -> list[Part]:
        """Return the parts of this share.

        Args:
            parts: All parts.
            group: Says what has to stay together.
        """
        groups = [group(part) for part in parts]
        own = set(list(dict.fromkeys(groups))[self.index :: self.count])
        return [part for part, group in zip(parts, groups, strict=True) if group in own]

    def part(self, index: int, count: int) -> Shard:
        """Return one of several equal parts of this share, as a share of the whole."""
        return Shard(self.index + self.count * index, self.count * count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


ALL = Shard()


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
        return ALL
    for name in INDICES:
        if name in environment:
            return Shard(int(environment[name]) % count, count)
    raise ConfigError(
        f"--shards {count} needs the number of this process in {' or '.join(INDICES)}, which "
        "schedulers set. Give it yourself: --shard INDEX/COUNT"
    )
