"""`TensorBoard`: the curves of a run in TensorBoard's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_core.config.schema import TENSORBOARD
from gkd_core.contract.sink import Sink

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from gkd_core.contract.run_info import RunInfo
    from gkd_core.contract.step import Step


class TensorBoard(Sink):
    """Writes the curves of each stage to a folder of its own, for TensorBoard.

    `tensorboard --logdir RUN/tensorboard` shows them.
    """

    name = TENSORBOARD

    _directory: Path
    writer: SummaryWriter | None = None

    def start(self, run: RunInfo, settings: Mapping[str, Any]) -> None:
        """Note where the run is."""
        self._directory = run.directory / self.name

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Open the stage's folder; steps that will be repeated are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self._directory / name), purge_step=done + 1)

    def log(self, step: Step, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step.index + 1)

    def end_stage(self) -> None:
        """Close the writer."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
