"""`masked-lm`: masked tokens, predicted from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.contract.batch import IGNORE
from gkd_core.errors import DataError
from gkd_core.kinds.language_model import LanguageModel
from gkd_core.kinds.task_kind import ReadRows, refuse_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.data.collate import Uncollated
    from gkd_core.data.table import Table


class MaskedLM(LanguageModel):
    """Masked tokens of plain text, for encoders.

    The masking of a row depends only on the seed, the epoch and the row, never on its micro-batch:
    a share of each row's tokens (`task.mask_share`), at least one, is predicted; 80% of these
    become the mask token, 10% a random token (Devlin et al., NAACL 2019).
    """

    name = "masked-lm"
    head = "masked-LM head"
    masks = True

    @property
    def auto(self) -> Any:
        """The Auto class of masked language models."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the texts."""
        refuse_target(config, self.name)
        return super().read(tables, config)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Reject a tokenizer without a mask token."""
        if tokenizer.mask_token_id is None:
            raise DataError(
                "task.kind is masked-lm, but the tokenizer has no mask token; use causal-lm, or a "
                "model trained for masked language modeling"
            )

    def collate(self, rows: Uncollated) -> tuple[list[NDArray[np.int64]], Tensor]:
        """Return the masked rows, and the masked tokens as labels."""
        masked = [_masked(rows, *pair) for pair in zip(rows.ids, rows.numbers, strict=True)]
        labels = rows.padded([targets for _, targets in masked], IGNORE)
        return [tokens for tokens, _ in masked], labels


def _masked(
    rows: Uncollated, ids: NDArray[np.int64], row: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the masked token ids and the labels of a row."""
    collator = rows.collator
    assert collator.mask_id is not None, "checked by check_tokenizer"
    draw = np.random.default_rng([collator.seed, rows.epoch, row])
    free = draw.permutation(np.flatnonzero(~np.isin(ids, collator.special)))
    chosen = free[: max(1, round(collator.mask_share * len(free)))]
    labels = np.full_like(ids, IGNORE)
    labels[chosen] = ids[chosen]
    masked = ids.copy()
    fate = draw.random(len(chosen))
    masked[chosen[fate < 0.8]] = collator.mask_id
    replaced = chosen[fate >= 0.9]
    masked[replaced] = draw.integers(collator.vocabulary, size=len(replaced))
    return masked, labels
