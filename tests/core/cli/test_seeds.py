"""`gkd run --seeds`: a run of each seed, and what they say together."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture
def seeds(invoke, settings):
    """Run some seeds, with `--seeds` and other arguments: `seeds("--seeds", 2)`."""

    def _seeds(*arguments):
        given = [*settings, "--set", "training.steps=1", "--method", "soft"]
        return invoke("run", *given, "--output", "out", *arguments)

    return _seeds


@pytest.mark.exhaustive
def test_seeds_are_runs_of_their_own_that_end_with_their_mean(seeds, tmp_path):
    done = seeds("--seeds", 2, "--seed", 5, "--baseline")
    assert done.code == 0, done.err
    folders = [tmp_path / "out" / f"seed-{seed}" for seed in (5, 6)]
    rows = [json.loads((each / "results.json").read_text())["rows"] for each in folders]
    students, baselines = (
        [row[number]["metrics"]["accuracy"] for row in rows] for number in (-1, -2)
    )
    _, _, end = done.out.partition("accuracy on 40 test rows, 2 seeds")
    mean = sum(students) / 2
    line = next(line for line in end.splitlines() if line.startswith("student, soft"))
    assert line.split()[2] == f"{mean:.4f}"
    assert line.split()[-2:] == [f"{value:.4f}" for value in students]
    gain = mean - sum(baselines) / 2
    assert f": {gain:+.4f} accuracy on 40 test rows, 2 seeds, 95% interval " in " ".join(
        end.split()
    )

    again = seeds("--seeds", 3, "--seed", 5, "--baseline", "--resume")
    assert again.code == 0, again.err
    assert again.out.count("stage distil is finished already") == 2
    assert (tmp_path / "out" / "seed-7" / "results.json").exists()


def test_one_seed_is_no_set_of_seeds(seeds):
    assert "Invalid value for '--seeds'" in seeds("--seeds", 1).err
