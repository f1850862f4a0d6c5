"""Tokenize conversations: only what the assistant says is learned."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gkd_core.contract.task import Split
from gkd_core.data.byte_offsets import NOWHERE, byte_positions
from gkd_core.data.chat import ASSISTANT, ChatTemplate, Conversation, Message
from gkd_core.data.encode import BYTES, CHUNK, TEXTS, Encoded
from gkd_core.data.holdout import part_of
from gkd_core.data.row_joiner import RowJoiner, TokenizedRow
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
    found = _ChatRows(split, max_length, alone=not has_answers(split))
    found.add_all(_tokenized(split, tokenizer))
    if not found.some_learned and not found.alone:
        found = _ChatRows(split, max_length, alone=True)  # no answer has a word
        found.add_all(_tokenized(split, tokenizer))
    return found.encoded()


class _ChatRows:
    """Takes the conversations of a split in tokens one by one, and keeps what a row may hold.

    Args:
        split: The conversations.
        max_length: Maximum tokens of a row.
        alone: Whether they are prompts alone, of which every row is kept.

    Attributes:
        some_learned: Whether a row had a token to be learned.
    """

    def __init__(self, split: Split, max_length: int, alone: bool) -> None:
        self.alone = alone
        self.some_learned = False
        self._located = split.byte_offsets
        self._max_length = max_length
        self._made = RowJoiner()
        self._kept = array("q")
        self._sizes = array("q")
        self._merged = 0

    def add_all(self, parts: Iterable[Sequence[_ChatRow]]) -> None:
        """Take all conversations, part by part."""
        for rows in parts:
            kept = [row for row in rows if self._takes(row)]
            long = sum(len(row.ids) > self._max_length for row in kept)
            self._made.add([row.cut(self._max_length, self._located) for row in kept], long)

    def _takes(self, row: _ChatRow) -> bool:
        """Note what is known of a conversation; return whether it is kept."""
        number = len(self._sizes)
        self._sizes.append(row.answered(self._max_length))
        self._merged += row.merged
        self.some_learned |= bool(row.learned.any())
        taken = self.alone or bool(row.learned[: self._max_length].any())
        if taken:
            self._kept.append(number)
        return taken

    def encoded(self) -> Encoded:
        """Return the rows that were kept.

        Raises:
            DataError: There is none.
        """
        if not self._kept:
            raise DataError(
                "no conversation has a token of an answer within task.max_length = "
                f"{self._max_length}; raise it"
            )
        if self._merged:
            logger.warning(
                "%d answers begin within a token of their prompt, which is not learned",
                self._merged,
            )
        return Encoded(
            **self._made.columns(),
            labels=None,
            num_left_out=len(self._sizes) - len(self._kept),
            extra={
                TEXTS: np.array(self._kept, np.int64),
                BYTES: np.array(self._sizes, np.int64),
            },
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

    def cut(self, max_length: int, located: bool) -> TokenizedRow:
        """Return its first tokens, with their place in what the assistant says if asked for."""
        return TokenizedRow(
            self.ids[:max_length].astype(np.int32),
            None,
            byte_offsets=self.located()[:max_length] if located else None,
            learned=self.learned[:max_length],
        )

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


def _tokenized(split: Split, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[_ChatRow]]:
    """Yield the conversations in tokens, part by part."""
    template = ChatTemplate(tokenizer)
    for start in range(0, len(split), CHUNK):
        part = part_of(split, start, CHUNK)
        chats = [_rendered(template, part, row, start) for row in range(len(part))]
        made = tokenizer([chat.text for chat in chats], add_special_tokens=False, verbose=False)
        encodings: Sequence[Encoding] = made.encodings or ()
        yield [
            _row(chat, encoding, _said(part, row), template.end)
            for row, (chat, encoding) in enumerate(zip(chats, encodings, strict=True))
        ]


def _rendered(template: ChatTemplate, part: Split, row: int, before: int) -> Conversation:
    tools = None if part.tools is None else part.tools[row]
    try:
        return template.render(messages_of(part, row), tools)
    except DataError as error:
        raise DataError(f"row {before + row + 1} of its split: {error}") from error


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
