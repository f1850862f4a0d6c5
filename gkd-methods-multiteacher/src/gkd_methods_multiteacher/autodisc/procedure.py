"""The two stages of `autodisc`: the search for an assistant, and its student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gkd_core.api import ConfigError, Models, Procedure, RunConfig
from gkd_methods_multiteacher.autodisc.sandwich import WHOLE, AutoDisc


class AutoDiscStages(Procedure):
    """Search for an assistant among slices of the teacher, and distill a smaller slice from it.

    The run's `student.scale` is the scale of the student, and that which the assistant is for. The
    first stage keeps all heads and neurons, but of as many blocks as the student has.
    """

    name = AutoDisc.name
    paper = AutoDisc.paper

    def stages(self, config: RunConfig, models: Models) -> Iterable[Mapping[str, Any]]:
        """Return the stage of the assistants, and that of the student."""
        student = config.student
        if student.slice is None:
            raise ConfigError(
                "autodisc distills a slice of the teacher: set student.scale to a share below 1, "
                "without student.model"
            )
        _refuse_other_target(config, student.slice)
        rest = student.model_dump(mode="json", exclude={"new_student"}, exclude_defaults=True)
        return [
            {
                "name": "assistants",
                "student": rest | {"scale": WHOLE},
                # The assistant's best weights are kept, not the whole model's.
                "training": {"keep_best": False},
                AutoDisc.name: {"target": student.slice},
            },
            {
                "name": "student",
                "teacher": "stage:assistants",
                AutoDisc.name: {"scales": [WHOLE]},  # the loss of a whole student
            },
        ]


def _refuse_other_target(config: RunConfig, scale: float) -> None:
    """Reject a target of the assistant that is not the student, unless it is the default."""
    options = config.options.get(AutoDisc.name)
    target = options.target if isinstance(options, AutoDisc.Config) else scale
    if target not in (scale, AutoDisc.Config().target):
        raise ConfigError(
            f"autodisc.target = {target:g} is not the scale of the student, which is "
            f"student.scale = {scale:g}; set student.scale alone"
        )
