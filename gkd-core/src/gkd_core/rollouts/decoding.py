"""`Decoding`: rows of text that a model continues, or two models together."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gkd_core.contract.positions import first_position
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.padding import positions_of
from gkd_core.losses.logits import LinearLogits, Logits, ModelLogits, match_vocabulary


class Decoding(ABC):
    """Rows of text under continuation: what the model has read, and its next logits.

    Attributes:
        logits: Logits of the next token of each row, `[N, V]`, dense or not yet computed.
    """

    logits: ModelLogits

    @abstractmethod
    def append(self, tokens: Tensor) -> None:
        """Append a token to each row, and compute the next logits.

        Args:
            tokens: int64 `[N]`. Rows that have ended may get any token.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CoWriter:
    """A model that takes part in each token of another.

    Attributes:
        extractor: The model and its hooks.
        share: The share of its distribution.
    """

    extractor: Extractor
    share: float


class MixedDecoding(Decoding):
    """Rows whose next token is drawn from a mixture of two models' distributions.

    Its logits are log((1 - share) q + share p), dense, in fp32 or fp64.

    Args:
        own: The rows as the model itself (q) continues them; its vocabulary is that of the text.
        other: The same rows as the other (p) does.
        share: The share of the other.
    """

    def __init__(self, own: ModelDecoding, other: ModelDecoding, share: float) -> None:
        self._own, self._other, self._share = own, other, share
        self._mix()

    def append(self, tokens: Tensor) -> None:
        """Let both models read one more token of each row."""
        self._own.append(tokens)
        self._other.append(tokens)
        self._mix()

    def _mix(self) -> None:
        learned = _log_softmax(self._own.logits)
        known = _log_softmax(match_vocabulary(self._other.logits, learned.shape[-1]))
        own, other = math.log1p(-self._share), math.log(self._share)
        self.logits = torch.logaddexp(learned + own, known + other)


class ModelDecoding(Decoding):
    """Rows that a model continues.

    Args:
        extractor: The model and its hooks.
        inputs: What it has read, padded on the left.
    """

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
        """Let the model read one more token of each row."""
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


def _log_softmax(logits: Logits) -> Tensor:
    dense = logits.dense() if isinstance(logits, LinearLogits) else logits
    assert isinstance(dense, Tensor), "models give whole logits"
    return dense.to(torch.promote_types(dense.dtype, torch.float32)).log_softmax(-1)
