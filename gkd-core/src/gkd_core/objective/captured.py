"""Features captured in the passes of a micro-batch, and each method's view of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gkd_core.contract.model_info import ModelInfo
from gkd_core.hooks.feature_offload import FeatureOffload, OffloadedFeatures
from gkd_core.hooks.features import Features, View
from gkd_core.hooks.paths import MAIN

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.objective.step_plan import Side, StepRequest


@dataclass(frozen=True)
class Captured:
    """The features captured in a micro-batch, by pass.

    Attributes:
        student: Features of the student.
        teachers: Features of each teacher.
        feature_offload: Host memory for the features of all teachers but the one in use; None keeps
            them on the device.
    """

    student: dict[str, Features] = field(default_factory=dict)
    teachers: Sequence[dict[str, Features | OffloadedFeatures]] = ()
    feature_offload: FeatureOffload | None = None

    def offload(self, number: int) -> None:
        """Move a teacher's features to host memory until they are read."""
        found = self.teachers[number]
        for name, features in found.items():
            if self.feature_offload is not None and isinstance(features, Features):
                found[name] = self.feature_offload.offload(features)

    def learned(self, request: StepRequest) -> View:
        """Return one method object's view of the student."""
        return _view(self.student, request, "student", request.models.student)

    def known(self, request: StepRequest) -> View:
        """Return one method object's view of its teacher; drop it before you get the next one."""
        found = (
            self.teachers[request.number] if request.member.takes_teacher and self.teachers else {}
        )
        return _view(found, request, "teacher", request.models.teacher or request.models.student)

    def views(self, request: StepRequest) -> tuple[View, View]:
        """Return one method object's views of the student and of its teacher."""
        return self.learned(request), self.known(request)

    def saving(self, weights: Iterable[Tensor]) -> AbstractContextManager[None]:
        """Return a context that keeps tensors saved for backward in host memory.

        In it, the terms of several teachers are computed one teacher at a time.

        Args:
            weights: Weights of auxiliary modules, which stay on the device.
        """
        if self.feature_offload is None:
            return nullcontext()
        stays = [tensor for features in self.student.values() for tensor in features.held()]
        return self.feature_offload.saving([*stays, *weights])


def _view(
    features: Mapping[str, Features | OffloadedFeatures],
    request: StepRequest,
    side: Side,
    model: ModelInfo,
) -> View:
    owner = request.member.name

    def open_view(run: str, passes: Mapping[str, View]) -> View:
        captures = request.captures(side, run)
        found = features.get(request.key(run), Features())
        found = found.fetch(captures) if isinstance(found, OffloadedFeatures) else found
        return View(found, captures, model, owner, passes)

    return open_view(MAIN, {extra.name: open_view(extra.name, {}) for extra in request.passes})
