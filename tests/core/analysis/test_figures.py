"""Figures hold what is drawn in them, however much that is."""

from gkd_core.analysis import figures
from gkd_core.probes.probe_file import ProbedValue


def test_a_legend_of_many_features_leaves_room_for_the_curves():
    """If it does not, matplotlib warns, and a warning fails a test."""
    names = [f"{site}[{layer}]" for site in ("query", "key", "value") for layer in range(12)]
    measured = [
        ProbedValue(step, 0, "training", "teacher", name, name, "mse", 1.0 / (step + 1))
        for step in range(3)
        for name in names
    ]
    drawn = figures.probed(measured)["mse"]
    assert all(f">{name}</text>" in drawn for name in names)
