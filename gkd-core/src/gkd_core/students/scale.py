"""Reduction of a student to a share of its heads and neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

from gkd_core.contract.batch import Batch
from gkd_core.errors import ConfigError
from gkd_core.hooks.extraction import Extractor
from gkd_core.models.sites import Sites
from gkd_core.models.slicing.select import Kept, sliced_copy
from gkd_core.models.slicing.widths import read_slices, write_slices
from gkd_core.students.importance import measure_importance
from gkd_core.students.ranking import Slicer

SCALES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
"""Scales that a slice is ordered for: the grid of Zhang et al., 2022, arXiv:2205.14570."""

MULTIPLE = 8
"""The neurons of a block are a multiple of this number, as in their released code."""


@dataclass(frozen=True)
class ScaledStudent:
    """A slice of a model.

    Attributes:
        model: The slice.
        origin: How its heads and neurons were chosen, for display.
    """

    model: PreTrainedModel
    origin: str


def scale_student(
    student: Sites,
    teacher: PretrainedConfig,
    scale: float,
    calibrate: Callable[[], Iterable[Batch]],
) -> ScaledStudent:
    """Return the part of a student that keeps a share of all its heads and all its neurons.

    If the teacher is ordered for slices, the student takes its first heads and neurons: the most
    important ones of the model that the teacher is a slice of. The share is relative to that model,
    too. Otherwise, importance is measured.

    Args:
        student: The student; a copy of blocks of the teacher.
        teacher: The teacher's configuration.
        scale: The share, 0 to 1.
        calibrate: Returns labeled rows to measure importance on.

    Raises:
        ConfigError: The teacher is ordered for other slices.
        MethodError: Slicing does not support the architecture.
    """
    known = read_slices(teacher)
    if known:
        if scale not in known:
            raise ConfigError(
                f"student.scale = {scale:g}: the teacher is itself a slice, ordered for the scales "
                f"{', '.join(f'{s:g}' for s in sorted(known))} (of the model it was made from); "
                "choose one of these"
            )
        made = sliced_copy(student.model, Kept.first(known[scale]))
        write_slices(made.config, {s: w for s, w in known.items() if s <= scale})
        return ScaledStudent(made, "as the teacher was ordered")
    batches = list(calibrate())
    extractor = Extractor(student.model, student)
    slicer = Slicer.of(measure_importance(extractor, batches, torch.device("cpu")), MULTIPLE)
    extractor.remove()
    made = cut_ordered(student.model, slicer, scale, [scale, *(s for s in SCALES if s < scale)])
    return ScaledStudent(made, f"by their importance on {sum(map(len, batches))} training rows")


def cut_ordered(
    model: PreTrainedModel, slicer: Slicer, scale: float, scales: Sequence[float]
) -> PreTrainedModel:
    """Return a slice of a model that can be sliced further without another measurement.

    Args:
        model: The whole model; it stays as it is.
        slicer: The order of its heads and neurons.
        scale: The share to keep.
        scales: Scales to order the slice for: its own and smaller ones.

    Returns:
        A new model. Its configuration lists the widths of the slices, so that `student.scale` can
        cut it again.

    Raises:
        MethodError: Slicing does not support the architecture.
    """
    made = sliced_copy(model, slicer.kept(slicer.widths(scale)))
    write_slices(made.config, {share: slicer.widths(share) for share in scales})
    return made
