"""`WandB`: the record of a run in Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from gkd_core.atomic import write_file
from gkd_core.contract.sink import Sink
from gkd_core.tracking.sinks.packages import require_package

if TYPE_CHECKING:
    from gkd_core.contract.run_info import RunInfo
    from gkd_core.contract.step import Step


class WandB(Sink):
    """Records the run in Weights & Biases, or in its folder if WANDB_MODE is offline.

    Every stage has its own step as the horizontal axis of its curves.
    """

    name = "wandb"

    class Config(Sink.Config):
        """Options."""

        project: str = Field("gkd", description="Project that the run belongs to.")
        entity: str | None = Field(
            None, description="User or team that the project belongs to. Default: the user's own."
        )

    config: Config
    _run: Any

    def check(self) -> None:
        """Refuse to start without the package."""
        require_package("wandb", self.name)

    def start(self, run: RunInfo, settings: Mapping[str, Any]) -> None:
        """Begin a run of Weights & Biases, or go on with that of a resumed run."""
        import wandb

        known = run.directory / self.name / "run-id"
        if not known.exists():
            write_file(known, secrets.token_hex(4))
        self._run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            id=known.read_text(),
            resume="allow",
            name=run.directory.name,
            dir=run.directory,
            config=dict(settings),
            settings=wandb.Settings(console="off"),
        )

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Give the curves of the stage its step as their horizontal axis."""
        self._run.define_metric(f"{name}/step", hidden=True)
        self._run.define_metric(f"{name}/*", step_metric=f"{name}/step")

    def log(self, step: Step, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        found = {f"{step.stage}/{name}": value for name, value in values.items()}
        self._run.log({**found, f"{step.stage}/step": step.index + 1})

    def summarize(self, values: Mapping[str, float]) -> None:
        """Add numbers to the summary."""
        self._run.summary.update(dict(values))

    def add_file(self, path: Path) -> None:
        """Add a file."""
        self._run.save(path, base_path=path.parent, policy="now")

    def finish(self, error: BaseException | None) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if error is None else 1)
