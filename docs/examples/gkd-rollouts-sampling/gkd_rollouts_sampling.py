"""A rollout engine of one file: sampling, each row from its own seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from gkd_core.api import LinearLogits, Prompts, RolloutEngine, Writer, Written, hookimpl


class Sampling(RolloutEngine):
    """Draws each token from the model's distribution."""

    name = "sampling"

    class Config(RolloutEngine.Config):
        """Options."""

        temperature: float = Field(1.0, gt=0, description="Divides the logits.")
        cooling: float = Field(1.0, gt=0, le=1, description="Factor of it after each step.")

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.temperature = self.config.temperature

    def write(self, prompts: Prompts, writer: Writer) -> Written:
        """Draw until all rows of all ranks have ended."""
        generators = [torch.Generator().manual_seed(seed) for seed in prompts.seeds]
        texts: list[list[int]] = [[] for _ in prompts.rows]
        likely: list[list[float]] = [[] for _ in prompts.rows]
        decoding = writer.start(prompts)
        for left in reversed(range(prompts.max_new_tokens)):
            logits = decoding.logits
            dense = logits.dense() if isinstance(logits, LinearLogits) else logits
            shares = (dense.cpu() / self.temperature).softmax(-1)
            pairs = zip(shares, generators, strict=True)
            tokens = torch.cat(
                [torch.multinomial(share, 1, generator=draw) for share, draw in pairs]
            )
            drawn = shares.gather(1, tokens.unsqueeze(1)).squeeze(1).log()
            for row, (token, log_prob) in enumerate(zip(tokens, drawn, strict=True)):
                texts[row].append(int(token))
                likely[row].append(float(log_prob))
            ended = all(set(prompts.end_ids) & set(text) for text in texts)
            if not left or not writer.any_rank(not ended):
                break
            decoding.append(tokens.to(writer.device))
        self.temperature *= self.config.cooling
        return Written(texts, likely)

    def state_dict(self) -> dict[str, Any]:
        """Return the temperature."""
        return {"temperature": self.temperature}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the temperature."""
        self.temperature = state["temperature"]


@hookimpl
def gkd_register_rollouts() -> list[type[RolloutEngine]]:
    """Register the engine."""
    return [Sampling]
