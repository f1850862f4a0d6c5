"""What a search for a layout chooses between, and what each choice takes at least."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from gkd_core.config.schema import Offload, Placement
from gkd_core.training.stage_spec import StageSpec

BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class LayoutChoice:
    """What the search chooses between.

    Attributes:
        tensor: Processes that share one copy of each model.
        zero: What DeepSpeed ZeRO divides.
        teacher: Where the teachers' weights are.
        optimizer: Where the optimizer state is.
        params: Where the student's weights wait.
        checkpointing: Whether activations are computed again.
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
        """Return the choice as `--set` takes it for a stage."""
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
        """Tell whether all that another choice takes beside weights and states, this one takes too.

        The same activations; the same buffers of ZeRO, or more; the same weights in transit.
        """
        return (
            (self.tensor, self.checkpointing) == (other.tensor, other.checkpointing)
            and other.zero in (0, self.zero)
            and other.teacher in ("replicated", self.teacher)
            and other.optimizer in ("none", self.optimizer)
            and other.params in ("none", self.params)
        )

    def apply(self, spec: StageSpec) -> StageSpec:
        """Return a spec with this choice in place of its own."""
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
    """What a layout takes.

    Attributes:
        device: Bytes on each GPU.
        host: Bytes of host memory, for all processes.
    """

    device: int
    host: int


def all_choices(world: int) -> Iterator[LayoutChoice]:
    """Yield what could be chosen for so many processes, what costs least first."""
    for tensor, rung in _rungs(world):
        for checkpointing in (False, True):
            yield LayoutChoice(tensor, *rung, checkpointing)


def least_need(choice: LayoutChoice, spec: StageSpec, sizes: Mapping[str, int]) -> Need:
    """Return what weights, gradients and optimizer state take at least.

    Args:
        choice: The layout.
        spec: The stage.
        sizes: Number of weights by model.
    """
    world = spec.layout.world
    copies = world // choice.tensor
    student = sizes["student"] / choice.tensor
    held = {0: 16.0, 1: 4 + 16 / copies, 2: 4 + 16 / copies, 3: 20 / copies}[choice.zero]
    waits = 0.0
    if choice.optimizer != "none":
        held, waits = {1: 4.0, 2: 4.0, 3: 4 / copies}[choice.zero], 16 / copies
    if choice.params != "none":
        held = 0.0
    teachers = sum(
        BYTES[teacher.dtype] * sizes.get(teacher.name, 0) / choice.tensor
        for teacher in spec.config.teachers
    )
    share = {"replicated": 1.0, "zero3": 1 / copies, "offload": 0.0}[choice.teacher]
    on_host = teachers if choice.teacher == "offload" else 0.0
    return Need(
        device=round(held * student + share * teachers),
        host=round((waits * student + on_host) * world),
    )


Rung = tuple[int, Placement, Offload, Offload]


def _rungs(world: int) -> Iterator[tuple[int, Rung]]:
    """Yield degrees and what goes with them.

    Every process has its part of a teacher in host memory: the more share one, the less that is.
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
