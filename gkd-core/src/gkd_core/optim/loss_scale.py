"""`LossScale`: what a loss is multiplied by so that fp16 can hold its gradient."""

from __future__ import annotations

from collections.abc import Mapping

from gkd_core.config.schema import TrainingConfig

FIRST = 2.0**16
LEAST = 1.0
PATIENCE = 2000
"""Steps without overflow after which a larger scale is tried."""


class LossScale:
    """Dynamic loss scaling (Micikevicius et al., ICLR 2018, section 3.2).

    Small gradients would be 0 in fp16. So the loss is multiplied, and what comes out of backward
    divided. A step whose gradient overflows is skipped, and the scale halved; after many steps that
    did not, it is doubled. At the least scale an overflow is an error like any other.

    Attributes:
        value: What the loss of the next step is multiplied by; a power of 2, which rounds nothing.
        skipped: Steps skipped in this stage.
        overflowed: Whether the last step was.
    """

    def __init__(self) -> None:
        self.value = FIRST
        self.skipped = 0
        self.overflowed = False
        self._calm = 0

    def update(self, overflows: bool) -> None:
        """Note whether the gradient of a step overflowed; its weights must then stay as they are.

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
        """Return what is logged of it."""
        return {"loss_scale": self.value, "skipped_steps": self.skipped}

    def state_dict(self) -> dict[str, float]:
        """Return what a run needs to go on."""
        return {"value": self.value, "skipped": self.skipped, "calm": self._calm}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take back what `state_dict` returned."""
        self.value = state["value"]
        self.skipped, self._calm = int(state["skipped"]), int(state["calm"])


def loss_scale(config: TrainingConfig) -> LossScale | None:
    """Return the loss scale of a stage; only fp16 needs one."""
    return LossScale() if config.precision == "fp16" else None
