"""Operations: changes that a method makes to the forward pass of a model.

``Replace("student.embedding", double)``
    applies a function to the tensor
``Add("student@moved.embedding", direction)``
    adds a tensor computed before the pass
``Perturb("student.hidden[2]", std=0.1)``
    adds noise
``Interchange("student@swapped.hidden[2]", "student@source.hidden[2]")``
    inserts the tensor of an earlier pass
``Swap("student.block[2]", "teacher.block[3,4]")``
    runs other blocks in place of a block

All operations are out of place: tensors captured before do not change. Several operations of one
method at one site are applied in the order in which `Method.writes` returns them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gkd_core.errors import MethodError
from gkd_core.hooks.discarded import discarded_backward
from gkd_core.hooks.paths import WRITABLE_SITES, Path, parse_path

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.step import Step
    from gkd_core.hooks.features import View
    from gkd_core.models.sites import Sites


@dataclass(frozen=True)
class When:
    """The conditions under which an operation applies; all must hold.

    Attributes:
        first: First step of the stage, 0-based.
        last: Last step, or None for the end of the stage.
        stages: Names of stages; all if empty.
        mode: `train`, `eval` (only while the student is evaluated) or `always`.
    """

    first: int = 0
    last: int | None = None
    stages: tuple[str, ...] = ()
    mode: Literal["train", "eval", "always"] = "train"

    def holds(self, step: Step, training: bool) -> bool:
        """Return whether the operation applies in a step, or in the evaluation after it."""
        if self.mode not in ("always", "train" if training else "eval"):
            return False
        end = math.inf if self.last is None else self.last
        return self.first <= step.index <= end and (not self.stages or step.stage in self.stages)

    def __str__(self) -> str:
        steps = f"from step {self.first}" if self.first else ""
        if self.last is not None:
            steps = f"{steps} to step {self.last}".strip()
        stages = f"in {', '.join(self.stages)}" if self.stages else ""
        mode = "" if self.mode == "train" else f"mode {self.mode}"
        return ", ".join(filter(None, (steps, stages, mode)))


@dataclass(frozen=True)
class OperationContext:
    """Everything an operation may use when its pass is about to begin.

    Attributes:
        student: The method's view of the student so far; its own passes are `student.at(name)`.
            Empty before a pass of a teacher, because teachers run first.
        teacher: The method's view of the teacher so far.
        batch: The micro-batch.
        step: The training step, with the method's generator.
        seed: Seed for the operation's random draws, drawn once per step.
        sites: Sites of the models, as `student` and `teacher`.
        inputs: Model inputs in the method's own passes, by pass name.
    """

    student: View
    teacher: View
    batch: Batch
    step: Step
    seed: int
    sites: dict[str, Sites]
    inputs: Mapping[str, Mapping[str, Tensor]]

    def gradient(self, loss: Tensor, tensor: Tensor) -> Tensor:
        """Return the gradient of a scalar loss with respect to a tensor of the student.

        It takes a separate backward pass, in which no parameter receives a gradient.
        """
        with discarded_backward():
            (found,) = torch.autograd.grad(loss, tensor, retain_graph=True)
        return found


@dataclass(frozen=True)
class Operation(ABC):
    """A change of the forward pass at a site.

    Attributes:
        site: Path of the site, such as `student.hidden[2]`; several layers are each changed.
        when: When it applies.
    """

    site: str
    when: When = field(default=When(), kw_only=True)
    effect: ClassVar[str]

    @abstractmethod
    def bind(self, context: OperationContext) -> Callable[..., Any]:
        """Return the function to apply at the site, for one pass of one micro-batch.

        The function is called again when a checkpointed block is recomputed and must then do the
        same: random draws and reads of other passes happen here.
        """

    @property
    def reads(self) -> tuple[str, ...]:
        """Paths of earlier passes that the operation needs."""
        return ()

    def path(self, owner: str) -> Path:
        """Return the parsed site.

        Raises:
            MethodError: It is not a path, or not one that this operation can change.
        """
        path = parse_path(self.site, owner, WRITABLE_SITES)
        if (path.site == "block") != isinstance(self, Swap) or path.reduce:
            raise MethodError(
                f"{owner}: cannot {self.effect} {self.site}. Blocks are swapped; tensors, which "
                "are whole, are replaced, added to, perturbed or interchanged"
            )
        return path

    def __str__(self) -> str:
        when = str(self.when)
        return f"{self.effect} {self.site}{self._detail()}{f' ({when})' if when else ''}"

    def _detail(self) -> str:
        return ""


@dataclass(frozen=True)
class Replace(Operation):
    """Apply a function to the tensor; the gradient flows through it.

    Attributes:
        by: Function of the tensor. It must not draw random numbers.
    """

    by: Callable[[Tensor], Tensor]
    effect: ClassVar[str] = "replace"

    def bind(self, context: OperationContext) -> Callable[[Tensor], Tensor]:
        """Return the function itself."""
        return self.by


@dataclass(frozen=True)
class Add(Operation):
    """Add a tensor that is computed before the pass, such as a step along a gradient.

    Attributes:
        amount: Computes the tensor to add, which broadcasts to the one at the site.
    """

    amount: Callable[[OperationContext], Tensor]
    effect: ClassVar[str] = "add to"

    def bind(self, context: OperationContext) -> Callable[[Tensor], Tensor]:
        """Compute the amount."""
        amount = self.amount(context)
        return lambda tensor: tensor + amount.to(tensor.dtype)


@dataclass(frozen=True)
class Perturb(Operation):
    """Add Gaussian noise, drawn anew in every step from the method's generator.

    The noise of a row depends on the row alone: not on the others of its micro-batch and, on a CPU,
    not on padding before or after it.

    Attributes:
        std: Standard deviation.
    """

    std: float
    effect: ClassVar[str] = "perturb"

    def bind(self, context: OperationContext) -> Callable[[Tensor], Tensor]:
        """Fix the seed of each row; the noise itself is drawn where it is added."""
        seeds = [context.seed + row for row in context.batch.rows.tolist()]
        mask = context.batch.inputs.get("attention_mask")
        starts = [0] * len(seeds) if mask is None else mask.argmax(1).tolist()

        def perturbed(tensor: Tensor) -> Tensor:
            rows = zip(tensor, seeds, starts, strict=True)
            noise = torch.stack([_noise(row, seed, start) for row, seed, start in rows])
            return tensor + self.std * noise

        return perturbed

    def _detail(self) -> str:
        return f" with noise of standard deviation {self.std:g}"


@dataclass(frozen=True)
class Interchange(Operation):
    """Insert the tensor that an earlier pass had at a site: an interchange intervention.

    The gradient flows to that pass (Geiger et al., 2021, arXiv:2106.02997).

    Attributes:
        source: Path of one whole tensor of an earlier pass of the same model.
        positions: Computes the positions, bool `[B, S]`; everywhere if None.
    """

    source: str
    positions: Callable[[OperationContext], Tensor] | None = None
    effect: ClassVar[str] = "interchange"

    @property
    def reads(self) -> tuple[str, ...]:
        """The source."""
        return (self.source,)

    def bind(self, context: OperationContext) -> Callable[[Tensor], Tensor]:
        """Fetch the source and the positions."""
        path = parse_path(self.source, self.effect)
        view = (context.student if path.side == "student" else context.teacher).at(path.run)
        (capture,) = path.resolve(view.model, self.effect)
        source = view[capture]
        if self.positions is None:
            return lambda tensor: source.to(tensor.dtype)
        chosen = self.positions(context)

        def interchanged(tensor: Tensor) -> Tensor:
            # Attention sites are [B, A, S, D].
            mask = chosen[:, None, :, None] if tensor.dim() == 4 else chosen[..., None]
            return torch.where(mask, source.to(tensor.dtype), tensor)

        return interchanged

    def _detail(self) -> str:
        return f" with {self.source}"


@dataclass(frozen=True)
class Swap(Operation):
    """Run other modules in place of a block.

    Attributes:
        by: Path of one or more blocks, run in sequence (`teacher.block[3,4]`), or a module with
            the block's call signature.
    """

    by: str | nn.Module
    effect: ClassVar[str] = "swap"

    @property
    def borrows(self) -> bool:
        """Whether the blocks are the teacher's."""
        return (
            isinstance(self.by, str)
            and parse_path(self.by, self.effect, ("block",)).side == "teacher"
        )

    def bind(self, context: OperationContext) -> Callable[..., Any]:
        """Return the callable that takes the place of the block."""
        if isinstance(self.by, nn.Module):
            return self.by
        path = parse_path(self.by, self.effect, ("block",))
        model = (context.student if path.side == "student" else context.teacher).model
        numbers = [capture.layer or 0 for capture in sorted(path.resolve(model, self.effect))]
        return chain([context.sites[path.side].blocks[number - 1] for number in numbers])

    def _detail(self) -> str:
        by = self.by if isinstance(self.by, str) else type(self.by).__name__
        return f" for {by}"


