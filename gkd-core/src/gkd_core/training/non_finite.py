"""`NonFiniteGuard`: stops training when a loss or gradient is not finite."""

from __future__ import annotations

import math

import torch

from gkd_core.contract.step import Step
from gkd_core.errors import GkdError
from gkd_core.training.step import StepResult


class NonFiniteGuard:
    """Finds the first step whose loss or gradient is not finite.

    Reading a value synchronizes with the device. Steps are therefore only collected, and checked
    together before something reads from the device anyway: a log line, an evaluation, a checkpoint.
    So neither a checkpoint nor the best student can hold weights corrupted by a bad step.
    """

    def __init__(self) -> None:
        self._unseen: list[tuple[Step, StepResult]] = []

    def add(self, step: Step, result: StepResult) -> None:
        """Collect a step; a skipped one did not change the weights."""
        if not result.skipped:
            self._unseen.append((step, result))

    def check(self) -> None:
        """Check the steps collected since the last check.

        Raises:
            GkdError: A loss or gradient is not finite; the error names the stage, step and losses.
        """
        totals = [result.losses["total"] for _, result in self._unseen]
        norms = [result.gradient_norm for _, result in self._unseen]
        if totals:
            finite = (torch.stack(totals) + torch.stack(norms)).isfinite().tolist()
            if not all(finite):
                raise _not_finite(*self._unseen[finite.index(False)])
        self._unseen.clear()


def _not_finite(step: Step, result: StepResult) -> GkdError:
    losses = result.read()
    values = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
    where = f"stage '{step.stage}' at step {step.index + 1} of {step.total}"
    if all(map(math.isfinite, losses.values())):
        return GkdError(
            f"the gradient of {where} is not finite (norm {float(result.gradient_norm):g}), though "
            f"the losses are: {values}. Lower training.lr, or train with "
            "training.precision = 'fp32'"
        )
    return GkdError(
        f"the loss of {where} is not finite: {values}. Lower training.lr or the weight of the "
        "term, or train with training.precision = 'fp32'"
    )
