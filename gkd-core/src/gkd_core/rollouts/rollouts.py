"""`Rollouts`: replaces the text of a share of a step's rows by what models write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from gkd_core.rollouts.mismatch import mismatch
from gkd_core.rollouts.remote_writer import RemoteWriter
from gkd_core.rollouts.replay_buffer import KeptText, ReplayBuffer
from gkd_core.rollouts.rows import RowText, RowWriter, prompts_of, split_prompts
from gkd_core.rollouts.tally import Tally
from gkd_core.rollouts.writer import Writer

REPLAY, COMPARED = "replay", "compared"
"""Names in the state of rollouts: the kept texts, and whether the first text was compared."""


@dataclass(frozen=True)
class DrawnRow:
    """A row of a step.

    Attributes:
        batch: Index of its micro-batch.
        place: Index in the micro-batch.
        prompt: Its prompt.
        source: Where its text comes from.
        seed: The seed for writing it.
        anew: A draw from 0 to 1: whether the student writes it anew.
        pick: A draw from 0 to 1: which kept text it is.
    """

    batch: int
    place: int
    prompt: Tensor
    source: RowSource
    seed: int
    anew: float = 0.0
    pick: float = 0.0


class Rollouts:
    """Replaces the text of a share of the rows of every step.

    Which rows, and the seeds for writing them, depend only on the seed, the step and the row: they
    are the same for any number of ranks and micro-batches, and in a resumed run.

    Args:
        engine: Continues prompts with models in these processes.
        config: Shares and lengths.
        writers: The models that write, by source.
        rows: Puts the text into the batches.
        end_ids: Tokens that end a text.
        seed: Seed of the draws.
        limit: The largest `mismatch` of the student's text; None if no method asks how likely its
            tokens were drawn, or if a teacher takes part in them.

    Attributes:
        tally: Counts what is written.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        config: RolloutConfig,
        writers: Mapping[RowSource, Writer | RemoteWriter],
        rows: RowWriter,
        end_ids: Sequence[int],
        seed: int,
        limit: float | None = None,
    ) -> None:
        self.engine = engine
        self.config = config
        self.writers = writers
        self.rows = rows
        self.end_ids = tuple(end_ids)
        self.seed = seed
        self.limit = limit
        self._compared = limit is None
        self.tally = Tally()
        self.replay = ReplayBuffer(config)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to checkpoint: that of the engine, and of what is kept of texts."""
        engine, replay = self.engine.state_dict(), self.replay.state_dict()
        own: dict[str, Any] = {REPLAY: replay} if replay else {}
        if self.limit is not None:
            own[COMPARED] = self._compared
        return {"engine": engine, **own} if own else engine

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
        expected = bool(self.replay.state_dict()) or self.limit is not None
        wrapped = expected and not state.keys().isdisjoint((REPLAY, COMPARED))
        own = state if wrapped else {}
        self.replay.load_state_dict(own.get(REPLAY, {}))
        self._compared |= own.get(COMPARED, False)
        self.engine.load_state_dict(state["engine"] if wrapped else state)

    def apply(self, batches: Sequence[Batch], step: Step) -> Sequence[Batch]:
        """Return the micro-batches with rows that models have written.

        Every rank calls this with its share of the rows.

        Args:
            batches: The micro-batches of an optimizer step, on the CPU.
            step: The step.
        """
        split = [split_prompts(batch, self.config.prompt_tokens) for batch in batches]
        drawn = [self._draw(number, batch, step) for number, batch in enumerate(split)]
        texts: list[dict[int, RowText]] = [{} for _ in split]
        every = [row for rows in drawn for row in rows]
        typed = "token_type_ids" in split[0].inputs
        new = [row for row in every if self._is_new(row, step)]
        for source in self._writing(new):
            own = [row for row in new if row.source == source]
            # A rank without a row to write still takes part, and drops the text.
            begun = time.perf_counter()
            found = self._write(own or every[:1], source, typed)
            written = [text.written for text in found[: len(own)]]
            self.tally.add(written, self.end_ids, time.perf_counter() - begun)
            for row, text in zip(own, found, strict=False):
                texts[row.batch][row.place] = text
                if source == "student":
                    self.replay.add(KeptText(text, step.index))
        self._use_kept(every, texts, step)
        widths = max_over_ranks(map(self.rows.width, split, texts))
        made = [
            self.rows.replace(batch, own, [row.source for row in rows], width)
            for batch, own, rows, width in zip(split, texts, drawn, widths, strict=True)
        ]
        if not self._compared:
            self._compare(made)
        return made

    def _compare(self, batches: Sequence[Batch]) -> None:
        """Make sure that the first text of the student is drawn from its own distribution.

        Args:
            batches: The micro-batches of the step.

        Raises:
            PluginError: It is not.
        """
        (self._compared,) = any_of([any(batch.log_drawn is not None for batch in batches)])
        if not self._compared:
            return
        writer = self.writers["student"]
        assert isinstance(writer, Writer), "the student is in these processes"
        found = mismatch(writer, batches)
        self.tally.add_mismatch(found)
        if self.limit is not None and not found <= self.limit:
            raise PluginError(
                f"the rollout engine '{self.engine.name}' drew the student's tokens with "
                f"log-probabilities that are {found:.2g} from those of training, in the mean "
                f"(rollout/mismatch; at most {self.limit:g}), so the text is not the student's "
                "own. Give a server the weights of each step, and let it draw from all tokens at "
                "temperature 1 without penalties; if the engine is generate, the model computes "
                "otherwise with a key-value cache: try training.precision=fp32"
            )

    def _is_new(self, row: DrawnRow, step: Step) -> bool:
        """Return whether a model writes a row in this step."""
        progress = step.index / step.total
        return row.source != "student" or self.replay.writes_anew(row.anew, progress)

    def _use_kept(
        self,
        rows: Sequence[DrawnRow],
        texts: Sequence[dict[int, RowText]],
        step: Step,
    ) -> None:
        """Give the student's rows kept texts, if it keeps some, and count those of earlier steps.

        Args:
            rows: All rows of the step.
            texts: The text of each row that is replaced, for each micro-batch.
            step: The step.
        """
        own = [row for row in rows if row.source == "student"]
        if self.config.replay is not None:
            kept = [self.replay.draw(row.pick) for row in own]
            for row, one in zip(own, kept, strict=True):
                texts[row.batch][row.place] = one.text
            stale = sum(one.step < step.index for one in kept)
        else:
            stale = 0
        self.tally.add_used(len(own), stale)

    def _draw(self, number: int, batch: Batch, step: Step) -> list[DrawnRow]:
        """Draw the source of each row; a row that does not count keeps its own text."""
        teacher = self.config.teacher.at(step)
        student = min(self.config.student.at(step) + self.replay.growth, 1 - teacher)
        found = []
        rows = zip(batch.rows.tolist(), prompts_of(batch), strict=True)
        for place, (row, prompt) in enumerate(rows):
            draw = np.random.default_rng([self.seed, step.index, row])
            chance, seed = draw.random(), int(draw.integers(2**62))
            source: RowSource = "data"
            if batch.counted and chance < student + teacher:
                source = "student" if chance < student else "teacher"
            found.append(
                DrawnRow(number, place, prompt, source, seed, draw.random(), draw.random())
            )
        return found

    def _writing(self, rows: Sequence[DrawnRow]) -> list[RowSource]:
        """Return the sources that write rows of some rank."""
        chosen = {row.source for row in rows}
        sources = list(self.writers)
        used = any_of(source in chosen for source in sources)
        return [source for source, anywhere in zip(sources, used, strict=True) if anywhere]

    def _write(self, rows: Sequence[DrawnRow], source: RowSource, typed: bool) -> list[RowText]:
        """Return the text of each row."""
        prompts = Prompts(
            rows=[row.prompt for row in rows],
            max_new_tokens=self.config.max_new_tokens,
            end_ids=self.end_ids,
            pad_id=self.rows.pad_id,
            seeds=[row.seed for row in rows],
            typed=typed,
        )
        writer = self.writers[source]
        if isinstance(writer, RemoteWriter):
            texts = [self._cut(text) for text in writer.write(prompts)]
            return [RowText(row.prompt, text) for row, text in zip(rows, texts, strict=True)]
        with writer.writing(prompts.seeds[0]):
            answer = self.engine.write(prompts, writer)
        written: Written = one_of(self.engine, "write", answer, Written, "a `Written`")
        texts = [self._checked(text, writer) for text in self._counted(written.tokens, prompts)]
        drawn = self._log_drawn(written, texts, writer)
        return [RowText(r.prompt, t, own) for r, t, own in zip(rows, texts, drawn, strict=True)]

    def _log_drawn(
        self, written: Written, texts: Sequence[Tensor], writer: Writer
    ) -> Sequence[Tensor | None]:
        """Return the log-probability with which each token was drawn; None where nobody asks."""
        given = written.log_probs
        asks = writer.source == "student" and self.limit is not None and given is not None
        if not asks and not writer.mixes:
            return [None] * len(texts)
        found = [torch.tensor(list(own), dtype=torch.float64) for own in given or ()]
        if [len(own) for own in found] != [len(text) for text in written.tokens]:
            raise PluginError(
                f"the rollout engine '{self.engine.name}' did not return the log-probability of "
                "each token that it drew (`Written.log_probs`)"
            )
        return [own[: len(text)] for own, text in zip(found, texts, strict=True)]

    def _counted(self, texts: Sequence[Sequence[int]], prompts: Prompts) -> Sequence[Sequence[int]]:
        if len(texts) != len(prompts):
            raise PluginError(
                f"the rollout engine '{self.engine.name}' wrote {len(texts)} texts for "
                f"{len(prompts)} prompts; return one for each, in their order"
            )
        return texts

    def _checked(self, text: Sequence[int], writer: Writer) -> Tensor:
        """Return the text of an engine up to its end token."""
        cut = self._cut(text)
        words = writer.model.config.get_text_config().vocab_size
        if len(cut) > self.config.max_new_tokens or not bool(((cut >= 0) & (cut < words)).all()):
            raise PluginError(
                f"the rollout engine '{self.engine.name}' wrote {cut.tolist()}; return at most "
                f"rollout.max_new_tokens = {self.config.max_new_tokens} token ids from 0 to "
                f"{words - 1} for each prompt"
            )
        return cut

    def _cut(self, text: Sequence[int]) -> Tensor:
        """Return a text up to its end token."""
        ends = (place for place, token in enumerate(text, 1) if token in self.end_ids)
        return torch.tensor(list(text[: next(ends, len(text))]), dtype=torch.int64)
