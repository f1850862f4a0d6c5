"""`Writer`: a model that continues prompts, in evaluation mode and unseen by the methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gkd_core.contract.batch import Batch, Items, RowSource
from gkd_core.contract.rollout import Prompts
from gkd_core.distributed.data_parallel import any_of
from gkd_core.hooks.extraction import Extractor
from gkd_core.losses.divergences import cross_entropy
from gkd_core.rollouts.decoding import CoWriter, Decoding, MixedDecoding, ModelDecoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Writer:
    """A model that continues prompts.

    Args:
        source: What the model is.
        extractor: The model and its hooks.
        device: Where the model runs.
        precision: Returns the context in which the model runs in training, such as autocast.
        co_writer: What takes part in each token; None if the model writes alone.

    Attributes:
        source: `student` or `teacher`.
        device: Where the model runs.
        mixes: Whether another model takes part in each token. `start` then gives the logits of
            both together, and an engine must return the log-probability of each token that it drew.
    """

    def __init__(
        self,
        source: RowSource,
        extractor: Extractor,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[object]],
        co_writer: CoWriter | None = None,
    ) -> None:
        self.source = source
        self.device = device
        self.mixes = co_writer is not None
        self._co_writer = co_writer
        self._extractor = extractor
        self._precision = precision

    @property
    def model(self) -> PreTrainedModel:
        """The Hugging Face model. It may be sharded; all ranks then call it equally often."""
        return self._extractor.model

    def start(self, prompts: Prompts) -> Decoding:
        """Read the prompts, padded on the left, and return the rows to continue.

        Args:
            prompts: The prompts.
        """
        inputs = {name: value.to(self.device) for name, value in prompts.padded().items()}
        own = ModelDecoding(self._extractor, inputs)
        if self._co_writer is None:
            return own
        other = ModelDecoding(self._co_writer.extractor, inputs)
        return MixedDecoding(own, other, self._co_writer.share)

    def log_probs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return which labels the model has written, and the log-probability that each has for it.

        Args:
            batch: A batch on the CPU.

        Returns:
            Bool and fp64, `[B, S]`, on the CPU.
        """
        moved = batch.to(self.device)
        own = moved.targets.mask & moved.written_by(self.source).unsqueeze(1)
        logits = self._extractor.predict(moved.inputs)
        found = cross_entropy(logits, moved.require_labels(), Items.where("written", own))
        return own.cpu(), -found.values.double().cpu()

    def any_rank(self, fact: bool) -> bool:
        """Return whether a fact holds on at least one rank; all ranks call this.

        Args:
            fact: What holds on this rank, such as that a row has not ended.
        """
        return any_of([fact])[0]

    @contextmanager
    def writing(self, seed: int) -> Iterator[None]:
        """Make the model ready to write; inside, default generators start from `seed`.

        The mode of the model and the state of all generators are restored.
        """
        was_training = self.model.training
        devices = [self.device] if self.device.type == "cuda" else []
        self.model.eval()
        try:
            with torch.random.fork_rng(devices), torch.no_grad(), self._precision():
                torch.manual_seed(seed)
                yield
        finally:
            self.model.train(was_training)
