"""How servers are asked for the likeliest words of a text, and what their answers must hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

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
    """

    name: ClassVar[str]

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
