"""Find a layout in which a run fits, trying what costs least first.

The order is that of the GKD paper: ZeRO, which only communicates; then tensor parallelism, which
communicates in every layer; then host memory, which is slow: for the optimizer, for the teachers,
for all. Few layouts are simulated: one whose weights and optimizer state alone do not fit is left
out, and so is one that cannot fit as far as another with the same activations tells.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gkd_core.errors import GkdError
from gkd_core.planning.choice import LayoutChoice, Need, all_choices, least_need
from gkd_core.planning.estimate import Estimate
from gkd_core.planning.shapes import count_weights
from gkd_core.plugins import Registry
from gkd_core.runs.checks import check_spec
from gkd_core.training.stage_spec import StageSpec

Simulate = Callable[[StageSpec], Estimate]


@dataclass(frozen=True)
class Limit:
    """What there is.

    Attributes:
        device: Bytes of each GPU.
        host: Bytes of host memory, for all processes; None for as many as they take.
    """

    device: int
    host: int | None = None

    def holds(self, need: Need) -> bool:
        """Tell whether there is enough."""
        return need.device <= self.device and (self.host is None or need.host <= self.host)


@dataclass(frozen=True)
class LayoutTrial:
    """A choice that was looked at.

    Attributes:
        choice: The choice.
        need: What it takes: simulated, or what it is at least.
        fits: Whether that fits.
        estimate: The simulated step, or None if it was not worth one.
    """

    choice: LayoutChoice
    need: Need
    fits: bool
    estimate: Estimate | None

    def to_json(self, spec: StageSpec) -> dict[str, Any]:
        """Return the trial as JSON can hold it."""
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
        blocks: Its transformer blocks.
        weights: Number of its weights.
        choice: The layout.
    """

    blocks: int
    weights: int
    choice: LayoutChoice


@dataclass(frozen=True)
class Found:
    """What a search has found for a stage.

    Attributes:
        stage: The stage.
        trials: The layouts that were looked at; the last one fits, if there is one that does.
        largest: The largest teacher that would fit, if none does.
    """

    stage: StageSpec
    trials: Sequence[LayoutTrial]
    largest: Largest | None

    @property
    def fitting(self) -> LayoutTrial | None:
        """The layout that fits."""
        return self.trials[-1] if self.trials and self.trials[-1].fits else None

    def to_json(self) -> dict[str, Any]:
        """Return what was found as JSON can hold it."""
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
    """Looks for a layout of a stage.

    Args:
        spec: The stage, drawn for as many processes as there are GPUs.
        registry: The plugins.
        limit: What there is of memory.
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

    def run(self) -> Found:
        """Try layouts up to the first that fits; if there is none, look for the largest teacher."""
        trials = self.try_choices()
        fits = bool(trials) and trials[-1].fits
        return Found(self.spec, trials, None if fits else self.largest_teacher())

    def try_choices(self) -> list[LayoutTrial]:
        """Return the layouts up to the first that fits.

        One with gradient checkpointing is left out if it is known not to fit: what is there beside
        activations stays as it is.
        """
        trials: list[LayoutTrial] = []
        beside: dict[LayoutChoice, int] = {}
        lasting: dict[LayoutChoice, int] = {}
        for choice in self.choices():
            least = least_need(choice, self.spec, self.sizes)
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
        """Return how deep a teacher of the same width may be, and where it fits first.

        What is beside the teacher is simulated for the layouts in which most blocks have room.
        None if there is not one teacher that is read, or not a block of it fits.
        """
        if len(self.sizes) != 2:
            return None
        teacher = self.spec.teachers[0]
        fewer = self._sizes_without_block()
        block = self.sizes[teacher.info.name] - fewer[teacher.info.name]
        room = {}
        for choice in self.choices():
            if choice.checkpointing:
                least = least_need(choice, self.spec, self.sizes)
                saved = _less(least, least_need(choice, self.spec, fewer))
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
        """Yield what goes with the stage, what costs least first."""
        return filter(self._works, all_choices(self.spec.layout.world))

    def _works(self, choice: LayoutChoice) -> bool:
        try:
            check_spec(choice.apply(self.spec), self.registry)
        except GkdError:
            return False
        return True

    def _simulated(self, choice: LayoutChoice) -> tuple[Estimate, Need]:
        estimate = self.simulate(choice.apply(self.spec))
        return estimate, Need(estimate.peak, estimate.host * self.spec.layout.world)

    def _sizes_without_block(self) -> dict[str, int]:
        """Return the number of weights of each model, were the teacher a block shallower."""
        teacher = self.spec.teachers[0]
        config = copy.deepcopy(teacher.config)
        config.num_hidden_layers -= 1
        shallower = replace(teacher, config=config)
        return count_weights(replace(self.spec, teachers=(shallower,)))

    def _blocks(self, need: Need, saved: Need) -> int:
        """Return how many blocks a teacher may have for all to fit.

        Args:
            need: What is taken with the teacher as it is.
            saved: What a block less saves.
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
