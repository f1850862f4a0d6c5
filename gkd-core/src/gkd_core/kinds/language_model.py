"""The common base of masked and causal language modeling."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig

from gkd_core.contract.task import Split
from gkd_core.data.columns import CheckedRows, Columns, find_columns, select
from gkd_core.data.encode import BYTES, TEXTS, Encoded, encode_blocks
from gkd_core.kinds.metrics import Metric, mean_loss
from gkd_core.kinds.task_kind import Evaluation, ReadRows, RowMeasure, TaskKind
from gkd_core.losses import Logits, cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.contract.batch import Batch
    from gkd_core.data.table import Table

logger = logging.getLogger(__name__)


class LanguageModel(TaskKind):
    """The common base of the kinds that predict tokens of plain text."""

    metric = Metric("perplexity", False)
    metrics = ("perplexity",)
    predicted = "token"
    splits_rows = True
    is_lm = True
    keeps_scores = False

    def width(self, classes: Sequence[str], config: PretrainedConfig) -> int:
        """Return the size of the vocabulary."""
        size: int = config.vocab_size
        return size

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the texts."""
        columns = find_columns(tables["train"], config, labeled=False)
        self.check_pair(tables["train"], columns)
        rows = {name: select(table, columns) for name, table in tables.items()}
        return ReadRows({name: self.split(r) for name, r in rows.items()})

    def check_pair(self, table: Table, columns: Columns) -> None:
        """Explain that the two texts of a row are separate texts."""
        if columns.pair is not None and columns.target is None:
            logger.warning(
                "%s has two texts in a row, %r and %r: each is read as a separate text",
                table.source,
                columns.text,
                columns.pair,
            )

    def split(self, rows: CheckedRows) -> Split:
        """Return the rows of a split; both texts of a pair become rows."""
        return Split(rows.text if rows.pair is None else [*rows.text, *rows.pair])

    def is_labeled(self, table: Table, train: Table, config: TaskConfig) -> bool:
        """Return True: text needs no labels."""
        return True

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize texts and split long ones into blocks; see `encode_blocks`."""
        return encode_blocks(split, tokenizer, max_length)

    def observe(self, logits: Logits, batch: Batch) -> Any:
        """Return the sum of the losses of a batch and how many there are; the same of each row."""
        losses = cross_entropy(logits, batch.require_labels(), batch.targets).values
        sums, counts = losses.double().sum(1).tolist(), batch.targets.mask.sum(1).tolist()
        return float(losses.sum()), batch.targets.count, batch.rows.tolist(), sums, counts

    def summarize(self, parts: Sequence[Any], split: Encoded) -> Evaluation:
        """Return the mean loss over all predicted tokens, and its perplexity."""
        loss = mean_loss(part[:2] for part in parts)
        columns: dict[str, Any] = {}
        if TEXTS in split.extra:
            rows, sums, counts = (
                np.array([value for part in parts for value in part[place]]) for place in (2, 3, 4)
            )
            nll, tokens = np.zeros(len(split)), np.zeros(len(split), np.int64)
            nll[rows], tokens[rows] = sums, counts
            columns["nll"] = sum_by_text(nll, split)
            columns["tokens"] = sum_by_text(tokens, split)
            columns["bytes"] = split.extra[BYTES]
        return Evaluation(_metrics(loss), None, columns)

    def remeasure(
        self, evaluation: Evaluation, split: Split, classes: Sequence[str]
    ) -> RowMeasure | None:
        """Return a function that computes loss and perplexity of some of the texts."""
        nll, tokens = evaluation.columns.get("nll"), evaluation.columns.get("tokens")
        if not isinstance(nll, np.ndarray) or not isinstance(tokens, np.ndarray):
            return None
        return lambda rows: _metrics(float(nll[rows].sum()) / max(int(tokens[rows].sum()), 1))

    def divergences(self, values: NDArray[np.float64], split: Encoded) -> NDArray[np.float64]:
        """Return the sum over the tokens of each text."""
        return sum_by_text(values, split)

    def one_row(self, split: Split) -> Split:
        """Return a row with enough tokens, which the first one may lack."""
        return Split(("a row to plan with",))


def sum_by_text(values: NDArray[Any], split: Encoded) -> NDArray[Any]:
    """Return the sums of values over the blocks of each text.

    Args:
        values: A value of each block, `[N]`.
        split: The blocks.
    """
    sums = np.zeros(len(split.extra[BYTES]), values.dtype)
    np.add.at(sums, split.extra[TEXTS], values)
    return sums


def _metrics(loss: float) -> dict[str, float]:
    # `math.exp` raises OverflowError above 709.
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def bits_per_byte(nll: NDArray[np.float64], sizes: NDArray[np.int64]) -> float:
    """Return the bits that a byte of text takes, which tokenizers do not change; NaN without text.

    Args:
        nll: Negative log-likelihood of each text, in nats.
        sizes: The bytes of each text that its tokens stand for.
    """
    total = int(sizes.sum())
    return float(nll.sum()) / math.log(2) / total if total else math.nan


def sees_both_sides(config: PretrainedConfig) -> bool:
    """Return whether a model is an encoder, whose positions see the tokens after them."""
    own = getattr(config, "auto_map", None) or {}
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING or "AutoModelForMaskedLM" in own
    return masked and not getattr(config, "is_decoder", False)


def language_model_kind(config: PretrainedConfig) -> str:
    """Return the kind of language model: masked for encoders, causal for decoders."""
    return "masked-lm" if sees_both_sides(config) else "causal-lm"
