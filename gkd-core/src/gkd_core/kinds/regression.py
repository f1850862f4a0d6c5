"""`regression`: one value per row."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from gkd_core.contract.task import Fit
from gkd_core.data.columns import CheckedRows, label_columns
from gkd_core.data.labels import label_name, label_values, number_of
from gkd_core.kinds.metrics import Metric
from gkd_core.kinds.value_kind import ValueKind

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from gkd_core.config.schema import TaskConfig
    from gkd_core.data.table import Table


class Regression(ValueKind):
    """A value for each text or pair of texts."""

    name = "regression"
    head = "regression head"
    metric = Metric("pearson", True)
    metrics = ("pearson", "spearman")
    problem_type = "regression"
    augments = True

    def outputs(self, classes: Sequence[str]) -> int:
        """Return 1: the value."""
        return 1

    def configure(self, config: PretrainedConfig, classes: Sequence[str]) -> None:
        """Write the single output."""
        super().configure(config, classes)
        config.num_labels = 1

    def made(self, config: PretrainedConfig) -> bool:
        """Recognize a model by its problem type and number of outputs."""
        suits = config.problem_type == self.problem_type or (
            config.problem_type is None and config.num_labels <= 1
        )
        return super().made(config) and suits

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Take labels that are all numbers, some of them fractions."""
        columns = label_columns(table, config)
        if len(columns) > 1 or not all(name in table.columns for name in columns):
            return Fit.NO
        found = Fit.NO
        for value in (value for name in columns for value in table.columns[name]):
            try:
                number = number_of(label_name(value))
            except ValueError:  # the row has no label, or a list of them
                return Fit.NO
            if number is None:
                return Fit.NO
            if not number.is_integer():
                found = Fit.CERTAIN
            elif found is Fit.NO:
                found = Fit.POSSIBLE
        return found

    def parse(self, rows: CheckedRows, classes: Sequence[str]) -> list[float]:
        """Return the value of each row."""
        return label_values(rows.labels or (), rows.table.numbers, rows.table.faults)

    def label_problem(self, label: Any, classes: Sequence[str]) -> str:
        """Expect a finite value."""
        return "" if isfinite(label) else f"the value {label!r}"
