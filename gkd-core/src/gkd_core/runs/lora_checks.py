"""Checks of a student with low-rank adapters, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_core.contract.method import Method
from gkd_core.errors import ConfigError
from gkd_core.models.meta import shape_model
from gkd_core.models.sites import find_sites
from gkd_core.students.lora import check_lora_here, target_layers

if TYPE_CHECKING:
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec


def check_lora(spec: StageSpec, registry: Registry) -> None:
    """Reject adapters that cannot be trained as the stage says.

    Raises:
        ConfigError: The student is sharded, a method changes its layers, or no layer is meant.
    """
    lora = spec.config.student.lora
    if lora is None:
        return
    check_lora_here()
    if spec.layout.tensor > 1:
        raise ConfigError(
            f"student.lora puts adapters into whole layers, which parallel.tensor = "
            f"{spec.layout.tensor} ({spec.origin('parallel.tensor')}) divides. Set parallel.tensor "
            "= 1; ZeRO (parallel.zero) shards the weights as well"
        )
    for member in spec.members:
        if any(type(m).finalize_student is not Method.finalize_student for m in member.methods):
            raise ConfigError(
                f"{member.name} cuts the student at the end of its stage, which adapters "
                "(student.lora) do not allow. Train them in a separate stage after it"
            )
    width = spec.student.hidden_size
    if lora.rank > width:
        raise ConfigError(
            f"student.lora.rank is {lora.rank} ({spec.origin('student.lora.rank')}), but the "
            f"student is {width} wide: its adapters would be larger than its layers. Lower it"
        )
    model = shape_model(spec.kind, spec.student_config, spec.trusts_student)
    target_layers(find_sites(model, registry.sites), lora)
