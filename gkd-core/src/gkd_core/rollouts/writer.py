"""`Writer`: a model that continues prompts, in evaluation mode and unseen by the methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gkd_core.contract.batch import RowSource
from gkd_core.contract.positions import first_position
from gkd_core.contract.rollout import Prompts
from gkd_core.distributed.data_parallel import any_of
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.padding import positions_of
from gkd_core.losses.logits import ModelLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Writer:
    """A model that continues prompts.

    Args:
        source: What the model is.
        extractor: The model and its hooks.
        device: Where the model runs.
        precision: Returns the context in which the model runs in training, such as autocast.

    Attributes:
        source: `student` or `teacher`.
        device: Where the model runs.
    """

    def __init__(
        self,
        source: RowSource,
        extractor: Extractor,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.source = source
        self.device = device
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
        return Decoding(self._extractor, inputs)

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


class Decoding:
    """Rows of text under continuation: what the model has read, and its next logits.

    Attributes:
        logits: Logits of the next token of each row, `[N, V]`, dense or not yet computed.
    """

    logits: ModelLogits

    def __init__(self, extractor: Extractor, inputs: Mapping[str, Tensor]) -> None:
        self._extractor = extractor
        self._mask = inputs["attention_mask"]
        self._typed = "token_type_ids" in inputs
        model = extractor.model
        self._first = first_position(model.config)
        self._known = inspect.signature(model.forward).parameters
        self._cache = DynamicCache(config=model.config)
        self._read(inputs["input_ids"])

    def append(self, tokens: Tensor) -> None:
        """Append a token to each row, and compute the next logits.

        Args:
            tokens: int64 `[N]`. Rows that have ended may get any token.
        """
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._read(tokens.unsqueeze(1))

    def _read(self, ids: Tensor) -> None:
        inputs = {"input_ids": ids, "attention_mask": self._mask}
        if self._typed:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        options: dict[str, Any] = {"past_key_values": self._cache, "use_cache": True}
        if "position_ids" in self._known:
            # Padding on the left must not shift the positions. As an input of the batch they would
            # say that it is packed.
            positions = positions_of(self._mask, self._first)
            options["position_ids"] = positions[:, -ids.shape[1] :]
        if "logits_to_keep" in self._known:
            options["logits_to_keep"] = 1
        self.logits = _last(self._extractor.predict(inputs, (), options))


def _last(logits: ModelLogits) -> ModelLogits:
    """Return the logits of the last position, `[N, S, V]` to `[N, V]`."""
    if isinstance(logits, Tensor):
        return logits[:, -1]
    return replace(logits, hidden=logits.hidden[:, -1])
