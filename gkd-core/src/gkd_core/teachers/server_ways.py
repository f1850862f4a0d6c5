"""How servers are asked for the likeliest words of a text, and what their answers must hold."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from gkd_core.teachers.tokens_by_text import tokens_by_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKEN_ID = re.compile(r"token_id:([0-9]+)")
"""The name of a token that a server names by its id."""

ABOVE_ZERO = 1e-3
"""By how much a log-probability may exceed 0: servers compute in bf16."""

Likeliest = tuple[list[int], list[float]]
"""Words and their log-probabilities, the likeliest first."""

Position = dict[int, float]
"""Words at a position of a text and their log-probabilities, in any order."""


class WrongAnswer(Exception):
    """An answer that is not used; the message says what is wrong with it."""


class NotGiven(WrongAnswer):
    """An answer without log-probabilities of the text that was sent."""


class Way(ABC):
    """A way in which servers give the likeliest words at each token of a text.

    Attributes:
        name: What is asked for, as messages say it.
        mark: Distinguishes the answers that are kept.
    """

    name: ClassVar[str]
    mark: ClassVar[str]

    @abstractmethod
    def fields(self, k: int) -> Mapping[str, Any]:
        """Return the fields of a request that ask for k words."""

    def likeliest(self, choice: Mapping[str, Any], ids: Sequence[int], k: int) -> list[Likeliest]:
        """Return the k likeliest words at each token of a text but the first.

        Args:
            choice: The answer about the text.
            ids: Its token ids.
            k: Number of words.

        Raises:
            WrongAnswer: The answer is about something else, or has none.
        """
        positions = self._positions(choice, ids)
        if len(positions) != len(ids):
            raise WrongAnswer(f"it has {len(positions)} positions for a text of {len(ids)} tokens")
        if positions[0] is not None:
            raise WrongAnswer("it predicts the first token of a text, before which there is none")
        return [_best(at, own, k) for at, own in zip(positions[1:], ids[1:], strict=True)]

    @abstractmethod
    def _positions(
        self, choice: Mapping[str, Any], ids: Sequence[int]
    ) -> Sequence[Position | None]:
        """Return the words at each token; None where there is no prediction."""


class PromptLogProbs(Way):
    """The field `prompt_logprobs`, whose words are token ids, as vLLM has it."""

    name = "`prompt_logprobs`"
    mark = ""

    def fields(self, k: int) -> Mapping[str, Any]:
        """Return the fields of a request that ask for k words."""
        return {"prompt_logprobs": k}

    def _positions(
        self, choice: Mapping[str, Any], ids: Sequence[int]
    ) -> Sequence[Position | None]:
        given = choice.get("prompt_logprobs")
        if given is None:
            raise NotGiven("it has no `prompt_logprobs`, which vLLM gives")
        if not isinstance(given, list):
            raise WrongAnswer(f"`prompt_logprobs` is {str(given)[:60]!r}")
        return [None if at is None else self._position(at) for at in given]

    def _position(self, at: Any) -> Position:
        try:
            return _once((int(word), float(entry["logprob"])) for word, entry in at.items())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _unreadable(at) from error


class Echo(Way):
    """The fields `echo` and `logprobs`: the text comes back before what is written after it.

    Its words are token ids if the server has `return_tokens_as_token_ids`, as vLLM does, and else
    texts, which must not be those of several tokens.

    Args:
        tokenizer: The tokenizer of the teacher.
    """

    name = "`echo` and `logprobs`"
    mark = "-echo"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def fields(self, k: int) -> Mapping[str, Any]:
        """Return the fields of a request that ask for k words."""
        return {"echo": True, "logprobs": k, "return_tokens_as_token_ids": True}

    def _positions(
        self, choice: Mapping[str, Any], ids: Sequence[int]
    ) -> Sequence[Position | None]:
        tokens, values, likeliest = _columns(choice.get("logprobs"), len(ids))
        read = _id if all(TOKEN_ID.fullmatch(str(token)) for token in tokens) else self._id_of_text
        for token, own in zip(tokens, ids, strict=True):
            if read(str(token)) != own:
                raise WrongAnswer(f"the token {own} of the text is not where it should be")
        return [_echoed(*at, read) for at in zip(ids, values, likeliest, strict=True)]

    def _id_of_text(self, text: str) -> int:
        if text not in self._ids:
            raise WrongAnswer(f"it has the token {text!r}, which the teacher's tokenizer lacks")
        return self._ids[text]

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        return tokens_by_text(self._tokenizer)


def _columns(given: Any, count: int) -> list[list[Any]]:
    """Return the tokens of a text, their log-probabilities, and the likeliest words there."""
    try:
        columns = [list(given[name]) for name in ("tokens", "token_logprobs", "top_logprobs")]
    except (KeyError, TypeError) as error:
        raise NotGiven("it has no `logprobs` with `tokens` and `top_logprobs`") from error
    length = min(map(len, columns))
    if length < count:
        raise NotGiven(f"it has {length} positions for a text of {count} tokens")
    if max(map(len, columns)) > count + 1:  # one is written after the text
        raise WrongAnswer(f"it has more than {count + 1} positions for a text of {count} tokens")
    return [column[:count] for column in columns]


def _echoed(own: int, value: Any, likeliest: Any, read: Callable[[str], int]) -> Position | None:
    """Return the likeliest words and the text's own."""
    if value is None and likeliest is None:
        return None
    try:
        found = _once((read(word), float(other)) for word, other in likeliest.items())
        known = float(value)
    except (AttributeError, TypeError, ValueError) as error:
        raise _unreadable(likeliest) from error
    if not math.isclose(found.setdefault(own, known), known, abs_tol=ABOVE_ZERO):
        raise WrongAnswer(f"the token {own} of the text has two log-probabilities")
    return found


def _id(name: str) -> int:
    """Return the id in the name of a token."""
    found = TOKEN_ID.fullmatch(name)
    if found is None:
        raise WrongAnswer(f"it has the token {name!r} among ids")
    return int(found[1])


def _once(words: Iterable[tuple[int, float]]) -> Position:
    """Return the words of a position, none of which may occur twice."""
    found: Position = {}
    for word, value in words:
        if word in found:
            raise WrongAnswer(f"a position has the word {word} twice")
        found[word] = value
    return found


def _best(position: Position | None, own: int, k: int) -> Likeliest:
    """Return the k likeliest words; an answer also has the text's own, perhaps beyond them."""
    if position is None:
        raise _unreadable(position)
    if own not in position:
        raise WrongAnswer(f"the token {own} of the text is not where it should be")
    best = sorted(position.items(), key=lambda item: -item[1])[:k]
    if len(best) < k:
        raise WrongAnswer(f"a position has {len(best)} words instead of {k}")
    if not all(value <= ABOVE_ZERO for _, value in best):
        raise WrongAnswer("a log-probability is nan or above 0")
    return [word for word, _ in best], [value for _, value in best]


def _unreadable(at: Any) -> WrongAnswer:
    return WrongAnswer(f"a position holds {str(at)[:60]!r}")
