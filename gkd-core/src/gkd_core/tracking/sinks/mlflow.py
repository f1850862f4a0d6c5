"""`MLflow`: the record of a run in MLflow."""

from __future__ import annotations

import re
import time
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

FORBIDDEN = re.compile(r"[^\w. :/-]")
"""Characters that the name of a metric may not have, such as the `+` of `pkd+soft`."""

LONGEST = 6000
"""Characters of a setting that MLflow keeps."""

BATCH = 100
"""Settings that MLflow takes at once."""


class MLflow(Sink):
    """Records the run in MLflow: on the server of MLFLOW_TRACKING_URI, or else in `mlflow.db`."""

    name = "mlflow"

    class Config(Sink.Config):
        """Options."""

        experiment: str = Field("gkd", description="Experiment that the run belongs to.")
        uri: str | None = Field(
            None,
            description="Server or database. Default: MLFLOW_TRACKING_URI, or else the database "
            "`mlflow.db` in the working directory.",
        )

    config: Config
    _client: Any
    _id: str

    def check(self) -> None:
        """Refuse to start without the package."""
        require_package("mlflow", self.name)

    def start(self, run: RunInfo, settings: Mapping[str, Any]) -> None:
        """Begin a run of MLflow, or go on with that of a resumed run."""
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(self.config.uri)
        known = run.directory / self.name / "run-id"
        if known.exists():
            self._id = known.read_text()
            self._client.update_run(self._id, status="RUNNING")
        else:
            made = self._client.create_run(self._experiment(), run_name=run.directory.name)
            self._id = made.info.run_id
            write_file(known, self._id)
            self._log_settings(settings)

    def log(self, step: Step, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        self._log({f"{step.stage}/{name}": value for name, value in values.items()}, step.index + 1)

    def summarize(self, values: Mapping[str, float]) -> None:
        """Add numbers without a step."""
        self._log(values, 0)

    def add_file(self, path: Path) -> None:
        """Add a file."""
        self._client.log_artifact(self._id, str(path))

    def finish(self, error: BaseException | None) -> None:
        """End the run."""
        failed = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self._client.set_terminated(self._id, "FINISHED" if error is None else failed)

    def _experiment(self) -> str:
        """Return the id of the experiment, which is made if there is none."""
        name = self.config.experiment
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:LONGEST]) for name, value in settings.items()]
        for first in range(0, len(params), BATCH):
            self._client.log_batch(self._id, params=params[first : first + BATCH])

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        named = {FORBIDDEN.sub("_", name): value for name, value in values.items()}
        metrics = [Metric(name, value, now, step) for name, value in named.items()]
        self._client.log_batch(self._id, metrics=metrics)
