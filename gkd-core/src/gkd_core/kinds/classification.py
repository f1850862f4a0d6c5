"""`classification`: one class per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_core.contract.task import Fit
from gkd_core.kinds.class_kind import ClassKind

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from gkd_core.config.schema import TaskConfig
    from gkd_core.data.table import Table


class Classification(ClassKind):
    """One of several classes for each text or pair of texts."""

    name = "classification"
    head = "classification head"
    problem_type = "single_label_classification"
    augments = True

    def made(self, config: PretrainedConfig) -> bool:
        """Recognize a model by its problem type and number of outputs."""
        suits = config.num_labels > 1 and config.problem_type in (None, self.problem_type)
        return super().made(config) and suits

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Take any rows that are not certainly of another kind."""
        return Fit.USUAL
