"""Descriptions on the command line: explained, refused, given back, run."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from gkd_core.config.formats import READERS
from gkd_core.config.resolve import resolve
from gkd_core.plugins import registry
from gkd_core.runs import run as running

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "describe-a-method.md"
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "methods" / "match.md"
DESCRIPTION = """
method = "match+soft"

[student]
hidden_size = 16
heads = 4

[[match.terms]]
knowledge = "hidden-mse"
weight = "linear(1 -> 0)"

[[match.terms]]
name = "scores"
site = "attention"
distance = "kl"
layers = [[1, 2], [2, 4]]
"""


@pytest.fixture
def file(tmp_path):
    """Write a description; `file(old, new)` replaces a part of it."""

    def _file(old="", new=""):
        assert old in DESCRIPTION
        path = tmp_path / "described.toml"
        path.write_text(DESCRIPTION.replace(old, new) if old else DESCRIPTION)
        return path

    return _file


def test_each_term_is_explained_with_its_origin_and_what_it_reads(invoke, settings, file):
    done = invoke("explain", file(), *settings)
    assert (done.code, done.err) == (0, "")
    text = " ".join(done.out.split())
    assert 'match.terms.0 = {"name": "hidden-mse", "knowledge": "hidden-mse"' in text
    assert re.search(r'"weight": "linear\(1 -> 0, over=100%\)"} \(\S*described\.toml:9\)', text)
    assert '"layers": [[1, 2], [2, 4]], "heads": "auto", "weight": 1.0}' in text
    lines = [line.split()[0] for line in done.out.splitlines() if "for match" in line]
    assert lines == [
        *("hidden[0]", "attention[2]", "hidden[2]", "attention[4]", "hidden[4]"),
        *("hidden[0]", "attention[1]", "hidden[1]", "attention[2]", "hidden[2]"),
    ]


def test_options_that_explain_prints_can_be_given_back(invoke, settings, file, tmp_path):
    first = json.loads(invoke("explain", file(), "--json", *settings).out)
    options = first["stages"][0]["methods"][0]["options"]
    again = {
        "method": "match+soft",
        "student": {"hidden_size": 16, "heads": 4},
        "match": {name: option["value"] for name, option in options.items()},
    }
    (tmp_path / "again.json").write_text(json.dumps(again))
    done = invoke("explain", tmp_path / "again.json", "--json", *settings)
    assert (done.code, done.err) == (0, "")
    second = json.loads(done.out)
    found = second["stages"][0]["methods"][0]["options"]
    assert {name: o["value"] for name, o in found.items()} == again["match"]
    assert second["stages"][0]["passes"] == first["stages"][0]["passes"]


def test_a_term_is_changed_by_its_place_or_name(invoke, settings, file):
    changes = ("--set", "match.terms.0.layers=top", "--set", "match.terms.scores.weight=3")
    stage = json.loads(invoke("explain", file(), "--json", *changes, *settings).out)["stages"][0]
    first, second = stage["methods"][0]["options"]["terms"]["value"]
    assert first["layers"] == "top"
    assert second["weight"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("heads = 4", "heads = 2"),
            "match.terms.1 (scores): scores are compared head by head, but the student has 2 query "
            "heads and the teacher 4.",
        ),
        (("[[1, 2], [2, 4]]", "[[1, 2], [3, 4]]"), "names student block 3"),
        (('"hidden-mse"', '"hidden-mse"\nprojection = "none"'), "hidden is 16 wide in the student"),
        (('"attention"', '"attentoin"'), "match.terms.1.site must be 'hidden', 'embedding'"),
        (('name = "scores"', "nmae = 1"), "is not a setting. Did you mean 'match.terms.1.name'?"),
        (
            ('weight = "linear(1 -> 0)"', "span = 1"),
            "match.terms.0: `span` does not apply to site 'hidden'; remove it",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_before_weights_load(
    invoke, settings, file, change, message
):
    done = invoke("run", file(*change), *settings)
    assert done.code == 2
    told = " ".join(done.err.split())
    assert message in told
    assert "described.toml:" in told
    assert not Path("runs").exists()


def test_a_projection_is_trained_and_not_exported(invoke, settings, file, tmp_path, monkeypatch):
    stages = []
    build = running.build_stage
    monkeypatch.setattr(running, "build_stage", lambda *a: stages.append(build(*a)) or stages[-1])
    output = tmp_path / "run"
    done = invoke("run", file(), *settings, "--output", output)
    assert done.code == 0, done.err
    (stage,) = stages
    (trained,) = stage.objective.modules.values()
    assert [name for name, _ in trained.named_parameters()] == [
        "hidden-mse.weight",
        "hidden-mse.bias",
    ]
    optimized = {id(parameter) for parameter in stage.engine.parameters}
    assert all(id(parameter) in optimized for parameter in trained.parameters())
    stage.objective.build_modules(stage.config.seed)
    (fresh,) = stage.objective.modules.values()
    assert not torch.equal(fresh["hidden-mse"].weight, trained["hidden-mse"].weight)
    with safe_open(output / "student" / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert names == {n for n, _ in stage.student.model.named_parameters()}
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert any({"loss/match.hidden-mse", "loss/match.scores"} <= entry.keys() for entry in logged)


@pytest.mark.exhaustive
def test_a_falling_weight_shows_in_the_log(invoke, settings, file, tmp_path):
    output = tmp_path / "run"
    assert invoke("run", file(), *settings, "--output", output).code == 0
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    falling = [entry["loss/match.hidden-mse"] for entry in logged if "loss/total" in entry]
    assert falling == sorted(falling, reverse=True)


def fenced(language, page=GUIDE):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def test_the_guide_says_the_same_in_json_as_in_toml(tmp_path):
    (json_block,) = fenced("json")
    toml_block = next(block for block in fenced("toml") if block.startswith("# described.toml"))
    assert READERS[".json"](json_block, "")[0] == READERS[".toml"](toml_block, "")[0]
    for name, block in (("a.json", json_block), ("a.toml", toml_block)):
        (tmp_path / name).write_text(block)
    first, second = (resolve(registry(), files=[tmp_path / n]) for n in ("a.json", "a.toml"))
    assert first.differences(second) == []


def test_the_reference_names_every_knowledge_type():
    from gkd_methods_intermediate.matching.knowledge import PRESETS

    table = REFERENCE.read_text().partition("## Knowledge types")[2].partition("## ")[0]
    assert set(PRESETS) - {"custom"} == set(re.findall(r"`([a-z]+-[a-z-]+)`", table)) & set(PRESETS)


def test_the_recipe_is_the_two_stages_of_a_task(world):
    flags = {
        "teachers": ([{"model": str(world / "teacher")}], "--teacher"),
        "task.train": (str(world / "train.jsonl"), "--data"),
        "task.max_length": (32, "--set"),
        "baseline": (False, "--no-baseline"),
    }
    resolved = resolve(registry(), recipe="match", flags=flags)
    assert set(resolved.about) == {"title", "paper", "description"}
    assert not resolved.warnings
    layers, prediction = running.prepare_run(resolved, registry())
    names = [term.name for term in layers.members[0].methods[0].config.terms]
    assert names == ["hidden-mse", "attention-mse"]
    (term,) = prediction.members[0].methods[0].config.terms
    assert (term.knowledge, term.temperature.at(0, 1)) == ("logits-ce", 1)
    assert layers.config.training.epochs == 10
    assert prediction.config.training.epochs == 3


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_recipe_runs(invoke, settings, tmp_path):
    output = tmp_path / "run"
    done = invoke("run", "--recipe", "match", *settings, "--output", output)
    assert done.code == 0, done.err
    assert json.loads((output / "results.json").read_text())["rows"]
