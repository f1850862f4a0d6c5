"""The file with the values of a stage's probes, one row per step, feature and distance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gkd_core.atomic import draft
from gkd_core.errors import DataError

PROBES = "probes.parquet"
"""Name of the file in the directory of a stage."""

TRAINING, VALIDATION = "training", "validation"

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("rows", pa.string()),
        ("teacher", pa.string()),
        ("feature", pa.string()),
        ("teacher_feature", pa.string()),
        ("distance", pa.string()),
        ("value", pa.float64()),
    ]
)


@dataclass(frozen=True)
class ProbedValue:
    """A distance, measured once.

    Attributes:
        step: Number of the step before whose update it was measured, counted from 1; the last step
            for the student that the stage ends with.
        epoch: Number of passes over the training rows before it.
        rows: What it was measured on: rows of the step (`training`), or the first `validation`
            rows, for the student that the stage ends with.
        teacher: Name of the teacher.
        feature: The student's feature, such as `hidden[2]`.
        teacher_feature: The teacher's feature that it was compared with.
        distance: Name of the distance, such as `mse`.
        value: The distance.
    """

    step: int
    epoch: int
    rows: str
    teacher: str
    feature: str
    teacher_feature: str
    distance: str
    value: float

    @property
    def name(self) -> str:
        """The feature and the distance."""
        return f"{self.feature}/{self.distance}"


class ProbeFile:
    """Stores the values of a stage's probes.

    The file is replaced as a whole each time, so that it is never partial.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: list[ProbedValue] = []

    def start(self, done: int) -> None:
        """Go on after `done` steps: values that will be measured again are dropped."""
        kept = read_probes(self.path) if done and self.path.exists() else ()
        self._values = [each for each in kept if each.step <= done and each.rows == TRAINING]

    def append(self, values: Iterable[ProbedValue]) -> None:
        """Store values."""
        self._values += values
        columns = [asdict(value) for value in self._values]
        with draft(self.path) as aside:
            pq.write_table(pa.Table.from_pylist(columns, SCHEMA), aside)


def read_probes(path: Path) -> Sequence[ProbedValue]:
    """Return the values in a file, in the order in which they were measured.

    Raises:
        DataError: The file is damaged, or another one.
    """
    try:
        return [ProbedValue(**row) for row in pq.read_table(path, schema=SCHEMA).to_pylist()]
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is damaged, or is not a file of probes ({error}); remove it to continue "
            "without its values"
        ) from error
