"""Have the teacher of a stage write the answers to its prompts, once and resumably."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from gkd_core import digest
from gkd_core.atomic import write_file
from gkd_core.config.schema import WritingConfig
from gkd_core.contract.rollout import Prompts, TokenSampling
from gkd_core.contract.task import Split
from gkd_core.data.chat import end_of_turn
from gkd_core.data.prompts import answered, as_columns, encode_prompts, prompts_alone
from gkd_core.distributed.device import pick_device
from gkd_core.distributed.ranks import is_first, rank, tell, wait, world_size
from gkd_core.errors import DataError
from gkd_core.objective.objective import name_seed
from gkd_core.optim.engine import autocast
from gkd_core.rollouts.answers import WRITTEN, FilteredAnswers, WrittenAnswer, load_part, save_part
from gkd_core.rollouts.engines.generate import Generate
from gkd_core.rollouts.writer import Writer
from gkd_core.teachers.served import Served
from gkd_core.teachers.server import ServedText
from gkd_core.training.stage_models import load_live_teacher

if TYPE_CHECKING:
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec

PART = 32
"""Answers in a part. What is written depends on the part that a prompt is in, never on the rank."""

SHAPING = ("temperature", "top_k", "top_p", "samples", "prompt_tokens", "max_new_tokens")
"""Settings that determine what is written; the others filter it."""


class AnswerWriter(Protocol):
    """Writes answers."""

    def write(self, prompts: Prompts) -> list[tuple[str, int, bool]]:
        """Return the text after each prompt, its tokens, and whether it ended by itself."""


def write_answers(
    spec: StageSpec,
    registry: Registry,
    folder: Path,
    teacher: str,
    say: Callable[[str], None],
) -> StageSpec:
    """Return a stage whose rows have answers of its teacher; parts that are there stay.

    Every rank writes a share of the parts, each with a teacher of its own. The data set is
    `written.jsonl` in the directory of the stage.

    Args:
        spec: The stage, whose teachers are trained.
        registry: Provides adapters for architectures.
        folder: The directory of the stage.
        teacher: What determines the answers of the teacher.
        say: Told of progress.

    Raises:
        DataError: No answer is kept.
    """
    work = _Work.of(spec, folder, teacher)
    missing = tell([n for n, part in enumerate(work.parts) if not part.path.exists()])
    if missing:
        work.write(_writer(spec, registry, work.tokenizer, work.config), missing, say)
    wait()
    found = [answer for part in work.parts for answer in load_part(part.path)]
    kept = FilteredAnswers.of(found, work.config)
    if not kept.answers:
        raise DataError(
            f"none of the {len(found)} answers of the teacher is kept: {_reasons(kept)}. "
            "Raise writing.max_new_tokens, or change the filter of the writing table"
        )
    texts = [answer.text for answer in kept.answers]
    rows = answered(work.prompts, [answer.row for answer in kept.answers], texts)
    if is_first():
        data = folder / f"{WRITTEN}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in as_columns(rows))
        write_file(data, "".join(lines))
        say(f"written: {work.summary(found, kept)} ({data})")
    return replace(spec, data=replace(spec.data, train=rows))


class _Part(NamedTuple):
    """Some of the answers.

    Attributes:
        path: The file that holds them.
        rows: The prompt of each.
    """

    path: Path
    rows: Sequence[int]


@dataclass(frozen=True)
class _Work:
    """The answers that a teacher has to write.

    Attributes:
        config: How.
        tokenizer: The tokenizer with which it reads.
        prompts: The rows without answers.
        ids: The tokens of each prompt; None if it is too long.
        parts: The parts.
        ends: Tokens that end an answer.
        seed: Seed of the draws.
        teacher: Name of the teacher.
    """

    config: WritingConfig
    tokenizer: PreTrainedTokenizerFast
    prompts: Split
    ids: Sequence[list[int] | None]
    parts: Sequence[_Part]
    ends: tuple[int, ...]
    seed: int
    teacher: str

    @classmethod
    def of(cls, spec: StageSpec, folder: Path, teacher: str) -> _Work:
        """Return the answers that the teacher of a stage has to write; see `write_answers`."""
        config, tokenizer = spec.config.writing, _reader(spec)
        assert config is not None, "the caller asks the stage"
        prompts = prompts_alone(spec.data.train, tokenizer, config.prompt_tokens)
        ids = encode_prompts(prompts, tokenizer, spec.max_length - config.max_new_tokens)
        seed = name_seed(spec.config.seed, f"writing {spec.name}")
        ends = _end_ids(spec, tokenizer)
        known = [config.model_dump(include={*SHAPING}), ids, ends, teacher, seed]
        place = folder / WRITTEN / digest.of_value(known)
        wanted = [n for n, own in enumerate(ids) if own is not None for _ in range(config.samples)]
        parts = [
            _Part(place / f"part-{number:05d}.jsonl", wanted[start : start + PART])
            for number, start in enumerate(range(0, len(wanted), PART))
        ]
        return cls(config, tokenizer, prompts, ids, parts, ends, seed, spec.teachers[0].info.name)

    def write(
        self, writer: AnswerWriter, missing: Sequence[int], say: Callable[[str], None]
    ) -> None:
        """Write the missing parts, each rank its share."""
        there = len(self.parts) - len(missing)
        for begun in range(0, len(missing), world_size()):
            # A rank without a part still takes part, since ranks may write in step; it is dropped.
            number = missing[min(begun + rank(), len(missing) - 1)]
            answers = self._answers(writer, number)
            if begun + rank() < len(missing):
                save_part(self.parts[number].path, answers)
            done = there + min(begun + world_size(), len(missing))
            if is_first() and _is_told(done, world_size(), len(self.parts)):
                say(f"written: part {done} of {len(self.parts)}")

    def _answers(self, writer: AnswerWriter, number: int) -> list[WrittenAnswer]:
        rows, pad = self.parts[number].rows, self.tokenizer.pad_token_id
        draw = np.random.default_rng([self.seed, number])
        prompts = Prompts(
            rows=[torch.tensor(self.ids[row]) for row in rows],
            max_new_tokens=self.config.max_new_tokens,
            end_ids=self.ends,
            pad_id=pad if pad is not None else next(iter(self.ends), 0),
            seeds=[int(one) for one in draw.integers(2**62, size=len(rows))],
        )
        pairs = zip(rows, writer.write(prompts), strict=True)
        return [WrittenAnswer(row, *answer) for row, answer in pairs]

    def summary(self, found: Sequence[WrittenAnswer], kept: FilteredAnswers) -> str:
        """Return a sentence about the answers that were written and kept."""
        tokens = sum(answer.tokens for answer in found) / len(found)
        cut = sum(not answer.ended for answer in found) / len(found)
        left = f", left out: {_reasons(kept)}" if kept.left_out else ""
        long = sum(own is None for own in self.ids)
        out = f"; {long:,} prompts are too long" if long else ""
        return (
            f"{len(found):,} answers of {self.teacher}, {tokens:.1f} tokens each, {cut:.0%} cut at "
            f"{self.config.max_new_tokens}; {len(kept.answers):,} kept{left}{out}"
        )


def _writer(
    spec: StageSpec,
    registry: Registry,
    tokenizer: PreTrainedTokenizerFast,
    config: WritingConfig,
) -> AnswerWriter:
    source = spec.teachers[0].source
    if isinstance(source, Served):
        return ServedWriter(source, tokenizer, config)
    return LiveWriter(spec, registry, tokenizer, config)


class LiveWriter:
    """A teacher whose model is loaded, whole, in this process.

    Args:
        spec: The stage.
        registry: Provides adapters for architectures.
        tokenizer: Its tokenizer.
        config: How it writes.
    """

    def __init__(
        self,
        spec: StageSpec,
        registry: Registry,
        tokenizer: PreTrainedTokenizerFast,
        config: WritingConfig,
    ) -> None:
        device = pick_device(spec.config.parallel.device)
        precision = partial(autocast, spec.config.training, device)
        teacher = load_live_teacher(spec, 0, registry, device)
        self._writer = Writer("teacher", teacher, device, precision)
        options = config.model_dump(include={"temperature", "top_k", "top_p"})
        self._engine = Generate(Generate.Config(**options))
        self._tokenizer = tokenizer

    def write(self, prompts: Prompts) -> list[tuple[str, int, bool]]:
        """Return the text after each prompt, its tokens, and whether it ended by itself."""
        with self._writer.writing(prompts.seeds[0]):
            written = self._engine.write(prompts, self._writer)
        return [self._read(list(tokens), prompts.end_ids) for tokens in written.tokens]

    def _read(self, tokens: list[int], ends: Sequence[int]) -> tuple[str, int, bool]:
        """Return a text up to its end token; a model that has none always ends."""
        last = next((n for n, token in enumerate(tokens, 1) if token in ends), None)
        text = self._tokenizer.decode(tokens[:last], skip_special_tokens=True)
        return text, len(tokens[:last]), last is not None or not ends


class ServedWriter:
    """A teacher on a server.

    Args:
        source: The server.
        tokenizer: The tokenizer of the teacher.
        config: How it writes.
    """

    def __init__(
        self, source: Served, tokenizer: PreTrainedTokenizerFast, config: WritingConfig
    ) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._sampling = TokenSampling(config.temperature, config.top_k, config.top_p)

    def write(self, prompts: Prompts) -> list[tuple[str, int, bool]]:
        """Return the text after each prompt, its tokens, and whether it ended by itself."""
        answers = self._source.write(prompts, self._sampling)
        return [(one.text, self._length(one), one.ended or not prompts.end_ids) for one in answers]

    def _length(self, answer: ServedText) -> int:
        """Return the number of tokens of an answer, which not every server tells."""
        if answer.tokens is not None:
            return len(answer.tokens)
        return len(self._tokenizer(answer.text, add_special_tokens=False)["input_ids"])


def _reader(spec: StageSpec) -> PreTrainedTokenizerFast:
    """Return the tokenizer with which the teacher reads its prompts."""
    teacher = spec.teachers[0]
    own = teacher.own_tokenizer or teacher.tokenizer
    if spec.data.train.chat and own.chat_template is None and _same_ids(spec):
        return spec.tokenizer  # its template; the ids mean the same
    return own


def _same_ids(spec: StageSpec) -> list[PreTrainedTokenizerFast]:
    """Return the student's tokenizer, if its ids are the teacher's."""
    return [spec.tokenizer] if spec.teachers[0].tokenizer is spec.tokenizer else []


def _end_ids(spec: StageSpec, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Return the tokens that end an answer of the teacher."""
    readers = [tokenizer, *_same_ids(spec)]
    names = [one.eos_token for one in readers]
    if spec.data.train.chat:
        names += [end_of_turn(one) for one in readers]
    known = tokenizer.get_vocab()
    return tuple(sorted({known[name] for name in names if name and name in known}))


def _is_told(done: int, step: int, total: int) -> bool:
    """Return whether progress is told: about ten times in all."""
    return done * 10 // total > max(done - step, 0) * 10 // total


def _reasons(kept: FilteredAnswers) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in kept.left_out.items())
