"""`LossScale`: the factor of the loss that keeps its gradient within the range of fp16."""

from __future__ import annotations

from collections.abc import Mapping

from gkd_core.config.schema import TrainingConfig

FIRST = 2.0**16
LEAST = 1.0
PATIENCE = 2000
"""Steps without overflow after which a larger scale is tried."""


class LossScale:
    """Dynamic loss scaling (Micikevicius et al., ICLR 2018, section 3.2).

    Small gradients would underflow to 0 in fp16, so the loss is multiplied by the scale and the
    gradients divided by it. If a gradient overflows, the step is skipped and the scale halved;
    after many steps without overflow, it is doubled. At the smallest scale, an overflow is an error
    like any other non-finite gradient.

    Attributes:
        value: Factor of the next step's loss; a power of 2, which causes no rounding.
        skipped: Number of steps skipped in this stage.
        overflowed: Whether the last step was skipped.
    """

    def __init__(self) -> None:
        self.value = FIRST
        self.skipped = 0
        self.overflowed = False
        self._calm = 0

    def update(self, overflows: bool) -> None:
        """Record whether a step's gradient overflowed; its weights must then not change.

        Args:
            overflows: Equal on all ranks.
        """
        self.overflowed = overflows and self.value > LEAST
        self.skipped += self.overflowed
        self._calm = 0 if overflows else self._calm + 1
        if overflows:
            self.value = max(self.value / 2, LEAST)
        elif self._calm == PATIENCE:
            self.value, self._calm = self.value * 2, 0

    def read(self) -> dict[str, float]:
        """Return the values to log."""
        return {"loss_scale": self.value, "skipped_steps": self.skipped}

    def state_dict(self) -> dict[str, float]:
        """Return the state needed to resume a run."""
        return {"value": self.value, "skipped": self.skipped, "calm": self._calm}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the result of `state_dict`."""
        self.value = state["value"]
        self.skipped, self._calm = int(state["skipped"]), int(state["calm"])


def loss_scale(config: TrainingConfig) -> LossScale | None:
    """Return the loss scale of a stage; only fp16 needs one."""
    return LossScale() if config.precision == "fp16" else None
