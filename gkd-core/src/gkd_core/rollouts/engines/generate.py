"""`Generate`: the rollout engine that calls Hugging Face's `generate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gkd_core.contract.rollout import Prompts, RolloutEngine, TokenSampling, Written
from gkd_core.distributed.ranks import world_size
from gkd_core.models.generation import own_settings_aside
from gkd_core.rollouts.writer import Writer

NO_IDS = torch.zeros(0, 0, dtype=torch.int64)
"""What the text so far is to processors that look at the scores only."""


class Generate(RolloutEngine):
    """Writes with `generate` of transformers: samples, or takes the most likely token.

    Settings that the model itself has for generation, such as a repetition penalty, do not apply:
    on-policy losses need text drawn from the distribution that they compare.
    """

    name = "generate"
    mixes = True

    class Config(RolloutEngine.Config):
        """Options of `generate`."""

        temperature: float = Field(
            1.0, ge=0, description="Divides the logits; 0 takes the most likely token each time."
        )
        top_k: int = Field(
            0, ge=0, description="Draw from the K most likely tokens only; 0 for all."
        )
        top_p: float = Field(
            1.0,
            gt=0,
            le=1,
            description="Draw from the most likely tokens that together have this probability.",
        )

    config: Config

    def sampling(self) -> TokenSampling:
        """Return how it draws tokens."""
        return TokenSampling(self.config.temperature, self.config.top_k, self.config.top_p)

    def write(self, prompts: Prompts, writer: Writer) -> Written:
        """Continue all prompts at once."""
        if writer.mixes:
            return self._write_mixed(prompts, writer)
        model = writer.model
        inputs = {name: value.to(writer.device) for name, value in prompts.padded().items()}
        drawing = None if self.config.temperature == 0 else Drawing(prompts.seeds)
        last = [] if drawing is None else [*self._warpers(), drawing]
        with own_settings_aside(model):
            rows = model.generate(
                **inputs,
                generation_config=_greedy(prompts),
                logits_processor=LogitsProcessorList(last),
                # Weights may be sharded: a rank whose rows have ended runs the model for others.
                synced_gpus=world_size() > 1,
            )
        assert isinstance(rows, Tensor), "nothing else is asked for"
        texts = rows[:, inputs["input_ids"].shape[1] :].tolist()
        certain = [[0.0] * len(text) for text in texts]
        return Written(texts, certain if drawing is None else drawing.log_probs())

    def _write_mixed(self, prompts: Prompts, writer: Writer) -> Written:
        """Continue all prompts with two models: transformers' `generate` knows only one."""
        shape, drawing = self._warpers(), Drawing(prompts.seeds)
        chosen: list[Tensor] = []
        ended = torch.zeros(len(prompts), dtype=torch.bool)
        ends = torch.tensor(prompts.end_ids, dtype=torch.int64)
        decoding = writer.start(prompts)
        while True:
            assert isinstance(decoding.logits, Tensor), "mixed logits are whole"
            tokens = drawing(NO_IDS, shape(NO_IDS, decoding.logits)).argmax(-1)
            chosen.append(tokens.unsqueeze(1).cpu())
            ended |= torch.isin(chosen[-1].squeeze(1), ends)
            full = len(chosen) == prompts.max_new_tokens
            if full or not writer.any_rank(not bool(ended.all())):
                return Written(torch.cat(chosen, 1).tolist(), drawing.log_probs())
            decoding.append(tokens)

    def _warpers(self) -> LogitsProcessorList:
        """Return functions that change the distribution from which tokens are drawn."""
        if self.config.temperature == 0:
            return LogitsProcessorList([TopKLogitsWarper(1)])
        found = LogitsProcessorList()
        if self.config.temperature != 1:
            found.append(TemperatureLogitsWarper(self.config.temperature))
        if self.config.top_k:
            found.append(TopKLogitsWarper(self.config.top_k))
        if self.config.top_p < 1:
            found.append(TopPLogitsWarper(self.config.top_p))
        return found


class GumbelNoise:
    """A logits processor: adds noise, so that the maximum of scores is a draw from their softmax.

    `generate` draws all rows from one generator. Here each row has its own, so that its text does
    not depend on the rows that are written with it, nor on the number of ranks.

    Args:
        seeds: A seed for each row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores `[N, V]` with noise of the standard Gumbel distribution."""
        noise = [
            torch.empty(scores.shape[1], dtype=torch.float64).exponential_(generator=generator)
            for generator in self._generators
        ]
        return scores - torch.stack(noise).log_().to(scores)


class Drawing:
    """A logits processor: draws a token from each softmax, and notes how likely it was.

    Args:
        seeds: A seed for each row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._noise = GumbelNoise(seeds)
        self._likely: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores whose maximum is the token that is drawn, `[N, V]`."""
        noisy = self._noise(input_ids, scores)
        tokens = noisy.argmax(-1, keepdim=True)
        self._likely.append(scores.gather(1, tokens) - scores.logsumexp(-1, keepdim=True))
        return noisy

    def log_probs(self) -> list[list[float]]:
        """Return the log-probability of each token that was drawn, row by row."""
        return torch.cat(self._likely, 1).tolist()


def _greedy(prompts: Prompts) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=prompts.max_new_tokens,
        do_sample=False,
        eos_token_id=list(prompts.end_ids) or None,
        pad_token_id=prompts.pad_id,
    )
