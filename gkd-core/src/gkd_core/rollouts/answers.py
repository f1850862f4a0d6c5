"""Answers that a model has written: parts of a data set, and which of them are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gkd_core.atomic import write_file
from gkd_core.config.schema import WritingConfig
from gkd_core.timed_pattern import TimedPattern

WRITTEN = "written"
"""Name of the folder with the parts, and of the data set, in the directory of a stage."""

PARTS = f"{WRITTEN}/*/part-*.jsonl"
"""The parts, as a pattern: what shapes the answers has a folder of its own."""


@dataclass(frozen=True)
class WrittenAnswer:
    """An answer to a prompt.

    Attributes:
        row: Index of the prompt.
        text: What was written.
        tokens: Its tokens.
        ended: Whether it ended by itself, rather than at the maximum number of tokens.
    """

    row: int
    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class FilteredAnswers:
    """The answers that pass the filter.

    Attributes:
        answers: Those that do, in the order in which they were written.
        left_out: How many do not, by the reason; each has one.
    """

    answers: Sequence[WrittenAnswer]
    left_out: dict[str, int]

    @classmethod
    def of(cls, answers: Iterable[WrittenAnswer], config: WritingConfig) -> FilteredAnswers:
        """Return the answers that a filter keeps.

        Args:
            answers: All that was written.
            config: The filter.
        """
        seen: set[tuple[int, str]] = set()
        kept: list[WrittenAnswer] = []
        left_out: dict[str, int] = {}
        pattern = TimedPattern(config.pattern, "writing.pattern") if config.pattern else None
        for answer in answers:
            key = answer.row, answer.text.strip()
            reason = _flaw(answer, config, pattern)
            if reason is None and config.distinct and key in seen:
                reason = "equal to another"
            if reason is None:
                seen.add(key)
                kept.append(answer)
            else:
                left_out[reason] = left_out.get(reason, 0) + 1
        return cls(kept, left_out)


def _flaw(answer: WrittenAnswer, config: WritingConfig, pattern: TimedPattern | None) -> str | None:
    """Return the reason to leave out an answer, whatever the others are; None if there is none."""
    if config.ended and not answer.ended:
        return "cut"
    if not answer.text.strip():
        return "empty"
    if answer.tokens < config.min_tokens:
        return "too short"
    if pattern is not None and not pattern.is_in(answer.text):
        return "without the pattern"
    return None


def save_part(path: Path, answers: Iterable[WrittenAnswer]) -> None:
    """Write answers to a file, which is either complete or absent."""
    lines = (json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
    write_file(path, "".join(lines))


def load_part(path: Path) -> list[WrittenAnswer]:
    """Return the answers in a file."""
    text = path.read_text(encoding="utf-8")
    return [WrittenAnswer(**json.loads(line)) for line in text.splitlines()]
