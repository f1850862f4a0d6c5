"""The layouts that a search chooses from, with a lower bound on the memory of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from gkd_core.config.schema import Offload, Placement
from gkd_core.planning.shapes import TrainedPart
from gkd_core.training.stage_spec import StageSpec

BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class LayoutChoice:
    """A layout that the search can choose.

    Attributes:
        tensor: Processes that share one copy of each model.
        zero: Stage of DeepSpeed ZeRO; 0 for none.
        teacher: Where the teachers' weights are kept.
        optimizer: Where the optimizer state is kept.
        params: Where the student's weights are kept between uses.
        checkpointing: Whether activations are recomputed in the backward pass.
    """

    tensor: int
    zero: int
    teacher: Placement
    optimizer: Offload
    params: Offload
    checkpointing: bool

    @property
    def label(self) -> str:
        """A short name, such as `tensor 8, ZeRO 2, checkpointing`."""
        parts = [f"tensor {self.tensor}", f"ZeRO {self.zero}"]
        if self.teacher != "replicated":
            parts.append("teacher on host" if self.teacher == "offload" else "teacher zero3")
        if self.optimizer != "none":
            parts.append(f"{'optimizer' if self.params == 'none' else 'student'} on host")
        return ", ".join([*parts, *(["checkpointing"] if self.checkpointing else [])])

    def settings(self, spec: StageSpec) -> list[str]:
        """Return the choice as `--set` arguments for a stage."""
        return [spec.settings.path(text) for text in self._changes(spec)]

    def _changes(self, spec: StageSpec) -> list[str]:
        found = [f"parallel.tensor={self.tensor}", f"parallel.zero={self.zero}"]
        several = len(spec.config.teachers) > 1
        for teacher in spec.config.teachers:
            name = f"teachers.{teacher.name}" if several else "teacher"
            if self.teacher != teacher.placement:
                found.append(f"{name}.placement={self.teacher}")
            if teacher.tensor not in (None, self.tensor):
                found.append(f"{name}.tensor={self.tensor}")
        for name, place in (("optimizer", self.optimizer), ("params", self.params)):
            if place != "none":
                found.append(f"parallel.offload_{name}={place}")
        if self.checkpointing:
            found.append("training.gradient_checkpointing=true")
        return found

    def takes_like(self, other: LayoutChoice) -> bool:
        """Return whether this choice needs all that another needs besides weights and states.

        That is: the same activations, the same ZeRO buffers or more, the same weights in transit.
        """
        return (
            (self.tensor, self.checkpointing) == (other.tensor, other.checkpointing)
            and other.zero in (0, self.zero)
            and other.teacher in ("replicated", self.teacher)
            and other.optimizer in ("none", self.optimizer)
            and other.params in ("none", self.params)
        )

    def apply(self, spec: StageSpec) -> StageSpec:
        """Return a copy of the spec with this choice as its layout."""
        config = spec.config
        parallel = config.parallel.model_copy(
            update={
                "tensor": self.tensor,
                "zero": self.zero,
                "offload_optimizer": self.optimizer,
                "offload_params": self.params,
            }
        )
        training = config.training.model_copy(update={"gradient_checkpointing": self.checkpointing})
        teachers = tuple(
            replace(source, tensor=self.tensor, placement=self.teacher) for source in spec.teachers
        )
        place = {"tensor": self.tensor, "placement": self.teacher}
        named = [teacher.model_copy(update=place) for teacher in config.teachers]
        changed = config.model_copy(
            update={"parallel": parallel, "training": training, "teachers": named}
        )
        settings = replace(spec.settings, config=changed)
        return replace(spec, settings=settings, teachers=teachers)


@dataclass(frozen=True)
class Need:
    """The memory that a layout needs.

    Attributes:
        device: Bytes on each GPU.
        host: Bytes of host memory, for all processes.
    """

    device: int
    host: int


def all_choices(world: int) -> Iterator[LayoutChoice]:
    """Yield the choices for a number of processes, cheapest first."""
    for tensor, rung in _rungs(world):
        for checkpointing in (False, True):
            yield LayoutChoice(tensor, *rung, checkpointing)


def least_need(
    choice: LayoutChoice, spec: StageSpec, sizes: Mapping[str, int], trained: TrainedPart
) -> Need:
    """Return a lower bound: the memory of weights, gradients and optimizer state alone.

    Args:
        choice: The layout.
        spec: The stage.
        sizes: Number of weights by model.
        trained: What of the student is trained.
    """
    world = spec.layout.world
    copies = world // choice.tensor
    held, waits = _bytes_per_weight(choice, copies, trained.state / trained.weights)
    student = trained.weights / choice.tensor
    frozen = 4 * max(sizes["student"] - trained.weights, 0) / choice.tensor
    if choice.apply(spec).shares_weights:
        frozen = 0.0
    teachers = sum(
        BYTES[teacher.dtype] * sizes.get(teacher.name, 0) / choice.tensor
        for teacher in spec.config.teachers
    )
    share = {"replicated": 1.0, "zero3": 1 / copies, "offload": 0.0}[choice.teacher]
    on_host = teachers if choice.teacher == "offload" else 0.0
    return Need(
        device=round(held * student + frozen + share * teachers),
        host=round((waits * student + on_host) * world),
    )


def _bytes_per_weight(choice: LayoutChoice, copies: int, state: float) -> tuple[float, float]:
    """Return the bytes that a process keeps of a trained weight: on its GPU, and on the host.

    Args:
        choice: The layout.
        copies: Processes that ZeRO divides the weights over.
        state: Bytes of the optimizer state.
    """
    updated = 8 + state  # the fp32 weight, or ZeRO's master copy of it, and its gradient
    if choice.optimizer == "none":
        shared, waits = 4 + updated / copies, 0.0
        held = {0: updated, 1: shared, 2: shared, 3: (4 + updated) / copies}[choice.zero]
    else:
        held, waits = {1: 4.0, 2: 4.0, 3: 4 / copies}[choice.zero], updated / copies
    return (held if choice.params == "none" else 0.0), waits


Rung = tuple[int, Placement, Offload, Offload]


def _rungs(world: int) -> Iterator[tuple[int, Rung]]:
    """Yield tensor-parallel degrees, each with one way to place the weights and states.

    With teachers in host memory, the highest degree comes first: each process holds its own shard
    there, so a higher degree needs less host memory.
    """
    degrees = [degree for degree in range(1, world + 1) if world % degree == 0]
    for tensor in degrees:
        for rung in _on_devices(world // tensor):
            yield tensor, rung
    for tensor in degrees:
        teacher: Placement = "zero3" if tensor < world else "replicated"
        yield tensor, (2, teacher, "cpu", "none")
    for tensor in reversed(degrees):
        yield tensor, (2 if tensor < world else 0, "offload", "none", "none")
    for tensor in reversed(degrees):
        yield tensor, (3, "offload", "cpu", "cpu")


def _on_devices(copies: int) -> Iterator[Rung]:
    yield 0, "replicated", "none", "none"
    if copies > 1:
        yield 1, "replicated", "none", "none"
        yield 2, "replicated", "none", "none"
        yield 2, "zero3", "none", "none"
        yield 3, "zero3", "none", "none"
