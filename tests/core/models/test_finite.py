"""Weights that are not finite are named before anything is trained with them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from gkd_core.errors import ConfigError
from gkd_core.models.finite import is_finite
from gkd_core.parallel.loading import StoredWeights

WEIGHT = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.fixture
def spoilt(world, tmp_path):
    """Copy the teacher in two files, with a value in one of its weights: `spoilt("nan")`."""

    def _spoilt(value):
        folder = tmp_path / "spoilt"
        shutil.copytree(world / "teacher", folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        with torch.no_grad():
            model.get_parameter(WEIGHT)[3, 5] = float(value)
        model.save_pretrained(folder, max_shard_size="60KB")
        return folder

    return _spoilt


def _file_of(folder, name):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return index["weight_map"][name]


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weight_is_named_before_training(spoilt, prepare_run, side, value):
    folder = spoilt(value)
    given = {"teachers": (folder,)} if side == "teacher" else {}
    settings = [f"student.model={folder}"] if side == "student" else []
    run = prepare_run("method=soft", *settings, **given)
    with pytest.raises(ConfigError) as raised:
        run.execute()
    error, file = str(raised.value), _file_of(folder, WEIGHT)
    assert f"{side}.model = '{folder}': {WEIGHT} in {file} contains 1 {value} among 1,024" in error
    assert not (run.directory / "stages" / "distil" / "checkpoints").exists()


def test_weight_read_on_its_own_is_named(spoilt, world):
    folder = spoilt("inf")
    model = AutoModelForSequenceClassification.from_pretrained(world / "teacher")
    weights = StoredWeights(model, str(folder), "teacher.model")
    assert torch.equal(weights["classifier.bias"], model.classifier.bias)
    with pytest.raises(
        ConfigError, match=rf"{WEIGHT} in {_file_of(folder, WEIGHT)} contains 1 inf"
    ):
        weights[WEIGHT]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_value_of_any_type_is_found(dtype):
    tensor = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(tensor)
    assert is_finite(tensor[:0])
    for value in ("nan", "inf", "-inf"):
        broken = tensor.clone()
        broken[1, 2] = float(value)
        assert not is_finite(broken)
    assert is_finite(torch.ones(3, dtype=torch.int64))


def test_weight_of_a_later_stage_is_named_before_the_first_is_trained(spoilt, prepare_run, world):
    folder = spoilt("nan")
    run = prepare_run(
        file=f"""
        [[stages]]
        name = "first"
        method = "soft"
        teacher.model = "{world / "teacher"}"
        [[stages]]
        name = "second"
        method = "soft"
        teacher.model = "{folder}"
        """,
        teachers=(),
    )
    with pytest.raises(ConfigError, match=rf"stages.second.teacher.model = .*{WEIGHT} in "):
        run.execute()
    assert not (run.directory / "stages").exists()
