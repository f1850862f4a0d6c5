"""Settings that are incompatible with several rows in one block (`task.packing`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from gkd_core.errors import ConfigError
from gkd_core.hooks.packing import packing_obstacle
from gkd_core.models.meta import meta_model

if TYPE_CHECKING:
    from gkd_core.hooks.paths import Capture
    from gkd_core.training.stage_spec import StageSpec

BY_TOKEN = ("hidden", "neurons", "ffn", "logits")
"""Sites whose values at a token depend on its own document only."""


def check_packing(spec: StageSpec) -> None:
    """Reject a stage whose rows are to be packed but cannot be.

    Raises:
        ConfigError: Says what packing does not go with.
    """
    if not spec.config.task.packing:
        return
    reason = next(_reasons(spec), None)
    if reason is not None:
        raise ConfigError(
            f"task.packing ({spec.origin('task.packing')}) puts several rows into one, but "
            f"{reason}. Set task.packing = false"
        )


def _reasons(spec: StageSpec) -> Iterator[str]:
    if not spec.kind.generates:
        yield f"task.kind is {spec.kind}, and only causal-lm reads them one after the other"
    if spec.config.rollout is not None:
        yield "models that write text continue one prompt in a row"
    for _, teachers in spec.other_tokenizers:
        yield f"the teacher '{teachers[0].info.name}' has another tokenizer and reads other rows"
    for owner in spec.owners:
        if owner.methods[0].aligns:
            yield f"{owner.name} aligns tokens by their place in the text of a single row"
    for teacher in spec.teachers if spec.reads_teachers else ():
        if teacher.source is not None and not teacher.source.packs:
            yield f"the answers of the teacher '{teacher.info.name}' are those of single rows"
    for plan in spec.sampled_steps:
        for name, requests in plan.requests.items():
            captures = (c for one in requests for c in _captures(one.reads.student))
            found = next((c for c in captures if not _is_by_token(c)), None)
            if found is not None:
                yield f"{name} reads student.{found}, which relates all tokens of a row"
    for ensemble in spec.ensembles:
        if ensemble.combiner.weighs_samples:
            yield f"{ensemble.name} may weigh teachers differently in each of them"
    live = [(t.setting, t.config, t.trust_remote_code) for t in spec.live_teachers]
    student = ("the student", spec.student_config, spec.trusts_student)
    for setting, config, trusts in (student, *live):
        obstacle = packing_obstacle(meta_model(spec.kind, config, trusts))
        if obstacle:
            yield f"{setting} ({config.model_type}) cannot keep them apart: {obstacle}"


def _captures(reads: Mapping[str, frozenset[Capture]]) -> Iterator[Capture]:
    for found in reads.values():
        yield from sorted(found)


def _is_by_token(capture: Capture) -> bool:
    return capture.site in BY_TOKEN and not capture.reduce
