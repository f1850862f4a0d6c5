"""`AnswerForm`: the form in which a teacher's answers are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.errors import ConfigError, DataError
from gkd_core.hooks.paths import LOGITS
from gkd_core.losses.divergences import kl
from gkd_core.losses.logits import LinearLogits, Logits
from gkd_core.losses.top_k import TopKLogits

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.data.encode import Encoded
    from gkd_core.hooks.features import Answer, Features
    from gkd_core.hooks.paths import Capture

FormName = Literal["hidden", "logits", "top-k", "states"]

Unit = Literal["row", "token", "pair"]
"""What a value is about: a row, a token, or a pair of tokens of one text."""

StoredType = Literal["fp32", "fp16", "bf16"]
DTYPES: Mapping[StoredType, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

Columns: TypeAlias = Mapping[str, Tensor]
"""The stored values by name; for a batch, `[B, ...]`, `[B, S, ...]` or `[B, S, S, ...]` each."""

VALUES, IDS, LOG_PROBS = "values", "ids", "log_probs"

SHORT = 2**16
"""Words whose ids take two bytes each."""

CHUNK = 256
"""Positions whose logits are held at once."""


@dataclass(frozen=True)
class Fidelity:
    """The accuracy of the stored values, compared with the computed ones.

    Attributes:
        divergence: Mean KL between the two in nats. Of the likeliest words, that over them and the
            tail.
        tail: Mean probability of all other words.
        error: Root mean square of what is lost of a tensor, as a share of its own; of the tensor
            that loses most.
    """

    divergence: float
    tail: float = 0.0
    error: float = 0.0


@dataclass(frozen=True)
class Size:
    """Bytes that answers take.

    Attributes:
        token: Of each token that they are about.
        row: Of each row besides.
        pair: Of each pair of tokens of one text besides.
    """

    token: float
    row: float = 0.0
    pair: float = 0.0

    def __add__(self, other: Size) -> Size:
        pair = self.pair + other.pair
        return Size(self.token + other.token, self.row + other.row, pair)

    def of_rows(self, encoded: Encoded, scored: bool = False) -> NDArray[np.float64]:
        """Return the bytes of the answers about each row, fp64 `[N]`.

        Args:
            encoded: The rows.
            scored: Whether they are about the tokens only that are learned.
        """
        lengths, tokens = encoded.lengths, encoded.lengths
        if scored and encoded.learned is not None:
            tokens = np.add.reduceat(encoded.learned, encoded.offsets[:-1], dtype=np.int64)
        sizes: NDArray[np.float64] = self.row + self.token * tokens + self.pair * lengths**2
        return sizes


@dataclass(frozen=True)
class AnswerForm(ABC):
    """The form in which a teacher's answer for a batch is stored, and restored.

    Attributes:
        dtype: Data type of values.
        name: Its name in manifests and on the command line.
        scored: Whether answers are about the tokens of `batch.targets` only.
    """

    dtype: StoredType
    name: ClassVar[FormName]
    scored: ClassVar[bool] = False

    @property
    def captures(self) -> frozenset[Capture]:
        """What the teacher is asked for."""
        return frozenset({LOGITS})

    @property
    def has_head(self) -> bool:
        """Whether the teacher's head is stored, too."""
        return False

    @property
    def unit(self) -> Unit:
        """What answers are counted in: tokens, or rows."""
        return "token"

    def unit_of(self, column: str) -> Unit:
        """Return what a value of a column is about."""
        return self.unit

    @abstractmethod
    def size(self, info: ModelInfo) -> Size:
        """Return the bytes that the answers of a teacher take."""

    def sizes(self, info: ModelInfo, encoded: Encoded) -> NDArray[np.float64]:
        """Return the bytes of a teacher's answers about each row, fp64 `[N]`."""
        return self.size(info).of_rows(encoded, self.scored)

    @abstractmethod
    def stored(self, features: Features, batch: Batch) -> Columns:
        """Return the values to store of a teacher's answer for a batch.

        Raises:
            ConfigError: It does not have this form.
            DataError: A value cannot be stored.
        """

    def head(self, features: Features) -> Mapping[str, Tensor]:
        """Return the weight and, if there is one, the bias of the teacher's head; or nothing.

        Raises:
            ConfigError: An answer does not have this form.
        """
        return {}

    @abstractmethod
    def logits(self, columns: Columns, head: Mapping[str, Tensor]) -> Logits:
        """Return the logits of a batch.

        Args:
            columns: What is stored of them.
            head: Weight and bias of the teacher's head, if the form needs them.
        """

    def answers(self, columns: Columns, head: Mapping[str, Tensor]) -> Mapping[Capture, Answer]:
        """Return the answer for a batch; arguments as for `logits`."""
        return {LOGITS: self.logits(columns, head)}

    @abstractmethod
    def fidelity(self, features: Features, columns: Columns, batch: Batch) -> Fidelity:
        """Return the accuracy of a batch's stored values, compared with the computed ones."""

    @property
    def _width(self) -> int:
        """Bytes of a value."""
        return DTYPES[self.dtype].itemsize

    def _rounded(self, values: Tensor, masked: bool = False) -> Tensor:
        """Return values as they are stored; those that are `masked` may be -inf."""
        stored = values.to(DTYPES[self.dtype])
        lost = ~stored.isfinite()
        if bool((lost & (values != -torch.inf) if masked else lost).any()):
            raise DataError(
                f"an answer of the teacher is nan or inf, or too large for {self.dtype}. "
                "Use --dtype bf16 or fp32"
            )
        return stored


