"""`causal-lm`: the next token, predicted from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig

from gkd_core.contract.batch import IGNORE
from gkd_core.contract.task import Split
from gkd_core.data.columns import CheckedRows
from gkd_core.data.encode import Encoded, encode_targets
from gkd_core.errors import ConfigError
from gkd_core.kinds.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gkd_core.data.collate import Uncollated


class CausalLM(LanguageModel):
    """The next token of plain text, or of the text that follows a prompt, for decoders."""

    name = "causal-lm"
    head = "causal-LM head"
    generates = True

    @property
    def auto(self) -> Any:
        """The Auto class of causal language models."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def check_model(self, config: PretrainedConfig, origin: str) -> None:
        """Reject an encoder, which is asked to predict the next token."""
        encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING
        if encoder and not getattr(config, "is_decoder", False):
            raise ConfigError(
                f"{origin}: {config.model_type} is an encoder, which sees the very token that "
                "task.kind = 'causal-lm' asks it to predict; use task.kind = 'masked-lm', or a "
                "decoder"
            )

    def split(self, rows: CheckedRows) -> Split:
        """Return the texts, with those to write after them if there are any."""
        if rows.target is None:
            return super().split(rows)
        return Split(rows.text, rows.pair, target=rows.target)

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize texts in blocks, or each text with its target; see `encode_targets`."""
        if split.target is None:
            return super().encode(split, tokenizer, max_length, classes)
        return encode_targets(split, tokenizer, max_length)

    def collate(self, rows: Uncollated) -> tuple[Sequence[NDArray[np.int64]], Tensor]:
        """Return the rows, and the next token at each position as its label."""
        # Shifted here: the label at a position is the next token.
        following = [np.append(row[1:], IGNORE) for row in rows.ids]
        prompts = rows.encoded.prompts
        for row, number in zip(following, rows.numbers, strict=True):
            if prompts is not None:
                row[: prompts[number] - 1] = IGNORE
        return rows.ids, rows.padded(following, IGNORE)
