"""`Launcher`: the base class of what starts cells of work, on this machine or others.

A cell is what one process does: a run of a study, or a part of a cache of answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from gkd_core.contract.method_base import validate_described

RESUMABLE = (75, 130)
"""Exit statuses of a cell that was stopped and can be continued."""


@dataclass(frozen=True)
class CellJob:
    """One cell to start.

    Attributes:
        name: Name of the cell.
        label: What a person calls it, as in `method=kd, seed=1`.
        command: The command that runs it, with its arguments, in the working directory of the
            command that launches. It is idempotent: a finished cell ends at once with 0, and one
            that runs elsewhere with 75. What it prints goes to a file in the folder of the cells.
        threads: Threads that it may use; None if the launcher decides.
        memory: Bytes of memory that it takes, as far as is known.
        gpus: GPUs that it needs, or a share of one.
    """

    name: str
    label: str
    command: tuple[str, ...]
    threads: int | None
    memory: int
    gpus: float


@dataclass(frozen=True)
class Launch:
    """The work of a launcher.

    Attributes:
        folder: The folder of the cells, where launchers may have files of their own.
        jobs: The cells to start, in the order in which they should begin.
        share: The command that runs a share of these cells itself if `--shards COUNT` is added, for
            launchers that hand shares to a queue.
        limit: How many may run at a time; None for as many as there is room for.
        say: Tells the user something.
    """

    folder: Path
    jobs: Sequence[CellJob]
    share: tuple[str, ...]
    limit: int | None
    say: Callable[[str], None]


@dataclass(frozen=True)
class JobEvent:
    """The beginning or the end of a cell.

    Attributes:
        job: The cell.
        status: Exit status of its command, or minus the number of the signal that killed it; None
            when it begins.
    """

    job: CellJob
    status: int | None = None


class Launcher:
    """Starts cells of work; registered through `gkd_register_launchers`.

    A subclass sets `name` and overrides `launch`. Only the command of a cell travels: its files are
    in the folder of the cells, which every machine must see under the same path. A cell may be
    started twice; whoever comes second leaves it alone.

    Attributes:
        name: The value of `--launcher` that selects it.
        config: Its options.
    """

    name: ClassVar[str]

    class Config(BaseModel):
        """Options, given as `--option NAME=VALUE`; each needs a default and a description."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    config: Config

    def __init_subclass__(cls) -> None:
        """Reject a subclass that violates the contract.

        Raises:
            PluginError: It does; the message says how.
        """
        super().__init_subclass__()
        where = f"launcher class {cls.__module__}.{cls.__qualname__}"
        validate_described(cls, where, Launcher.Config, "Launcher", "what it uses")

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def check(self) -> None:
        """Raise `ConfigError` if a requirement is not met, before anything is started."""

    @abstractmethod
    def launch(self, launch: Launch) -> Generator[JobEvent, None, None]:
        """Start cells; yield when one begins and when one ends, in whatever order.

        If the generator is closed early, because the user has interrupted the command, cells that
        run are asked to stop (SIGTERM: they save a checkpoint) and waited for. A launcher that only
        hands cells to a queue yields nothing.

        Args:
            launch: What to start.
        """
        raise NotImplementedError
