"""`masked-cloze`: the likeliest candidate for a blank, read from both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gkd_core.errors import DataError
from gkd_core.kinds.cloze import Cloze, Scored
from gkd_core.kinds.filled import Filled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MaskedCloze(Cloze):
    """The likeliest of some candidates for a blank in a text, for encoders.

    A text has one `[BLANK]`. All rows have the same label words, which are the classes, or each has
    a list of candidates, any number, of any length. The tokens of a candidate are masked, all at
    once; its score is their mean log-probability. The logits are the scores, `[B, C]`. The models
    are masked language models, so that a pretrained one is a teacher as it is.
    """

    name = "masked-cloze"

    @property
    def auto(self) -> Any:
        """The Auto class of masked language models."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Reject a tokenizer without a mask token."""
        if tokenizer.mask_token_id is None:
            raise DataError(
                "task.kind is masked-cloze, but the tokenizer has no mask token; use causal-cloze, "
                "or a model trained for masked language modeling"
            )

    def score_tokens(self, filled: Filled, tokenizer: PreTrainedTokenizerBase) -> Scored:
        """Return the text with mask tokens instead of the candidate's."""
        places = range(filled.first, filled.last + 1)
        ids = filled.ids.copy()
        ids[places] = tokenizer.mask_token_id
        return Scored(ids, filled.type_ids, places, filled.ids[places, None])

    def score_words(self, filled: Sequence[Filled], tokenizer: PreTrainedTokenizerBase) -> Scored:
        """Return the text with one mask token."""
        words = np.array([[one.ids[one.first] for one in filled]])
        return replace(self.score_tokens(filled[0], tokenizer), words=words)
