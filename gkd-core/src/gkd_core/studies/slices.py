"""`TeacherSlices`: slices of a teacher, to measure what students cost that are made as such."""

from __future__ import annotations

import functools
from functools import partial

from transformers import PretrainedConfig, PreTrainedModel

from gkd_core.config.schema import StudentConfig
from gkd_core.models.sites import find_sites
from gkd_core.models.tokenizer import set_padding
from gkd_core.plugins import registry
from gkd_core.students.build import build_student
from gkd_core.students.scale import scale_student
from gkd_core.training.calibration import calibration_batches
from gkd_core.training.stage_models import prepare_model
from gkd_core.training.stage_spec import StageSpec

SCALES = (0.5, 0.3, 0.2, 0.1)
"""Shares of the heads and neurons that are tried, the largest first."""


class TeacherSlices:
    """Slices of some of a teacher's blocks, cut by importance as a run does.

    Importance is measured once for each number of blocks: smaller slices are cut from the largest.

    Args:
        spec: The stage that students are to be trained in.
        teacher: The teacher.
    """

    def __init__(self, spec: StageSpec, teacher: PreTrainedModel) -> None:
        self._spec = spec
        self._teacher = find_sites(teacher, registry().sites)
        self._largest = functools.cache(self._cut_from_teacher)

    def cut(self, layers: int, scale: float) -> PreTrainedModel:
        """Return a slice of evenly spaced blocks.

        Args:
            layers: Number of blocks.
            scale: The share of their heads and neurons to keep, one of `SCALES`.
        """
        largest = self._largest(layers)
        return self._scaled(largest, largest.config, scale) if scale < SCALES[0] else largest

    def _cut_from_teacher(self, layers: int) -> PreTrainedModel:
        spec, blocks = self._spec, StudentConfig(layers=layers)
        classes, adapters = spec.data.classes, registry().sites
        whole = build_student(blocks, self._teacher, spec.kind, classes, 0, adapters).model
        set_padding(whole, spec.tokenizer)
        prepare_model(whole, spec, spec.tokenizer)
        return self._scaled(whole, self._teacher.model.config, SCALES[0])

    def _scaled(
        self, model: PreTrainedModel, ordered: PretrainedConfig, scale: float
    ) -> PreTrainedModel:
        sites = find_sites(model, registry().sites)
        return scale_student(sites, ordered, scale, partial(calibration_batches, self._spec)).model
