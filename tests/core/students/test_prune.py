"""`gkd prune` as a person meets it, and what can be done with its result."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from gkd_core.hooks.extraction import Extractor
from gkd_core.lease import hold
from gkd_core.models.load import load_teacher
from gkd_core.models.save import count_parameters
from gkd_core.models.sites import find_sites
from gkd_core.plugins import registry
from gkd_core.students.depth import measure_blocks, most_important

KINDS = registry().kinds

CLASSES = ("neg", "pos")


@pytest.fixture
def prune(world, invoke):
    def _prune(*arguments, model="teacher"):
        files = ["--data", world / "train.jsonl", "--set", f"task.test={world}/test.jsonl"]
        return invoke("prune", "--model", world / model, *files, "--output", "made", *arguments)

    return _prune


def parameters(directory):
    kind = "classification"
    return count_parameters(load_teacher(str(directory), KINDS[kind], CLASSES, False, "model"))


@pytest.mark.exhaustive
def test_a_share_of_the_parameters_is_left_and_every_command_reads_it(
    prune, invoke, world, tmp_path, settings
):
    done = prune("--parameters", "0.5")
    assert done.code == 0, done.err
    whole, left = parameters(world / "teacher"), parameters(tmp_path / "made")
    assert 0.47 * whole < left <= 0.5 * whole
    widths = json.loads((tmp_path / "made" / "config.json").read_text())["gkd_widths"]
    shown = re.search(r"after .* (\d+) to (\d+) heads of 8, feed-forward (\d+) to (\d+)", done.out)
    assert [int(number) for number in shown.groups()] == [
        *(min(widths["heads"]), max(widths["heads"])),
        *(min(widths["neurons"]), max(widths["neurons"])),
    ]
    evaluated = invoke("eval", "made", "--data", world / "test.jsonl", "--json")
    accuracy = json.loads(evaluated.out)["rows"][0]["metrics"]["accuracy"]
    assert f"{accuracy:.4f}" in done.out
    settings = [s for s in settings if s not in ("--student-layers", 2)]
    ran = invoke("run", *settings, "--student", "made", "--method", "soft+pkd", "--output", "run")
    assert ran.code == 0, ran.err
    trained = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    assert trained["gkd_widths"] == widths
    settings[settings.index("--teacher") + 1] = "made"
    taught = invoke("run", *settings, "--student-layers", 2, "--method", "pkd", "--output", "next")
    assert taught.code == 0, taught.err
    assert len(json.loads((tmp_path / "next/student/config.json").read_text())["gkd_widths"]) == 2
    refused = invoke("run", *settings, "--student-layers", 4, "--method", "tinybert")
    assert refused.code == 2
    assert "heads left: it was pruned" in " ".join(refused.err.split())
    again = invoke(
        *("prune", "--model", "made", "--data", world / "train.jsonl"),
        *("--parameters", "0.9", "--output", "less"),
    )
    assert again.code == 0, again.err
    assert parameters(tmp_path / "less") <= 0.9 * left


def test_fewer_blocks_are_an_ordinary_model(prune, tmp_path, world):
    assert prune("--depth", "2", "--blocks", "first").code == 0
    made = AutoModelForSequenceClassification.from_pretrained(tmp_path / "made")
    teacher = AutoModelForSequenceClassification.from_pretrained(world / "teacher")
    blocks = zip(made.bert.encoder.layer, teacher.bert.encoder.layer[:2], strict=True)
    for mine, theirs in blocks:
        pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_fewer_blocks_read_padded_rows_like_the_whole_model(prune, tmp_path, world):
    model = tmp_path / "left"
    AutoTokenizer.from_pretrained(world / "decoder", padding_side="left").save_pretrained(model)
    # Its positions are counted from the first column, unless they follow the mask.
    shape = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32, "vocab_size": 29}
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {"neg": 0, "pos": 1}}
    config = AutoConfig.for_model("gpt2", **shape, **names, pad_token_id=0, initializer_range=0.2)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(model)
    less, narrower = ("--depth", "2", "--blocks", "last"), ("--width", "0.5")
    for start, arguments, output in (
        (model, (*less, *narrower), "at-once"),
        (model, less, "less"),
        (tmp_path / "less", narrower, "in-two"),
    ):
        done = prune(*arguments, "--output", output, model=start)
        assert done.code == 0, done.err
    one, other = (
        load_file(tmp_path / name / "model.safetensors") for name in ("at-once", "in-two")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_even_language_model_is_an_ordinary_model(prune, tmp_path):
    done = prune(
        *("--depth", "3", "--width", "0.5", "--even", "--set", "task.kind=lm"), model="lm-decoder"
    )
    assert done.code == 0, done.err
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "made").config
    shape = (config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert shape == (3, 2, 32)


def test_blocks_that_change_nothing_go_first(build_model, build_batch):
    from gkd_core.contract.batch import Batch

    model = build_model("llama", "causal-lm")
    block = find_sites(model).blocks[1]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    batch = Batch(build_batch("left"), None, torch.arange(3))
    found = measure_blocks(Extractor(model, find_sites(model)), [batch, batch], torch.device("cpu"))
    assert found[1] == pytest.approx(0, abs=1e-7)
    assert most_important(found, 2) == [1, 3]
    with torch.no_grad():
        states = model(**batch.inputs, output_hidden_states=True).hidden_states
    cosine = torch.cosine_similarity(states[0], states[1], dim=-1)[batch.mask]
    assert found[0] == pytest.approx(1 - float(cosine.mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to keep: --parameters, --width or --depth"),
        (["--parameters", "1", "--width", "1"], "--parameters and --width are mutually exclusive"),
        (["--parameters", "0"], "--parameters must be above 0"),
        (["--width", "2"], "2.0 is not in the range"),
        (["--depth", "9"], "--depth 9 is not possible: the model has 4 blocks; choose 1 to 4"),
        (["--parameters", "0.01"], "--parameters 0.01 allows 373 parameters, but"),
    ],
)
def test_mistakes_are_one_message(prune, arguments, message):
    done = prune(*arguments)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_nothing_is_overwritten(prune, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.txt").write_text("years of work")
    assert "already exists" in prune("--depth", "2").err
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["thesis.txt"]


def test_a_directory_that_another_process_writes_is_left_alone(prune, tmp_path):
    with hold(tmp_path / "made"):
        done = prune("--depth", "2")
    assert done.code == 2
    assert "made is being written by process" in " ".join(done.err.split())
    assert not (tmp_path / "made").exists()
