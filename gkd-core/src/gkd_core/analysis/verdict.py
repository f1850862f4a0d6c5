"""The verdict on a finished run: whether distillation pays, how sure that is, and what to try."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gkd_core.evaluation.predictions import STUDENT
from gkd_core.runs.default_method import LABELS
from gkd_core.training.stage_spec import BASELINE
from gkd_core.training.teacher_quality import hardly_better

if TYPE_CHECKING:
    from gkd_core.analysis.comparison import Compared
    from gkd_core.evaluation.seed_statistics import SeedDifference
    from gkd_core.evaluation.statistics import SampleEstimate
    from gkd_core.runs.run import Run

FEW = 1000
"""Rows below which only large differences are told apart."""

OTHER_RATE = 3
"""Factor to another learning rate that is worth a try."""


GAIN = {
    1: "distillation is better than labels alone",
    0: "distillation and labels alone are not told apart",
    -1: "labels alone are better than distillation",
}
"""The meaning of the sign of the student's lead over the baseline."""


@dataclass(frozen=True)
class Lead:
    """The lead of one model over another.

    Attributes:
        metric: The name of the metric of both.
        higher_is_better: Whether larger values of it are better.
        where: On what they were compared, as in `2,000 test rows`.
        difference: The metric of the one minus that of the other.
    """

    metric: str
    higher_is_better: bool
    where: str
    difference: SampleEstimate | SeedDifference

    @property
    def sign(self) -> int:
        """1 if the one is better, -1 if the other is, 0 if it may be either."""
        found = self.difference.interval
        if found is None or found.low <= 0 <= found.high:
            return 0
        return 1 if (found.low > 0) == self.higher_is_better else -1

    def __str__(self) -> str:
        said = f"{self.difference.value:+.4f} {self.metric} on {self.where}"
        found = self.difference.interval
        if found is None:
            return said
        return f"{said}, {found.level:.0%} interval {found:+.4f}"


def verdict(run: Run, compared: Compared) -> list[str]:
    """Return the verdict on the distillation of a finished run, in sentences.

    Empty if nothing can be said: the rows have no labels, or nothing is compared with the student.
    """
    return [*_Verdict(run, compared).sentences()]


class _Verdict:
    def __init__(self, run: Run, compared: Compared) -> None:
        self._run = run
        self._compared = compared
        own = (STUDENT, BASELINE)
        self._teachers = [file for file in compared.predictions.models if file not in own]

    def sentences(self) -> Iterator[str]:
        gain = self._lead(STUDENT, BASELINE)
        if gain is not None:
            yield self._gain(gain)
        for file in self._teachers:
            yield from self._teacher(file)
        if gain is not None and gain.sign < 1:
            yield f"what may help: {'; '.join(self._advice(gain))}"

    def _gain(self, gain: Lead) -> str:
        seed = self._run.resolved.config.seed
        return f"{GAIN[gain.sign]}: {gain}; of one seed ({seed}): --seeds 3 compares several"

    def _teacher(self, file: str) -> Iterator[str]:
        """Yield what is to be said of a teacher: nothing of one that is better than the student."""
        name, guess = self._name(file), self._compared.comparison.guessed
        lag, lead = self._lead(STUDENT, file), self._lead(file, BASELINE)
        if guess is not None and self._guesses(file, guess):
            yield (
                f"warning: {name} is hardly better than the most frequent class alone "
                f"({self._value(file):.4f} and {guess:.4f}), so there is little to learn from it"
            )
        elif lead is not None and lead.sign < 0:
            yield f"labels alone are better than {name}: {lead}"
        elif lead is not None and lead.sign == 0:
            yield f"{name} is not shown to be better than labels alone: {lead}"
        elif lag is not None and lag.sign > 0:
            yield f"the student is better than {name}: {lag}"
        elif lag is not None and lag.sign == 0:
            yield f"the student is not told apart from {name}, which may have taught all: {lag}"

    def _advice(self, gain: Lead) -> Iterator[str]:
        """Yield what to try where distillation does not pay."""
        last = self._run.last
        if gain.sign == 0 and self._compared.comparison.samples < FEW:
            yield "more test rows (task.test)"
        if not any(member.methods[0].needs_labels for member in last.members):
            yield f"a term for the labels (--method {last.expression}+{LABELS})"
        yield "a better teacher"
        rate = last.config.training.lr
        yield f"another learning rate (--set training.lr={OTHER_RATE * rate:g}, now {rate:g})"

    def _guesses(self, file: str, guess: float) -> bool:
        own = self._compared.comparison
        return hardly_better(self._value(file), guess, own.metric, own.samples)

    def _value(self, file: str) -> float:
        """Return the main metric of a model."""
        comparison, name = self._compared.comparison, self._name(file)
        row = next(row for row in comparison.rows if row.name == name)
        return row.metrics[comparison.metric]

    def _name(self, file: str) -> str:
        return self._compared.predictions.names[file]

    def _lead(self, first: str, second: str) -> Lead | None:
        found = self._compared.difference(first, second)
        if found is None:
            return None
        own = self._compared.comparison
        where = f"{own.samples:,} {own.split} rows"
        return Lead(own.metric, own.higher_is_better, where, found)
