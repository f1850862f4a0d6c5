"""`RemoteWriter`: a teacher on a server that continues prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gkd_core.errors import DataError

if TYPE_CHECKING:
    from gkd_core.contract.rollout import Prompts, TokenSampling
    from gkd_core.teachers.served import Served
    from gkd_core.teachers.server import ServedText


class RemoteWriter:
    """A teacher on a server, which draws tokens as the engine of the other writers does.

    Args:
        source: The server.
        sampling: How tokens are drawn.
    """

    def __init__(self, source: Served, sampling: TokenSampling) -> None:
        self._source = source
        self._sampling = sampling

    def write(self, prompts: Prompts) -> list[Sequence[int]]:
        """Return the token ids after each prompt.

        Args:
            prompts: The prompts.

        Raises:
            DataError: The server does not give them, or gives such as the teacher cannot write.
        """
        answers = self._source.write(prompts, self._sampling)
        return [self._checked(answer, prompts.max_new_tokens) for answer in answers]

    def _checked(self, answer: ServedText, most: int) -> Sequence[int]:
        tokens, words = answer.tokens, self._source.teacher.labels
        if not tokens or len(tokens) > most or not all(0 <= token < words for token in tokens):
            raise DataError(
                f"{self._source.config.url} wrote the tokens {tokens}, instead of 1 to {most} from "
                f"0 to {words - 1}. Is it the server of the teacher?"
            )
        return tokens
