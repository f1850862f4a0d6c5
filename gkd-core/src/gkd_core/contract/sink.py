"""`Sink`: the base class of what keeps a record of a run, such as TensorBoard."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from gkd_core.contract.method_base import validate_described

if TYPE_CHECKING:
    from gkd_core.contract.run_info import RunInfo
    from gkd_core.contract.step import Step


class Sink:
    """Keeps a record of a run, for example on a server; registered through `gkd_register_sinks`.

    A subclass sets `name` and overrides `log`, and whatever else it can keep. It is made and called
    in the first process only. If it raises an error once the run has begun, it is named and left
    out from then on: no student is lost because nobody could watch it.

    Attributes:
        name: The value of `tracking.sinks`, or of `--track`, that selects it.
        config: Its options.
    """

    name: ClassVar[str]

    class Config(BaseModel):
        """Options, in the table `tracking.NAME`; each needs a default and a description."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    config: Config

    def __init_subclass__(cls) -> None:
        """Reject a subclass that violates the contract.

        Raises:
            PluginError: It does; the message says how.
        """
        super().__init_subclass__()
        where = f"sink class {cls.__module__}.{cls.__qualname__}"
        validate_described(cls, where, Sink.Config, "Sink", "what it keeps")

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def check(self) -> None:
        """Raise `ConfigError` if a requirement is not met, before anything is read."""

    def start(self, run: RunInfo, settings: Mapping[str, Any]) -> None:
        """Begin the record of a run, or continue it if the run is resumed.

        Args:
            run: The run. Files of the sink belong in `run.directory / self.name`, where a resumed
                run finds them.
            settings: Every setting of the run that has a value, by dotted key.
        """

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Begin a stage of `total` steps, or continue it after `done` of them.

        Steps after those, if the run got that far before it was interrupted, come again.
        """

    @abstractmethod
    def log(self, step: Step, values: Mapping[str, float]) -> None:
        """Record numbers of a step of a stage.

        Args:
            step: The step; `step.index` counts from 0.
            values: By name: `loss/TERM`, `train/lr`, `train/gradient_norm`,
                `train/samples_per_second`, `validation/METRIC`.
        """
        raise NotImplementedError

    def end_stage(self) -> None:
        """End the stage; also called if it failed."""

    def say(self, text: str) -> None:
        """Record a message to the user."""

    def summarize(self, values: Mapping[str, float]) -> None:
        """Record numbers of the whole run.

        Args:
            values: By name: `test/METRIC/MODEL`, for every model of the comparison.
        """

    def add_file(self, path: Path) -> None:
        """Record a file of the run, such as its report."""

    def finish(self, error: BaseException | None) -> None:
        """End the record.

        Args:
            error: What ended the run, or None if it is complete.
        """
