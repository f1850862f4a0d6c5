"""Tokenize conversations: only what the assistant says is learned."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gkd_core.contract.task import Split
from gkd_core.data.byte_offsets import NOWHERE, byte_positions
from gkd_core.data.chat import ASSISTANT, ChatTemplate, Conversation, Message
from gkd_core.data.encode import BYTES, CHUNK, TEXTS, Encoded, join_rows
from gkd_core.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def encode_chats(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokenize conversations as the chat template of a tokenizer writes them.

    A long row loses its end. A row of which no token is left to be learned is left out, unless the
    split has prompts alone. `extra` has `TEXTS`, and as `BYTES` those of the answers that are kept.
    `byte_offsets` are those in what the assistant says, one answer after the other, without what
    the template adds: another template writes the same words at the same place.

    Args:
        split: Rows of conversations (`Split.chat`).
        tokenizer: A tokenizer with a chat template.
        max_length: Maximum tokens of a row.

    Raises:
        DataError: The template refuses a row, or no row has an answer within `max_length`.
    """
    rows = _tokenized(split, tokenizer)
    alone = not any(row.learned.any() for row in rows)
    kept = [n for n, row in enumerate(rows) if alone or row.learned[:max_length].any()]
    if not kept:
        raise DataError(
            f"no conversation has a token of an answer within task.max_length = {max_length}; "
            "raise it"
        )
    merged = sum(row.merged for row in rows)
    if merged:
        logger.warning(
            "%d answers begin within a token of their prompt, which is not learned", merged
        )
    sizes = np.array([row.answered(max_length) for row in rows])
    made = join_rows(
        [rows[n].ids[:max_length].tolist() for n in kept],
        None,
        cut=sum(len(rows[n].ids) > max_length for n in kept),
    )
    return replace(
        made,
        num_left_out=len(rows) - len(kept),
        learned=np.concatenate([rows[n].learned[:max_length] for n in kept]),
        byte_offsets=(
            np.concatenate([rows[n].located()[:max_length] for n in kept])
            if split.byte_offsets
            else None
        ),
        extra={TEXTS: np.array(kept), BYTES: sizes},
    )


def messages_of(split: Split, row: int) -> list[Message]:
    """Return the messages of a row."""
    text = split.text[row]
    said = [{"role": "user", "content": text}] if isinstance(text, str) else list(text)
    if split.target is not None:
        said.append({"role": ASSISTANT, "content": split.target[row]})
    return said


def has_answers(split: Split) -> bool:
    """Return whether rows have something to learn, rather than prompts alone."""
    if not split.chat or split.target is not None:
        return True
    every = (turn for text in split.text if not isinstance(text, str) for turn in text)
    return any(turn["role"] == ASSISTANT for turn in every)


@dataclass(frozen=True)
class _ChatRow:
    """A conversation in tokens.

    Attributes:
        ids: The tokens, int64.
        learned: Whether each is part of an answer, bool.
        merged: Number of answers that begin within a token.
        places: First and last character of each token in the text, int64 `[T, 2]`.
        conversation: The text.
        said: What the assistant says in each answer.
        end: The token that ends a turn.
    """

    ids: NDArray[np.int64]
    learned: NDArray[np.bool_]
    merged: int
    places: NDArray[np.int64]
    conversation: Conversation
    said: Sequence[str]
    end: str

    def answered(self, max_length: int) -> int:
        """Return the bytes of the answers among the first tokens, without end tokens."""
        last = int(self.places[:max_length, 1].max(initial=0))
        parts = (self.conversation.text[a : min(b, last)] for a, b in self.conversation.answers)
        return sum(len(part.removesuffix(self.end).encode()) for part in parts)

    def located(self) -> NDArray[np.int32]:
        """Return the bytes of each token in what the assistant says, `[T, 2]`; else `NOWHERE`.

        Raises:
            DataError: The template writes an answer in other words.
        """
        found, before = np.full(self.places.shape, NOWHERE, np.int32), 0
        for words, first in zip(self.said, self._firsts(), strict=True):
            own = np.clip(self.places - first, 0, len(words))
            inside = self.learned & (own[:, 0] < own[:, 1])
            positions = byte_positions(words)
            found[inside] = before + positions[own[inside]]
            before += int(positions[-1])
        return found

    def _firsts(self) -> list[int]:
        """Return the character at which the words of each answer begin."""
        answers = self.conversation.answers
        pairs = zip(self.said, answers, strict=False)
        found = [self.conversation.text.find(words, *place) for words, place in pairs]
        if len(self.said) != len(answers) or -1 in found:
            raise DataError(
                f"the chat template writes an answer of {self.conversation.text[:40]!r} in other "
                "words, so its tokens cannot be aligned with those of another tokenizer. Choose "
                "methods that do not align tokens, or a template that keeps answers"
            )
        return found


def _tokenized(split: Split, tokenizer: PreTrainedTokenizerBase) -> list[_ChatRow]:
    template = ChatTemplate(tokenizer)
    rows: list[_ChatRow] = []
    for start in range(0, len(split), CHUNK):
        numbers = range(start, min(start + CHUNK, len(split)))
        chats = [_rendered(template, split, number) for number in numbers]
        made = tokenizer([chat.text for chat in chats], add_special_tokens=False, verbose=False)
        encodings: Sequence[Encoding] = made.encodings or ()
        rows += [
            _row(chat, encoding, _said(split, number), template.end)
            for number, chat, encoding in zip(numbers, chats, encodings, strict=True)
        ]
    return rows


def _rendered(template: ChatTemplate, split: Split, row: int) -> Conversation:
    tools = None if split.tools is None else split.tools[row]
    try:
        return template.render(messages_of(split, row), tools)
    except DataError as error:
        raise DataError(f"row {row + 1} of its split: {error}") from error


def _said(split: Split, row: int) -> list[str]:
    """Return the assistant's words in a row, without spaces around them."""
    spoken = (turn for turn in messages_of(split, row) if turn["role"] == ASSISTANT)
    return [str(turn.get("content") or "").strip() for turn in spoken]


def _row(chat: Conversation, encoding: Encoding, said: Sequence[str], end: str) -> _ChatRow:
    """Return the mask of the tokens in the answers of a conversation."""
    places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    starts, ends = places[:, 0], places[:, 1]
    learned = np.zeros(len(places), bool)
    merged = 0
    for begin, stop in chat.answers:
        learned |= (starts >= begin) & (ends <= stop) & (starts < stop)
        merged += bool(((starts < begin) & (ends > begin)).any())
    return _ChatRow(np.array(encoding.ids, np.int64), learned, merged, places, chat, said, end)