@dataclass(frozen=True)
class RowLogits(AnswerForm):
    """The logits of each row."""

    name = "logits"

    @property
    def unit(self) -> Unit:
        """A row."""
        return "row"

    def size(self, info: ModelInfo) -> Size:
        """Return the bytes of the logits."""
        return Size(0, info.labels * self._width)

    def stored(self, features: Features, batch: Batch) -> Columns:
        """Return the logits."""
        return {VALUES: self._rounded(features[LOGITS])}

    def logits(self, columns: Columns, head: Mapping[str, Tensor]) -> Logits:
        """Return the logits."""
        return columns[VALUES].float()

    def fidelity(self, features: Features, columns: Columns, batch: Batch) -> Fidelity:
        """Return the KL from what was computed to what is stored; 0 if it is no distribution."""
        if batch.output != "classes":
            return Fidelity(0.0)
        term = kl(columns[VALUES].float(), features.prediction, batch.samples)
        return Fidelity(float(term.values.sum() / batch.samples.count))


@dataclass(frozen=True)
class HiddenStates(AnswerForm):
    """The input of a language model's head at each token; the head is stored once."""

    name = "hidden"

    @property
    def has_head(self) -> bool:
        """It makes the logits."""
        return True

    def size(self, info: ModelInfo) -> Size:
        """Return the bytes of the input of the head."""
        return Size(info.hidden_size * self._width)

    def stored(self, features: Features, batch: Batch) -> Columns:
        """Return the input of the head."""
        return {VALUES: self._rounded(_linear(features).hidden)}

    def head(self, features: Features) -> Mapping[str, Tensor]:
        """Return what makes the logits of its input."""
        linear = _linear(features)
        bias = {} if linear.bias is None else {"bias": linear.bias}
        return {"weight": linear.weight, **bias}

    def logits(self, columns: Columns, head: Mapping[str, Tensor]) -> Logits:
        """Return the logits, which the losses make of the states."""
        return LinearLogits(columns[VALUES].float(), head["weight"], head.get("bias"))

    def fidelity(self, features: Features, columns: Columns, batch: Batch) -> Fidelity:
        """Return the KL from what was computed to what is stored."""
        computed = _linear(features)
        kept = replace(computed, hidden=columns[VALUES].to(computed.hidden.dtype))
        term = kl(kept, computed, batch.tokens)
        return Fidelity(float(term.values.sum() / batch.tokens.count))


@dataclass(frozen=True)
class LikeliestWords(AnswerForm):
    """The likeliest words at each scored token of a language model, and the mass of all others.

    Attributes:
        k: Number of words.
        temperature: What the logits are divided by.
        words: Width of the logits.
    """

    k: int
    temperature: float
    words: int
    name = "top-k"
    scored = True

    def size(self, info: ModelInfo) -> Size:
        """Return the bytes of the ids, and of the log-probabilities with that of the tail."""
        k = min(self.k, self.words)
        return Size(k * (2 if self.words <= SHORT else 4) + (k + 1) * self._width)

    def stored(self, features: Features, batch: Batch) -> Columns:
        """Return ids and log-probabilities; those of tokens without a target are not computed."""
        index, shape = batch.targets.index, batch.targets.mask.shape
        found = [self._likeliest(features.prediction, part) for part in torch.split(index, CHUNK)]
        ids, log_probs = (torch.cat(own) for own in zip(*found, strict=True))
        if bool(log_probs.isnan().any()):
            raise DataError("an answer of the teacher is nan or inf")
        width = torch.int16 if self.words <= SHORT else torch.int32
        columns = {IDS: ids.to(width), LOG_PROBS: log_probs.to(DTYPES[self.dtype])}
        return {name: _placed(own, index, shape) for name, own in columns.items()}

    def logits(self, columns: Columns, head: Mapping[str, Tensor]) -> Logits:
        """Return the words and the mass of all others."""
        ids = columns[IDS].long()
        ids = ids & (SHORT - 1) if columns[IDS].dtype == torch.int16 else ids
        return TopKLogits(ids, columns[LOG_PROBS].float(), self.words, self.temperature)

    def fidelity(self, features: Features, columns: Columns, batch: Batch) -> Fidelity:
        """Return the KL between what is stored and what was computed, and the mass of the tail."""
        kept, over = self.logits(columns, {}), batch.targets
        assert isinstance(kept, TopKLogits)
        if not over.count:
            return Fidelity(0.0)
        term = kl(features.prediction, kept, over, self.temperature, False)
        tail = kept.log_probs[over.mask][:, -1].exp().mean()
        return Fidelity(float(term.values.sum() / over.count), float(tail))

    def _likeliest(self, logits: Logits, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and log-probabilities of some rows."""
        if isinstance(logits, LinearLogits):
            rows = replace(logits, hidden=logits.hidden.flatten(0, -2)[index]).dense()
        else:
            assert isinstance(logits, Tensor), "a live teacher computes all of its logits"
            rows = logits.flatten(0, -2)[index]
        found = TopKLogits.of(rows.float(), self.k, self.temperature)
        return found.ids, found.log_probs


def _linear(features: Features) -> LinearLogits:
    """Return the logits of a language model as the input of its head, and the head.

    Raises:
        ConfigError: They are not that.
    """
    if features.deferred is None:
        raise ConfigError(
            "the teacher's logits are not those of a linear layer: what its head gets does not "
            "determine them, and cannot be stored in their place. Use --form top-k"
        )
    return features.deferred


def _placed(found: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    """Return rows at their places in a batch; zeros elsewhere."""
    made = found.new_zeros(shape.numel(), found.shape[-1])
    made[index] = found
    return made.view(*shape, -1)
