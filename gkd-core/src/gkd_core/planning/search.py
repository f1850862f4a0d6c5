"""The search for a layout in which a run fits, cheapest layouts first.

The order is that of the GKD paper: ZeRO, which adds only communication; then tensor parallelism,
which communicates in every layer; then host memory, which is slow: for the optimizer, for the
teachers, then for everything. Few layouts are simulated: a layout is ruled out if its weights and
optimizer state alone do not fit, or if a simulated layout with the same activations implies it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gkd_core.errors import GkdError
from gkd_core.planning.choice import LayoutChoice, Need, all_choices, least_need
from gkd_core.planning.estimate import Estimate
from gkd_core.planning.shapes import count_trained, count_weights
from gkd_core.planning.zero import check_modeled
from gkd_core.plugins import Registry
from gkd_core.runs.checks import check_spec
from gkd_core.training.stage_spec import StageSpec

Simulate = Callable[[StageSpec], Estimate]


@dataclass(frozen=True)
class Limit:
    """The available memory.

    Attributes:
        device: Bytes of each GPU.
        host: Bytes of host memory, for all processes; None for no limit.
    """

    device: int
    host: int | None = None

    def holds(self, need: Need) -> bool:
        """Return whether a need fits."""
        return need.device <= self.device and (self.host is None or need.host <= self.host)


@dataclass(frozen=True)
class LayoutTrial:
    """A layout that the search has tried.

    Attributes:
        choice: The layout.
        need: The memory that it needs, simulated or as a lower bound.
        fits: Whether that fits.
        estimate: The simulated step; None if the lower bound already ruled the layout out.
    """

    choice: LayoutChoice
    need: Need
    fits: bool
    estimate: Estimate | None

    def to_json(self, spec: StageSpec) -> dict[str, Any]:
        """Return the trial in JSON-serializable form."""
        return {
            "settings": self.choice.settings(spec),
            "peak": self.need.device,
            "host": self.need.host,
            "fits": self.fits,
            "estimate": None if self.estimate is None else self.estimate.to_json(),
        }


@dataclass(frozen=True)
class Largest:
    """The largest teacher that fits.

    Attributes:
        blocks: Number of its transformer blocks.
        weights: Number of its weights.
        choice: The layout in which it fits.
    """

    blocks: int
    weights: int
    choice: LayoutChoice


@dataclass(frozen=True)
class Found:
    """The result of a search for a stage's layout.

    Attributes:
        stage: The stage.
        trials: The layouts that were tried; the last one fits if any does.
        largest: The largest teacher that would fit, if none does.
    """

    stage: StageSpec
    trials: Sequence[LayoutTrial]
    largest: Largest | None

    @property
    def fitting(self) -> LayoutTrial | None:
        """The layout that fits, or None."""
        return self.trials[-1] if self.trials and self.trials[-1].fits else None

    def to_json(self) -> dict[str, Any]:
        """Return the result in JSON-serializable form."""
        fitting, largest = self.fitting, self.largest
        return {
            "stage": self.stage.name,
            "recommended": None if fitting is None else fitting.choice.settings(self.stage),
            "largest_teacher": None
            if largest is None
            else {
                "blocks": largest.blocks,
                "weights": largest.weights,
                "settings": largest.choice.settings(self.stage),
            },
            "trials": [trial.to_json(self.stage) for trial in self.trials],
        }


class Search:
    """Searches for a layout of a stage.

    Args:
        spec: The stage, built for as many processes as there are GPUs.
        registry: The plugins.
        limit: The available memory.
        simulate: Simulates a step.
    """

    def __init__(
        self, spec: StageSpec, registry: Registry, limit: Limit, simulate: Simulate
    ) -> None:
        self.spec = spec
        self.registry = registry
        self.limit = limit
        self.simulate = simulate
        self.sizes = count_weights(spec)
        self.trained = count_trained(spec, registry)

    def run(self) -> Found:
        """Try layouts until one fits; if none does, look for the largest teacher that would."""
        trials = self.try_choices()
        fits = bool(trials) and trials[-1].fits
        return Found(self.spec, trials, None if fits else self.largest_teacher())

    def try_choices(self) -> list[LayoutTrial]:
        """Return the layouts tried, up to the first that fits.

        A layout with gradient checkpointing is omitted if it is known not to fit, because
        checkpointing saves only activations.
        """
        trials: list[LayoutTrial] = []
        beside: dict[LayoutChoice, int] = {}
        lasting: dict[LayoutChoice, int] = {}
        for choice in self.choices():
            least = least_need(choice, self.spec, self.sizes, self.trained)
            known = [least.device, lasting.get(choice, 0)]
            known += [least.device + more for of, more in beside.items() if choice.takes_like(of)]
            need, estimate = replace(least, device=max(known)), None
            if self.limit.holds(need):
                estimate, need = self._simulated(choice)
                beside[choice] = need.device - least.device
                kept = need.device - estimate.memory.get("activations", 0)
                lasting[replace(choice, checkpointing=True)] = kept
            elif choice.checkpointing:
                continue
            fits = self.limit.holds(need)
            trials.append(LayoutTrial(choice, need, fits, estimate))
            if fits:
                break
        return trials

    def largest_teacher(self) -> Largest | None:
        """Return the deepest teacher of the same width that would fit, and its layout.

        Layouts are simulated in the order of the number of blocks that may fit. The result is None
        unless exactly one teacher is read and at least one block of it fits.
        """
        if len(self.sizes) != 2:
            return None
        teacher = self.spec.teachers[0]
        fewer = self._sizes_without_block()
        block = self.sizes[teacher.info.name] - fewer[teacher.info.name]
        room = {}
        for choice in self.choices():
            if choice.checkpointing:
                least = least_need(choice, self.spec, self.sizes, self.trained)
                saved = _less(least, least_need(choice, self.spec, fewer, self.trained))
                room[choice] = self._blocks(least, saved), saved
        found: Largest | None = None
        for choice, (most, saved) in sorted(room.items(), key=lambda item: -item[1][0]):
            if most < 1 or (found is not None and found.blocks >= most):
                break
            blocks = self._blocks(self._simulated(choice)[1], saved)
            if blocks >= 1 and (found is None or blocks > found.blocks):
                weights = self.sizes[teacher.info.name] - (teacher.info.layers - blocks) * block
                found = Largest(blocks, weights, choice)
        return found

    def choices(self) -> Iterator[LayoutChoice]:
        """Yield the choices that are valid for the stage, cheapest first."""
        return filter(self._works, all_choices(self.spec.layout.world))

    def _works(self, choice: LayoutChoice) -> bool:
        try:
            applied = choice.apply(self.spec)
            check_spec(applied, self.registry)
            check_modeled(applied)
        except GkdError:
            return False
        return True

    def _simulated(self, choice: LayoutChoice) -> tuple[Estimate, Need]:
        estimate = self.simulate(choice.apply(self.spec))
        return estimate, Need(estimate.peak, estimate.host * self.spec.layout.world)

    def _sizes_without_block(self) -> dict[str, int]:
        """Return the number of weights of each model if the teacher had one block less."""
        teacher = self.spec.teachers[0]
        config = copy.deepcopy(teacher.config)
        config.num_hidden_layers -= 1
        shallower = replace(teacher, config=config)
        return count_weights(replace(self.spec, teachers=(shallower,)))

    def _blocks(self, need: Need, saved: Need) -> int:
        """Return the largest number of teacher blocks with which everything fits.

        Args:
            need: The memory needed with the teacher as it is.
            saved: The memory that removing one block saves.
        """
        removed = [0]
        for taken, there, each in (
            (need.device, self.limit.device, saved.device),
            (need.host, self.limit.host, saved.host),
        ):
            if there is not None and taken > there:
                removed.append(-(-(taken - there) // each) if each else self._depth)
        return self._depth - max(removed)

    @property
    def _depth(self) -> int:
        return self.spec.teachers[0].info.layers


def _less(need: Need, other: Need) -> Need:
    return Need(need.device - other.device, need.host - other.host)
