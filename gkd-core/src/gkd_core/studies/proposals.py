"""`Proposals`: candidates that optuna proposes from what earlier ones were worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gkd_core.errors import ConfigError
from gkd_core.studies.study_config import AxisValue

if TYPE_CHECKING:
    import optuna

REDUCTION = 2
"""At each rung, the better one of so many candidates goes on."""


@dataclass(frozen=True)
class Tried:
    """A candidate of an earlier search, or of this one before it was interrupted.

    Attributes:
        axes: Its value on each axis.
        evaluations: Its metric at each evaluation so far.
        value: What it was worth in the end; None if it was stopped at a rung.
    """

    axes: Mapping[str, AxisValue]
    evaluations: Sequence[float]
    value: float | None


class Proposals:
    """Candidates that optuna proposes from what earlier ones were worth.

    Args:
        choices: The values of axes to choose from, by axis.
        rates: The smallest and the largest learning rate, by the axis of rates.
        rising: Whether larger values of the metric are better.
        seed: Seed of the proposals.

    Raises:
        ConfigError: optuna is not installed.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[AxisValue]],
        rates: Mapping[str, tuple[float, float]],
        rising: bool,
        seed: int,
    ) -> None:
        self._optuna = _optuna()
        distributions = self._optuna.distributions
        self._axes: dict[str, Any] = {
            axis: distributions.CategoricalDistribution(list(values))
            for axis, values in choices.items()
        }
        self._axes |= {
            axis: distributions.FloatDistribution(low, high, log=True)
            for axis, (low, high) in rates.items()
        }
        self._study = self._optuna.create_study(
            direction="maximize" if rising else "minimize",
            sampler=self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=6),
            pruner=self._optuna.pruners.SuccessiveHalvingPruner(1, REDUCTION, 0),
        )

    def recall(self, tried: Tried) -> None:
        """Take what an earlier candidate was worth into account, if its values can still occur."""
        if not self._knows(tried.axes):
            return
        state = self._optuna.trial.TrialState
        reports = dict(enumerate(tried.evaluations, start=1))
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=state.PRUNED if tried.value is None else state.COMPLETE,
                params=dict(tried.axes),
                distributions=self._axes,
                value=tried.value,
                intermediate_values=reports,
            )
        )

    def enqueue(self, axes: Mapping[str, AxisValue]) -> None:
        """Propose a candidate before all others, if its values can still occur."""
        if self._knows(axes):
            self._study.enqueue_trial(dict(axes))

    def ask(self) -> Candidate:
        """Return the next candidate."""
        return Candidate(self._study, self._study.ask(self._axes))

    def _knows(self, axes: Mapping[str, AxisValue]) -> bool:
        return axes.keys() == self._axes.keys() and all(
            _contains(self._axes[axis], value) for axis, value in axes.items()
        )


class Candidate:
    """A candidate that is being tried.

    Attributes:
        axes: Its value on each axis; rates have two digits.
        evaluations: Its metric at each evaluation so far.
    """

    def __init__(self, study: optuna.Study, trial: optuna.Trial) -> None:
        self._study = study
        self._trial = trial
        self.axes: Mapping[str, AxisValue] = {
            axis: float(f"{value:.2g}") if isinstance(value, float) else value
            for axis, value in trial.params.items()
        }
        self.evaluations: list[float] = []

    def report(self, value: float) -> bool:
        """Note its metric at an evaluation; return whether it is good enough to go on."""
        self.evaluations.append(value)
        self._trial.report(value, len(self.evaluations))
        return not self._trial.should_prune()

    def finish(self, value: float) -> None:
        """Note what it is worth in the end."""
        self._study.tell(self._trial, value)

    def stop(self) -> None:
        """Note that it was stopped at a rung."""
        self._tell("PRUNED")

    def fail(self) -> None:
        """Note that it could not be trained."""
        self._tell("FAIL")

    def _tell(self, state: str) -> None:
        self._study.tell(self._trial, state=getattr(_optuna().trial.TrialState, state))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "gkd search needs optuna, which is not installed: pip install 'gkd-core[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _contains(distribution: Any, value: AxisValue) -> bool:
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    return isinstance(value, float) and distribution.low <= value <= distribution.high
