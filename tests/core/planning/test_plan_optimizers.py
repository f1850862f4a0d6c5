"""`gkd plan` counts what each optimizer keeps."""

from __future__ import annotations

import pytest
from tests.grids import first_of

from gkd_core.planning.choice import all_choices, least_need
from gkd_core.planning.shapes import count_trained, count_weights
from gkd_core.planning.simulation import simulate


@pytest.mark.parametrize("name", first_of(["muon", "adafactor", "adamw"]))
def test_simulated_state_is_what_the_factory_says(prepare_run, name):
    """At the peak, in the second step, the state is there and no update is under way."""
    run = prepare_run(
        "method=pkd+soft",
        f"optim.name={name}",
        "parallel.device=cpu",
        "training.batch_size=48",
    )
    planned = simulate(run.last, run.registry)
    assert planned.memory["optimizer"] == count_trained(run.last, run.registry).state


def test_lower_bound_counts_the_state_of_the_chosen_optimizer(prepare_run):
    found = {}
    for name in ("adafactor", "adamw"):
        spec = prepare_run("method=soft", f"optim.name={name}").last
        run = prepare_run("method=soft", f"optim.name={name}")
        trained = count_trained(spec, run.registry)
        sizes = count_weights(spec)
        choice = next(all_choices(1))
        found[name] = least_need(choice, spec, sizes, trained).device
    saved = found["adamw"] - found["adafactor"]
    assert saved == pytest.approx(8 * sizes["student"], rel=0.1)
