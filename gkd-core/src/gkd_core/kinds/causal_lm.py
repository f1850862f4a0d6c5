"""`causal-lm`: the next token, predicted from those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig

from gkd_core.contract.batch import IGNORE
from gkd_core.contract.task import Fit, Split
from gkd_core.data.columns import CheckedRows, Columns, label_columns
from gkd_core.data.conversations import (
    answered_columns,
    find_conversations,
    has_messages,
    read_conversations,
)
from gkd_core.data.encode import Encoded, encode_targets
from gkd_core.data.encode_chats import encode_chats
from gkd_core.errors import ConfigError, DataError
from gkd_core.kinds.language_model import LanguageModel
from gkd_core.kinds.task_kind import ReadRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.data.collate import Uncollated
    from gkd_core.data.table import Table


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

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Return `CERTAIN` for messages and prompts without labels, `POSSIBLE` for questions."""
        if label_columns(table, config):
            return Fit.NO
        try:
            found = find_conversations(table, config)
        except DataError:
            return Fit.NO
        if found is None:
            return Fit.NO
        # A question with an answer may also be one of other kinds.
        certain = found.text.lower() != "question" or has_messages(table, found.text)
        return Fit.CERTAIN if certain else Fit.POSSIBLE

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the texts, or the conversations."""
        columns = find_conversations(tables["train"], config)
        if columns is None:
            return super().read(tables, config)
        return ReadRows(
            {
                name: read_conversations(table, answered_columns(table, columns, config), config)
                for name, table in tables.items()
            }
        )

    def check_pair(self, table: Table, columns: Columns) -> None:
        """Reject a second text, which has no meaning unless another text follows both."""
        if columns.pair is not None and columns.target is None:
            first, second = columns.text, columns.pair
            raise DataError(
                f"{table.source} has two texts in a row, {first!r} and {second!r}, but {self} "
                f"learns one. Set task.text={first} to learn it alone, or task.text={first} and "
                f"task.target={second} to learn what follows"
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
        """Tokenize texts in blocks, each text with its target, or conversations."""
        if split.chat and tokenizer.chat_template is not None:
            return encode_chats(split, tokenizer, max_length)
        if split.chat or split.tools is not None:
            _check_plain(split)
        if split.target is None and not split.chat:
            return super().encode(split, tokenizer, max_length, classes)
        return encode_targets(split, tokenizer, max_length)

    def collate(self, rows: Uncollated) -> tuple[Sequence[NDArray[np.int64]], Tensor]:
        """Return the rows, and the next token at each position as its label."""
        # Shifted here: the label at a position is the next token.
        following = [np.append(row[1:], IGNORE) for row in rows.ids]
        encoded = rows.encoded
        for row, number in zip(following, rows.numbers, strict=True):
            if encoded.learned is not None:
                row[:-1][~encoded.learned[encoded.part(number)][1:]] = IGNORE
            if encoded.positions is not None:
                row[:-1][encoded.positions[encoded.part(number)][1:] == 0] = IGNORE
        return rows.ids, rows.padded(following, IGNORE)


def _check_plain(split: Split) -> None:
    """Reject conversations of several turns where no chat template can write them."""
    if split.tools is not None or not all(isinstance(text, str) for text in split.text):
        raise ConfigError(
            "the rows are messages, but the student's tokenizer has no chat template to write "
            "them with. Give a teacher of the same tokenizer that has one, save one with the "
            "student's tokenizer (`chat_template`), or give columns of prompts and responses"
        )
