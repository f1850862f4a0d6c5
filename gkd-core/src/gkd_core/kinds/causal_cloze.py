"""`causal-cloze`: the likeliest candidate for a blank, given the text before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gkd_core.contract.task import BLANK
from gkd_core.errors import ConfigError, DataError
from gkd_core.kinds.cloze import Cloze, Scored
from gkd_core.kinds.filled import Filled
from gkd_core.kinds.language_model import sees_both_sides

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class CausalCloze(Cloze):
    """The likeliest of some candidates for a blank in a text, for decoders.

    A text has one `[BLANK]`, at its end in most prompts. All rows have the same label words, which
    are the classes, or each has a list of candidates, any number, of any length. The score of a
    candidate is the mean log-probability of its tokens, and of those that follow the blank, given
    what stands before each. The logits are the scores, `[B, C]`. The models are causal language
    models, so that a pretrained one is a teacher as it is.
    """

    name = "causal-cloze"

    @property
    def auto(self) -> Any:
        """The Auto class of causal language models."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def check_model(self, config: PretrainedConfig, origin: str) -> None:
        """Reject an encoder, which sees the very tokens that are scored."""
        if sees_both_sides(config):
            raise ConfigError(
                f"{origin}: {config.model_type} is an encoder, which sees the very tokens that "
                "task.kind = 'causal-cloze' scores; use task.kind = 'masked-cloze', or a decoder"
            )

    def score_tokens(self, filled: Filled, tokenizer: PreTrainedTokenizerBase) -> Scored:
        """Return the text; the token before predicts each one from the blank on."""
        _check_start(filled)
        end = filled.end
        types = None if filled.type_ids is None else filled.type_ids[:end]
        places = range(filled.first - 1, end - 1)
        return Scored(filled.ids[:end], types, places, filled.ids[filled.first : end, None])

    def score_words(
        self, filled: Sequence[Filled], tokenizer: PreTrainedTokenizerBase
    ) -> Scored | None:
        """Return the text before the blank, unless there is text after it."""
        first = filled[0]
        _check_start(first)
        if first.last + 1 < first.end:
            return None
        words = np.array([[one.ids[one.first] for one in filled]])
        types = None if first.type_ids is None else first.type_ids[: first.first]
        return Scored(first.ids[: first.first], types, [first.first - 1], words)


def _check_start(filled: Filled) -> None:
    """Raise `DataError` if nothing predicts the first token of a candidate."""
    if filled.first == 0:
        raise DataError(
            f"a text begins with {BLANK}, and the tokenizer has no start token: nothing predicts "
            "what is in the blank. Put text before it"
        )
