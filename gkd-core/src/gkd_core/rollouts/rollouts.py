"""`Rollouts`: replaces the text of a share of a step's rows by what models write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gkd_core.config.schema import RolloutConfig
from gkd_core.contract.batch import Batch, RowSource
from gkd_core.contract.rollout import Prompts, RolloutEngine, Written
from gkd_core.contract.step import Step
from gkd_core.distributed.data_parallel import any_of, max_over_ranks
from gkd_core.errors import PluginError
from gkd_core.plugins.answers import one_of
from gkd_core.rollouts.rows import RowWriter, prompts_of, split_prompts
from gkd_core.rollouts.tally import Tally
from gkd_core.rollouts.writer import Writer


@dataclass(frozen=True)
class DrawnRow:
    """A row of a step.

    Attributes:
        batch: Index of its micro-batch.
        place: Index in the micro-batch.
        prompt: Its prompt.
        source: Where its text comes from.
        seed: The seed for writing it.
    """

    batch: int
    place: int
    prompt: Tensor
    source: RowSource
    seed: int


class Rollouts:
    """Replaces the text of a share of the rows of every step.

    Which rows, and the seeds for writing them, depend only on the seed, the step and the row: they
    are the same for any number of ranks and micro-batches, and in a resumed run.

    Args:
        engine: Continues prompts.
        config: Shares and lengths.
        writers: The models that write, by source.
        rows: Puts the text into the batches.
        end_ids: Tokens that end a text.
        seed: Seed of the draws.

    Attributes:
        tally: Counts what is written.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        config: RolloutConfig,
        writers: Mapping[RowSource, Writer],
        rows: RowWriter,
        end_ids: Sequence[int],
        seed: int,
    ) -> None:
        self.engine = engine
        self.config = config
        self.writers = writers
        self.rows = rows
        self.end_ids = tuple(end_ids)
        self.seed = seed
        self.tally = Tally()

    def apply(self, batches: Sequence[Batch], step: Step) -> Sequence[Batch]:
        """Return the micro-batches with rows that models have written.

        Every rank calls this with its share of the rows.

        Args:
            batches: The micro-batches of an optimizer step, on the CPU.
            step: The step.
        """
        split = [split_prompts(batch, self.config.prompt_tokens) for batch in batches]
        drawn = [self._draw(number, batch, step) for number, batch in enumerate(split)]
        texts: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in split]
        every = [row for rows in drawn for row in rows]
        typed = "token_type_ids" in split[0].inputs
        for source in self._writing(every, step):
            own = [row for row in every if row.source == source]
            # A rank without a row to write still takes part, and drops the text.
            begun = time.perf_counter()
            found = self._write(own or every[:1], source, typed)
            self.tally.add(found[: len(own)], self.end_ids, time.perf_counter() - begun)
            for row, written in zip(own, found, strict=False):
                texts[row.batch][row.place] = row.prompt, written
        widths = max_over_ranks(map(self.rows.width, split, texts))
        return [
            self.rows.replace(batch, own, [row.source for row in rows], width)
            for batch, own, rows, width in zip(split, texts, drawn, widths, strict=True)
        ]

    def _draw(self, number: int, batch: Batch, step: Step) -> list[DrawnRow]:
        """Draw the source of each row; a row that does not count keeps its own text."""
        student, teacher = self.config.student.at(step), self.config.teacher.at(step)
        found = []
        rows = zip(batch.rows.tolist(), prompts_of(batch), strict=True)
        for place, (row, prompt) in enumerate(rows):
            draw = np.random.default_rng([self.seed, step.index, row])
            chance, seed = draw.random(), int(draw.integers(2**62))
            source: RowSource = "data"
            if batch.counted and chance < student + teacher:
                source = "student" if chance < student else "teacher"
            found.append(DrawnRow(number, place, prompt, source, seed))
        return found

    def _writing(self, rows: Sequence[DrawnRow], step: Step) -> list[RowSource]:
        """Return the sources that write rows of some rank in this step."""
        chosen = {row.source for row in rows}
        sources = list(self.writers)
        used = any_of(source in chosen for source in sources)
        return [source for source, anywhere in zip(sources, used, strict=True) if anywhere]

    def _write(self, rows: Sequence[DrawnRow], source: RowSource, typed: bool) -> list[Tensor]:
        """Return the continuation of each row."""
        writer = self.writers[source]
        prompts = Prompts(
            rows=[row.prompt for row in rows],
            max_new_tokens=self.config.max_new_tokens,
            end_ids=self.end_ids,
            pad_id=self.rows.pad_id,
            seeds=[row.seed for row in rows],
            typed=typed,
        )
        with writer.writing(prompts.seeds[0]):
            answer = self.engine.write(prompts, writer)
        written: Written = one_of(self.engine, "write", answer, Written, "a `Written`")
        return [self._checked(text, writer) for text in self._counted(written.tokens, prompts)]

    def _counted(self, texts: Sequence[Sequence[int]], prompts: Prompts) -> Sequence[Sequence[int]]:
        if len(texts) != len(prompts):
            raise PluginError(
                f"the rollout engine '{self.engine.name}' wrote {len(texts)} texts for "
                f"{len(prompts)} prompts; return one for each, in their order"
            )
        return texts

    def _checked(self, text: Sequence[int], writer: Writer) -> Tensor:
        """Return a text up to its end token."""
        ends = (place for place, token in enumerate(text, 1) if token in self.end_ids)
        cut = list(text[: next(ends, len(text))])
        words = writer.model.config.get_text_config().vocab_size
        if len(cut) > self.config.max_new_tokens or not all(0 <= token < words for token in cut):
            raise PluginError(
                f"the rollout engine '{self.engine.name}' wrote {cut}; return at most "
                f"rollout.max_new_tokens = {self.config.max_new_tokens} token ids from 0 to "
                f"{words - 1} for each prompt"
            )
        return torch.tensor(cut, dtype=torch.int64)
