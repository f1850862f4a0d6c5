"""`Proposals`: candidates that optuna proposes from what earlier ones were worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gkd_core.errors import ConfigError
from gkd_core.studies.study_config import AxisValue

if TYPE_CHECKING:
    import optuna

RANDOM = 6
"""Candidates that are proposed at random before any is from what others were worth."""


@dataclass(frozen=True)
class Tried:
    """A candidate that has come to an end, for the time being if it was stopped at a rung.

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

    Nothing is remembered between two proposals: what is known is in the runs of the candidates.

    Args:
        choices: The values of axes to choose from, by axis.
        rates: The smallest and the largest learning rate, by the axis of rates.
        rising: Whether larger values of the metric are better.

    Raises:
        ConfigError: optuna is not installed.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[AxisValue]],
        rates: Mapping[str, tuple[float, float]],
        rising: bool,
    ) -> None:
        self._optuna = _optuna()
        self._direction = "maximize" if rising else "minimize"
        distributions = self._optuna.distributions
        self._axes: dict[str, Any] = {
            axis: distributions.CategoricalDistribution(list(values))
            for axis, values in choices.items()
        }
        self._axes |= {
            axis: distributions.FloatDistribution(low, high, log=True)
            for axis, (low, high) in rates.items()
        }

    def propose(self, tried: Iterable[Tried], seed: int) -> Mapping[str, AxisValue]:
        """Return the values of a candidate; rates have two digits.

        Args:
            tried: The candidates so far; one whose values can no longer occur does not count.
            seed: Another one leads to another candidate.
        """
        study = self._optuna.create_study(
            direction=self._direction,
            sampler=self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM),
        )
        study.add_trials([self._trial(each) for each in tried if self.can_occur(each.axes)])
        proposed = study.ask(self._axes).params
        return {axis: self._rounded(axis, value) for axis, value in proposed.items()}

    def can_occur(self, axes: Mapping[str, AxisValue]) -> bool:
        """Return whether a candidate with these values can be proposed."""
        return axes.keys() == self._axes.keys() and all(
            _contains(self._axes[axis], value) for axis, value in axes.items()
        )

    def _trial(self, tried: Tried) -> optuna.trial.FrozenTrial:
        state = self._optuna.trial.TrialState
        made: optuna.trial.FrozenTrial = self._optuna.trial.create_trial(
            state=state.PRUNED if tried.value is None else state.COMPLETE,
            params=dict(tried.axes),
            distributions=self._axes,
            value=tried.value,
            intermediate_values=dict(enumerate(tried.evaluations, start=1)),
        )
        return made

    def _rounded(self, axis: str, value: AxisValue) -> AxisValue:
        if not isinstance(value, float):
            return value
        within = self._axes[axis]
        return float(min(max(float(f"{value:.2g}"), within.low), within.high))


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
