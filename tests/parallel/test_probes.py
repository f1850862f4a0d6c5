"""Probes measure the same in every layout: over the rows of all ranks, on whole features."""

from __future__ import annotations

import pytest

from gkd_core.probes.probe_file import PROBES, read_probes

rest = [pytest.mark.slow, pytest.mark.exhaustive]
PROBED = ["probe.every=4", "training.batch_size=12"]
CASES = [
    ("pkd", "teacher", ["method=pkd+soft", *PROBED]),
    ("causal-lm", "lm-decoder", ["method=soft", "task.kind=causal-lm", *PROBED]),
]
LAYOUTS = {
    "tensor": (2, ["parallel.tensor=2"]),
    "data": (2, []),
    "teacher alone": (2, ["teacher.tensor=2"]),
    "two copies": (4, ["parallel.tensor=2"]),
    "a wider teacher": (4, ["parallel.tensor=2", "teacher.tensor=4"]),
    "ZeRO 3": (2, ["parallel.zero=3"]),
}
QUICK = ("tensor",)


@pytest.fixture(scope="module")
def alone(still, runs, tmp_path_factory):
    """The same runs in one process."""
    folder = tmp_path_factory.mktemp("alone")
    runs.train_all(still, folder, CASES)
    return folder


def _values(folder):
    found = read_probes(folder / "stages" / "distil" / PROBES)
    return {(v.step, v.rows, v.feature, v.distance): v.value for v in found}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=() if name in QUICK else rest) for name in LAYOUTS]
)
def test_every_layout_measures_what_one_process_does(
    still, on_ranks, runs, alone, tmp_path, layout
):
    ranks, settings = LAYOUTS[layout]
    cases = [(name, teacher, [*own, *settings]) for name, teacher, own in CASES]
    on_ranks(ranks, runs.train_all, still, tmp_path, cases)
    for name, *_ in cases:
        expected, found = _values(alone / name), _values(tmp_path / name)
        assert {step for step, *_ in expected} == {1, 5, 8}
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-5)
