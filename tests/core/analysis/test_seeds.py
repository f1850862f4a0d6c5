"""What runs with several seeds say together, from predictions that are made up."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.analysis.seeds import SeedSummary
from gkd_core.evaluation.predictions import About, Predictions
from gkd_core.plugins import registry

ROWS = 100


def write_run(folder, seed, **shares):
    """Write a run whose models are right on the first rows, so many of a hundred."""
    directory = folder / f"seed-{seed}"
    (directory / "stages/baseline").mkdir(parents=True)
    (directory / "stages/baseline/done.json").write_text("")
    (directory / "config.toml").write_text(f'method = "soft"\nseed = {seed}\n')
    rows = [{"name": name, "metrics": {"accuracy": n / ROWS}} for name, n in shares.items()]
    said = {"metric": "accuracy", "split": "test", "samples": ROWS, "rows": rows}
    (directory / "results.json").write_text(json.dumps(said))
    hashes = [str(row) for row in range(ROWS)]
    columns = {"row": range(ROWS), "hash": hashes, "text": hashes, "pair": pa.nulls(ROWS)}
    table = pa.table({**columns, "gold": ["yes"] * ROWS, "group": pa.nulls(ROWS)})
    models = {
        name: pa.table({"hash": hashes, "prediction": np.where(np.arange(ROWS) < n, "yes", "no")})
        for name, n in shares.items()
    }
    about = About("test", "classification", ("yes", "no"), "accuracy")
    Predictions(about, table, models, {name: name for name in models}).write(
        directory / "predictions"
    )
    return FinishedRun.read(directory, registry())


@pytest.mark.parametrize(
    ("students", "said"),
    [
        ((72, 72), "distillation and labels alone are not told apart: +0.0200"),
        ((71, 72, 73), "distillation and labels alone are not told apart: +0.0200"),
        ((90, 91, 92), "distillation is better than labels alone: +0.2100"),
        ((50, 49, 51), "labels alone are better than distillation: -0.2000"),
    ],
)
def test_gain_is_told_apart_from_that_of_other_rows_and_seeds(students, said, tmp_path):
    runs = [write_run(tmp_path, seed, baseline=70, student=n) for seed, n in enumerate(students, 1)]
    found = SeedSummary(runs).verdict(registry())
    where = f" accuracy on 100 test rows, {len(students)} seeds, 95% interval "
    assert found.startswith(said + where)


def test_gain_has_no_interval_without_predictions(tmp_path):
    runs = [write_run(tmp_path, seed, baseline=50, student=90) for seed in (1, 2)]
    shutil.rmtree(tmp_path / "seed-2/predictions")
    assert SeedSummary(runs).verdict(registry()) == (
        "distillation and labels alone are not told apart: +0.4000 accuracy on 100 test rows, 2 "
        "seeds"
    )
