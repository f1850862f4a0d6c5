"""`NonFiniteGuard`: ends training when a loss or gradient is not finite, and says why."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from gkd_core.contract.step import Step
from gkd_core.distributed.ranks import world_size
from gkd_core.errors import GkdError
from gkd_core.optim.engine import LocalEngine
from gkd_core.training.examination import examine, examine_teachers
from gkd_core.training.finding import Finding
from gkd_core.training.saved_step import save_step
from gkd_core.training.step import StepResult

if TYPE_CHECKING:
    from gkd_core.training.stage import Stage

MOST = 100
"""Steps that are collected before they are checked."""


class NonFiniteGuard:
    """Finds the first step whose loss or gradient is not finite.

    Reading a value synchronizes with the device. Steps are therefore only collected, and checked
    together before something reads from the device anyway: a log line, an evaluation, a checkpoint.
    Until then the engine leaves the weights as they were before the bad step.

    Args:
        stage: The stage.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._unseen: list[tuple[Step, StepResult]] = []
        self._skipped: tuple[Step, StepResult] | None = None
        # Only the weights stay as they were: the state of a method goes on changing.
        self._at_once = stage.engine.waits or any(True for _ in stage.objective.stateful())

    def add(self, step: Step, result: StepResult) -> None:
        """Collect a step; check it if that costs nothing or cannot wait.

        Raises:
            GkdError: As `check`; or the gradient overflowed in fp16 because of a teacher.
        """
        if result.skipped:
            self._skipped = step, result
            broken = examine_teachers(self._stage, result, step)
            if broken is not None:
                self._refuse(step, result, broken)
            return
        self._unseen.append((step, result))
        if self._at_once or len(self._unseen) == MOST:
            self.check()

    def check(self) -> None:
        """Check the steps collected since the last check.

        Raises:
            GkdError: A loss or gradient is not finite; the error names the step, the losses, and
                what is not finite first.
        """
        totals = [result.losses["total"] for _, result in self._unseen]
        norms = [result.gradient_norm for _, result in self._unseen]
        if totals:
            finite = (torch.stack(totals) + torch.stack(norms)).isfinite().tolist()
            if not all(finite):
                self._refuse(*self._unseen[finite.index(False)])
        self._unseen.clear()

    def end(self, steps: int) -> None:
        """Check that the stage has trained anything.

        Args:
            steps: The steps of the stage, those before it was resumed included.

        Raises:
            GkdError: All of them were skipped.
        """
        scale = self._stage.engine.scale
        if scale is None or not 0 < steps <= scale.skipped:
            return
        problem = (
            f"stage '{self._stage.name}' has not trained anything: in fp16 the gradient overflowed "
            f"in all of its {steps} steps, the last at a loss scale of {scale.value * 2:g}"
        )
        if self._skipped is not None:
            self._refuse(*self._skipped, problem=problem)
        raise GkdError(f"{problem}. Train with training.precision = 'bf16' or 'fp32'")

    def _refuse(
        self,
        step: Step,
        result: StepResult,
        found: Finding | None = None,
        problem: str | None = None,
    ) -> NoReturn:
        """Save a step and raise the error that says what is wrong with it."""
        stage, saved = self._stage, ""
        problem = problem or _problem(step, result)
        try:
            saved = _saying(stage, save_step(stage, step, result))
            found = found or self._examine(step, result)
        except Exception as error:  # what ends the run is the step, not what is said about it
            saved = f"{saved}. Examining the step failed: {type(error).__name__}: {error}"
        said = "" if found is None else f". {_capital(str(found))}"
        raise GkdError(f"{problem}{said}. {_advice(stage, step, found)}{saved}")

    def _examine(self, step: Step, result: StepResult) -> Finding | None:
        """Repeat a step and return what is not finite first in it."""
        stage, batches = self._stage, result.start.batches
        result.start.restore(stage)
        alone = isinstance(stage.engine, LocalEngine) and world_size() == 1
        return examine(stage, batches, step, result.counts, backward=alone).found


def _problem(step: Step, result: StepResult) -> str:
    losses = result.read()
    values = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
    where = f"stage '{step.stage}' at step {step.index + 1} of {step.total}"
    if all(map(math.isfinite, losses.values())):
        norm = f"norm {float(result.gradient_norm):g}"
        return f"the gradient of {where} is not finite ({norm}), though the losses are: {values}"
    return f"the loss of {where} is not finite: {values}"


def _advice(stage: Stage, step: Step, found: Finding | None) -> str:
    """Return advice for the user; a lower rate helps only if training caused the problem."""
    precision, scale = stage.config.training.precision, stage.engine.scale
    if found is not None and found.side == "teacher":
        return _teacher_advice(found, precision)
    is_student = found is not None and found.side == "student"
    updates = step.index - (0 if scale is None else scale.skipped)
    if updates > 0:
        advice = (
            "lower training.lr" if is_student else "lower training.lr or the weight of the term"
        )
    else:
        other = "start from another student" if is_student else "lower the weight of the term"
        advice = f"{other}; no update has changed the student yet"
    if precision != "fp32":
        advice = f"train with training.precision = 'fp32', or {advice}"
    return _capital(advice)


def _teacher_advice(found: Finding, precision: str) -> str:
    if found.excess is not None:
        return (
            "These values are finite, but beyond what a loss can use: name another checkpoint, or "
            f"a method that does not read {found.excess.site} of the teacher"
        )
    if found.place.startswith("the source"):
        return "Correct what the source answers for these rows"
    if precision == "fp16":
        return (
            "Its weights are finite, but what it computes is beyond the range of fp16: train with "
            "training.precision = 'bf16' or 'fp32'"
        )
    return (
        "Its weights are finite, but it cannot compute these rows: name a checkpoint that can, or "
        "leave the rows out"
    )


def _saying(stage: Stage, saved: Path) -> str:
    size = sum(path.stat().st_size for path in saved.iterdir())
    run = shlex.quote(str(stage.directory.parent.parent))
    return f". The step is saved ({size / 1e6:,.1f} MB): gkd replay {run} repeats it"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
