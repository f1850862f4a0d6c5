"""A check of the weights that later stages will read, before an earlier one is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gkd_core.models.finite import check_stored_values
from gkd_core.models.source import locate
from gkd_core.training.stage_spec import StageSpec


def check_later_weights(specs: Sequence[StageSpec]) -> None:
    """Reject a model of a later stage with a weight that is not finite.

    The models of the first stage are checked when they are loaded, which is at once.

    Args:
        specs: The stages that are not finished, in order.

    Raises:
        ConfigError: A weight is not finite; the message names the setting, the file and the tensor.
    """
    checked = {place for spec in specs[:1] for _, place in _models(spec)}
    for setting, model in (pair for spec in specs[1:] for pair in _models(spec)):
        if model not in checked:
            checked.add(model)
            check_stored_values(f"{setting} = {model!r}", locate(model, setting))


def _models(spec: StageSpec) -> Iterator[tuple[str, str]]:
    """Yield the checkpoints that a stage reads, with their settings; not those a stage makes."""
    for number, teacher in enumerate(spec.teachers):
        if spec.reads_weights(number) and not teacher.is_made:
            yield teacher.setting, teacher.model
    if spec.follows is None and spec.config.student.model is not None:
        yield spec.settings.path("student.model"), spec.config.student.model
