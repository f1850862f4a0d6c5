"""The comparisons of a stage's probes: pairs of features, and distances that both allow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gkd_core.errors import MethodError
from gkd_core.hooks.paths import Capture, parse_path
from gkd_core.models.layer_map import layer_pairs
from gkd_core.probes.distances import ProbeDistance, distances_of

if TYPE_CHECKING:
    from gkd_core.config.schema import ProbeConfig
    from gkd_core.contract.model_info import Models
    from gkd_core.objective.step_plan import Side

SETTING = "probe.features"
ALL = "all"
EVERYTHING = ("logits", "hidden[*]", "attention[*]", "query[*]", "key[*]", "value[*]")
"""The features that `all` stands for."""

LAYER = re.compile(r"\[(\d+)\]")
OTHER_TOKENS = "the teacher reads other tokens"

Obstacle = Callable[["Side", Capture], str | None]
"""Returns why a tensor of the student or the teacher cannot be read, or None if it can be."""


@dataclass(frozen=True)
class ProbedPair:
    """A feature of the student, and the one of the teacher that it is compared with.

    Attributes:
        student: The student's tensor.
        teacher: The teacher's.
        distances: What is measured.
    """

    student: Capture
    teacher: Capture
    distances: Sequence[ProbeDistance] = ()


@dataclass(frozen=True)
class ProbeChoice:
    """The comparisons with one teacher.

    Attributes:
        pairs: The pairs.
        left_out: What cannot be compared although `all` was asked for, with the reasons.
    """

    pairs: Sequence[ProbedPair]
    left_out: Sequence[str]


def choose_probes(config: ProbeConfig, models: Models, obstacle: Obstacle) -> ProbeChoice:
    """Choose what is compared of a student and a teacher.

    Args:
        config: The settings.
        models: The shapes of both.
        obstacle: Says what cannot be read.

    Raises:
        MethodError: A feature that the user names does not exist, or nothing of it can be compared.
    """
    pairs: dict[Capture, ProbedPair] = {}
    left_out: dict[tuple[str, str], list[str]] = {}
    for feature, named in _features(config):
        for pair in _pairs(feature, config, models):
            chosen, reasons = _allowed(pair, config, models, obstacle)
            if chosen.distances:
                pairs[pair.student] = chosen
            elif named:
                raise _refusal(pair, reasons)
            for reason, distances in reasons.items():
                left_out.setdefault((distances, reason), []).append(str(pair.student))
    notes = [f"{what} of {_joined(of)}: {why}" for (what, why), of in left_out.items()]
    return ProbeChoice(tuple(pairs.values()), notes)


def name_pairs(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the names of pairs, those of a site together: `hidden[1,2] to hidden[2,4]`.

    Args:
        pairs: The names of a feature of the student and of the teacher each.
    """
    sites: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for pair in pairs:
        sites.setdefault(tuple(LAYER.sub("", name) for name in pair), []).append(pair)
    sides = ([_layers_of(side) for side in zip(*found, strict=True)] for found in sites.values())
    return ", ".join(" to ".join(dict.fromkeys(both)) for both in sides) or "nothing"


def _layers_of(names: Sequence[str]) -> str:
    """Return features of a site as one, with all layers."""
    layers = ",".join(layer for name in names for layer in LAYER.findall(name))
    return LAYER.sub(f"[{layers}]", names[0])


def _features(config: ProbeConfig) -> Iterator[tuple[str, bool]]:
    """Yield features, and whether the user names them."""
    for feature in config.features:
        if feature == ALL:
            yield from ((each, False) for each in EVERYTHING)
        else:
            yield feature.removeprefix("student."), True


def _pairs(feature: str, config: ProbeConfig, models: Models) -> Iterable[ProbedPair]:
    student, teacher = models.pair
    path = parse_path(f"student.{feature}", SETTING)
    captures = sorted(path.resolve(student, SETTING))
    partners = dict(_layers(config, models)) if any(one.layer for one in captures) else {}
    for capture in captures:
        if not capture.layer:  # logits, the pooled vector or the embedding
            yield ProbedPair(capture, capture)
        elif capture.normed:
            yield ProbedPair(capture, replace(capture, layer=teacher.layers))
        elif capture.layer in partners:
            yield ProbedPair(capture, replace(capture, layer=partners[capture.layer]))


def _layers(config: ProbeConfig, models: Models) -> list[tuple[int, int]]:
    student, teacher = models.pair
    try:
        return layer_pairs(config.layers, student.layers, teacher.layers)
    except MethodError as error:
        raise MethodError(f"probe.layers: {error}") from error


def _allowed(
    pair: ProbedPair, config: ProbeConfig, models: Models, obstacle: Obstacle
) -> tuple[ProbedPair, dict[str, str]]:
    """Return a pair with the distances that are possible, and the others by what prevents them."""
    sides: tuple[tuple[Side, Capture], ...] = (("student", pair.student), ("teacher", pair.teacher))
    for side, capture in sides:
        reason = obstacle(side, capture)
        if reason is not None:
            return pair, {reason: "everything"}
    possible, reasons = [], dict[str, list[str]]()
    for distance in distances_of(pair.student, config.temperatures):
        reason = distance.obstacle(pair.student, models)
        if reason is None:
            possible.append(distance)
        else:
            reasons.setdefault(reason, []).append(distance.name)
    named = {reason: _joined(names) for reason, names in reasons.items()}
    return replace(pair, distances=tuple(possible)), named


def _refusal(pair: ProbedPair, reasons: dict[str, str]) -> MethodError:
    why = "; ".join(reasons) or "there is no distance for it"
    return MethodError(
        f"{SETTING} names {pair.student}, which cannot be compared with the teacher's "
        f"{pair.teacher}: {why}. Remove it, or probe `all` that can be compared"
    )


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names)
