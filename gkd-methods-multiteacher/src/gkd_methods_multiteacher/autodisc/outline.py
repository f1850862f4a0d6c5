"""Checks of `autodisc` before any weight is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_core.api import ConfigError
from gkd_methods_multiteacher.autodisc.sandwich import WHOLE, AutoDisc

if TYPE_CHECKING:
    from gkd_core.api import RunOutline


def check(outline: RunOutline) -> None:
    """Reject a search for candidates within a student that is itself a slice.

    Raises:
        ConfigError: A stage searches within a slice.
    """
    for stage in outline.stages:
        for method in stage.methods:
            if method.name != AutoDisc.name or stage.scale is None:
                continue
            scales = method.options["scales"]
            if scales.value != [WHOLE]:
                raise ConfigError(
                    f"autodisc.scales = {scales.value} ({scales.origin}) would make stage "
                    f"'{stage.name}' search for an assistant again, among slices of its student, "
                    f"which is itself a slice (student.scale = {stage.scale:g}). Name the stage "
                    "that searches: stages.assistants.autodisc.scales in the recipe autodisc"
                )
