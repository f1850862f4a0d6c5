"""`Proposals`: candidates that optuna proposes from what earlier ones were worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gkd_core.errors import ConfigError
from gkd_core.studies.study_config import METHOD, AxisValue

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
        choices: For each method, the values of axes to choose from, by axis; its own is one.
        rates: The smallest and the largest learning rate, by the axis of rates.
        rising: Whether larger values of the metric are better.

    Raises:
        ConfigError: optuna is not installed.
    """

    def __init__(
        self,
        choices: Mapping[str, Mapping[str, Sequence[AxisValue]]],
        rates: Mapping[str, tuple[float, float]],
        rising: bool,
    ) -> None:
        self._optuna = _optuna()
        self._direction = "maximize" if rising else "minimize"
        distributions = self._optuna.distributions
        self._methods = distributions.CategoricalDistribution(list(choices))
        free = {
            axis: distributions.FloatDistribution(low, high, log=True)
            for axis, (low, high) in rates.items()
        }
        self._axes: dict[AxisValue, dict[str, Any]] = {
            method: {
                **{axis: distributions.CategoricalDistribution(v) for axis, v in own.items()},
                **free,
            }
            for method, own in choices.items()
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
        method = study.ask({METHOD: self._methods}).params[METHOD]
        axes = self._axes[method]
        found = study.ask({_parameter(*each): each[1] for each in axes.items()}).params
        return {axis: _rounded(found[_parameter(axis, own)], own) for axis, own in axes.items()}

    def can_occur(self, axes: Mapping[str, AxisValue]) -> bool:
        """Return whether a candidate with these values can be proposed."""
        known = self._axes.get(axes.get(METHOD, ""), {})
        return axes.keys() == known.keys() and all(
            _contains(known[axis], value) for axis, value in axes.items()
        )

    def _trial(self, tried: Tried) -> optuna.trial.FrozenTrial:
        state, axes = self._optuna.trial.TrialState, self._axes[tried.axes[METHOD]]
        params = {_parameter(axis, own): tried.axes[axis] for axis, own in axes.items()}
        made: optuna.trial.FrozenTrial = self._optuna.trial.create_trial(
            state=state.PRUNED if tried.value is None else state.COMPLETE,
            params={METHOD: tried.axes[METHOD], **params},
            distributions={METHOD: self._methods}
            | {_parameter(*each): each[1] for each in axes.items()},
            value=tried.value,
            intermediate_values=dict(enumerate(tried.evaluations, start=1)),
        )
        return made


def _parameter(axis: str, distribution: Any) -> str:
    """Return what optuna calls an axis: methods share what is known of equal values only."""
    return f"{axis} {distribution}"


def _rounded(value: AxisValue, within: Any) -> AxisValue:
    if not isinstance(value, float):
        return value
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