def _noise(row: Tensor, seed: int, start: int) -> Tensor:
    """Return noise of the shape of a row, `[S, D]` or `[A, S, D]`.

    Args:
        row: The row.
        seed: The seed.
        start: The first position with a token. Noise is drawn position by position from here on.
    """
    positions = row.dim() - 2
    shape = row.movedim(positions, 0).shape
    generator = torch.Generator(row.device).manual_seed(seed)
    # `rand` draws sequentially on a CPU; `normal_` draws the end of a tensor differently.
    uniform = torch.rand(shape, generator=generator, device=row.device, dtype=torch.float64)
    normal: Tensor = torch.special.ndtri(uniform.clamp(min=torch.finfo(torch.float64).tiny))
    return normal.roll(start, 0).to(row.dtype).movedim(0, positions)


def chain(blocks: Sequence[nn.Module]) -> Callable[..., Any]:
    """Return a function that runs blocks in sequence, with the call signature of one of them."""

    def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        output: Any = hidden
        for block in blocks:
            output = block(hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, (tuple, list)) else output
        return output

    return run


@dataclass(frozen=True)
class Pass:
    """A forward pass that belongs to one method, in addition to the main pass.

    Attributes:
        name: Its name in paths: `student@NAME.hidden[2]`.
        inputs: Returns the model inputs in place of the batch's, of the same shape; None for the
            same inputs. Called by every rank, for the micro-batch that it trains on.
    """

    name: str
    inputs: Callable[[Batch, Step], dict[str, Tensor]] | None = None
