"""Conversations as text: what a chat template makes of them, and which of it the assistant says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from gkd_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = Mapping[str, Any]
"""A turn of a conversation: a `role`, a `content`, and what else the template knows."""

ASSISTANT = "assistant"
"""The role whose text is learned."""

MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The marks of the assistant's words in a template."""

PROBE = "gkd-answer"
"""An answer by which the end of an assistant's turn is found."""


@dataclass(frozen=True)
class Conversation:
    """A conversation as text.

    Attributes:
        text: What the template makes of it.
        answers: The characters that the assistant says, `(start, end)` each, with the token that
            ends its turn.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: A tokenizer with a chat template.

    Attributes:
        end: The token that ends an assistant's turn; empty if the template writes none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.end = _end_of_turn(tokenizer)

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> Conversation:
        """Return a conversation as text; one without an answer ends where the answer begins.

        What the assistant says is found by the template's own marks, or else by the text that the
        template makes of the first messages alone.

        Args:
            messages: The turns.
            tools: What the assistant may call, as the template expects it.

        Raises:
            DataError: The template refuses the messages, or writes a turn differently once others
                follow, so that the assistant's words cannot be told apart.
        """
        spoken = [n for n, message in enumerate(messages) if message["role"] == ASSISTANT]
        if not spoken:
            return Conversation(self._write(messages, tools, prompts=True), ())
        if MARKERS.search(self._source(tools)):
            return self._marked(messages, tools)
        text = self._write(messages, tools)
        answers = tuple(self._answer(text, messages, turn, tools) for turn in spoken)
        return Conversation(text, answers)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> str:
        """Return the text after which the assistant answers, as `render` writes it.

        Args:
            messages: The turns so far.
            tools: What the assistant may call, as the template expects it.

        Raises:
            DataError: The template refuses the messages.
        """
        return self._write(messages, tools, prompts=True)

    def _answer(
        self, text: str, messages: Sequence[Message], turn: int, tools: Sequence[Any] | None
    ) -> tuple[int, int]:
        """Return the place of a turn's text: between its prompt and the end of the turn."""
        before = self._write(messages[:turn], tools, prompts=True)
        is_last = turn + 1 == len(messages)
        after = text if is_last else self._write(messages[: turn + 1], tools)
        if not after.startswith(before) or not text.startswith(after):
            changed = (
                "the prompt of its answer" if text.startswith(after) else "the turns that follow"
            )
            raise DataError(
                f"the chat template writes turn {turn + 1} differently with and without {changed}, "
                "so the assistant's words cannot be told apart. Mark them in the "
                "template with {% generation %} and {% endgeneration %}, or give rows of one "
                "question and one answer"
            )
        end = after.rfind(self.end, len(before)) if self.end else -1
        return len(before), end + len(self.end) if end >= 0 else len(after)

    def _marked(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> Conversation:
        rendered, places = self._render(messages, tools, return_assistant_tokens_mask=True)
        return Conversation(rendered[0], tuple((start, end) for start, end in places[0]))

    def _write(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, prompts: bool = False
    ) -> str:
        rendered, _ = self._render(messages, tools, add_generation_prompt=prompts)
        return rendered[0]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, **how: bool
    ) -> tuple[list[str], list[Any]]:
        known: dict[str, Any] = {**how, **self._tokenizer.special_tokens_map}
        try:
            made: Any = render_jinja_template(
                [[dict(message) for message in messages]],
                tools=None if tools is None else list(tools),
                chat_template=self._source(tools),
                **known,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise DataError(f"the chat template cannot write the messages: {error}") from error
        rendered, places = made
        return rendered, places

    def _source(self, tools: Sequence[Any] | None) -> str:
        source: str = self._tokenizer.get_chat_template(tools=tools)
        return source


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the token that ends an assistant's turn in a tokenizer's chat template.

    Returns:
        The token; empty if there is no template, or if it writes none.
    """
    return "" if tokenizer.chat_template is None else ChatTemplate(tokenizer).end


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the first special token after an answer."""
    chat = [{"role": "user", "content": "?"}, {"role": ASSISTANT, "content": PROBE}]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    except (TemplateError, TypeError, ValueError, KeyError):
        return ""
    rest = text.rpartition(PROBE)[2]
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    named = (token for token in special if token.strip() and token in rest)
    found = [(rest.find(token), -len(token), token) for token in named]
    return min(found)[2] if found else ""
