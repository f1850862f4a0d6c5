"""Rejection of models whose parts are not known, and of methods that need parts they lack.

The models are built on the meta device: without weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gkd_core.errors import ConfigError, MethodError
from gkd_core.hooks.obstacles import obstacle_at
from gkd_core.hooks.paths import ATTENTION_SITES, FFN_SITES, LOGITS, POOLED, Capture
from gkd_core.models.dry_run import hidden_obstacle, pooled_obstacle
from gkd_core.models.meta import shape_model
from gkd_core.models.sites import Sites, find_sites
from gkd_core.models.slicing.maps import find_maps
from gkd_core.models.slicing.widths import lost_heads
from gkd_core.probes.choice import OTHER_TOKENS, ProbeChoice, choose_probes

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.objective.step_plan import PlannedPass, Side
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec

FEW_WORDS = "of the teacher's logits there are the likeliest words only"


def check_architectures(spec: StageSpec, registry: Registry) -> None:
    """Reject what the architectures of a stage's models do not allow.

    Raises:
        ConfigError: A method reads or changes a tensor that a model does not have.
        MethodError: The structure of a model is not understood, or cannot be sliced.
    """
    models = list(_models(spec, registry))
    plans = [spec.first_step]
    if any(model.obstacles for model in models):
        plans += spec.sampled_steps
    for plan in plans:
        for planned in plan.passes:
            for model in models:
                _check_pass(planned, model)


def chosen_probes(spec: StageSpec, registry: Registry) -> Iterator[ProbeChoice]:
    """Yield what the probes of a stage compare with each teacher; nothing without probes.

    Raises:
        MethodError: A feature that the user names cannot be compared.
    """
    if spec.config.probe is None or not spec.reads_teachers:
        return
    models = {(model.side, model.number): model for model in _models(spec, registry)}
    for number, taught in enumerate(spec.taught):
        obstacle = partial(_probe_obstacle, spec, models, number)
        yield choose_probes(spec.config.probe, taught, obstacle)


@dataclass(frozen=True)
class _Model:
    """A model of a stage.

    Attributes:
        side: Which model it is.
        number: Index of a teacher; None for the student.
        sites: Its sites, on the meta device.
        obstacles: Why a tensor cannot be captured or changed, by site and layer.
    """

    side: Side
    number: int | None
    sites: Sites
    obstacles: Mapping[tuple[str, int | None], str]

    def obstacle(self, place: Capture) -> str | None:
        """Return the obstacle to capturing or changing a tensor; None if there is none."""
        known = self.obstacles.get((place.site, place.layer))
        if known is not None:
            return known
        if place.site == "pooled":
            return pooled_obstacle(self.sites)
        return hidden_obstacle(self.sites) if place.site in ("hidden", "block") else None


def _obstacles(
    sites: Sites, kind: TaskKind, scale: float | None = None
) -> dict[tuple[str, int | None], str]:
    layers = range(1, len(sites.blocks) + 1)
    inside = ("hidden", "block", *ATTENTION_SITES, *FFN_SITES)
    places = [Capture("hidden", 0), *(Capture(site, layer) for site in inside for layer in layers)]
    found = {
        (place.site, place.layer): obstacle_at(place, sites) or _lost_heads(place, sites, scale)
        for place in (POOLED, *places)
    }
    pooled = found["pooled", None]
    if pooled is None and not kind.pools:
        found["pooled", None] = f"the head for {kind} reads more than one vector of a row"
    return {place: obstacle for place, obstacle in found.items() if obstacle is not None}


def _lost_heads(place: Capture, sites: Sites, scale: float | None) -> str | None:
    """Return the reason that a block lacks heads; None if it has all or they do not matter."""
    if place.site not in ATTENTION_SITES or place.layer is None:
        return None
    if scale is not None:
        return f"student.scale = {scale:g} removes heads from its blocks"
    return lost_heads(sites.model.config, place.layer)


def _models(spec: StageSpec, registry: Registry) -> Iterator[_Model]:
    """Yield each teacher whose weights are needed, and the student."""
    for number, teacher in enumerate(spec.teachers):
        if spec.reads_weights(number):
            with _naming(teacher.setting):
                model = shape_model(spec.kind, teacher.config, teacher.trust_remote_code)
                sites = find_sites(model, registry.sites)
                yield _Model("teacher", number, sites, _obstacles(sites, spec.kind))
    with _naming("student"):
        model = shape_model(spec.kind, spec.student_config, spec.trusts_student)
        student = find_sites(model, registry.sites)
        if spec.scale is not None and spec.follows is None:
            find_maps(student)
    yield _Model("student", None, student, _obstacles(student, spec.kind, spec.scale))


@contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Add the setting of a model to the error about its structure."""
    try:
        yield
    except MethodError as error:
        raise MethodError(f"{setting}: {error}") from error


def _check_pass(planned: PlannedPass, model: _Model) -> None:
    side, number = model.side, model.number
    for capture in sorted(planned.captures(side, number)):
        obstacle = model.obstacle(capture)
        if obstacle is not None:
            readers = " and ".join(planned.readers(capture, side, number))
            raise _refusal(f"{readers} reads {side}.{capture}", obstacle)
    for request, write in planned.writes(side, number):
        for place in write.places:
            obstacle = model.obstacle(place)
            if obstacle is not None:
                raise _refusal(f"{request.member.name} changes {side}.{place}", obstacle)


def _probe_obstacle(
    spec: StageSpec,
    models: Mapping[tuple[Side, int | None], _Model],
    number: int,
    side: Side,
    place: Capture,
) -> str | None:
    """Return the obstacle to comparing a tensor of the student or of teacher `number`, or None."""
    teacher = spec.teachers[number]
    if teacher.tokenizer is not spec.tokenizer:
        return OTHER_TOKENS
    if side == "teacher" and teacher.source is not None:
        is_cut = place == LOGITS and teacher.source.truncated_at() is not None
        return FEW_WORDS if is_cut else teacher.source.missing(place)
    return models[side, number if side == "teacher" else None].obstacle(place)


def _refusal(wish: str, obstacle: str) -> ConfigError:
    return ConfigError(f"{wish}, but {obstacle}. Use a method that reads what it has, such as soft")
