"""Students with low-rank adapters: what is trained, kept, resumed and saved."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.grids import first_of
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from gkd_core.config.schema import LoraConfig, StudentConfig
from gkd_core.errors import ConfigError, GkdError
from gkd_core.hooks.extraction import Extractor
from gkd_core.models.adapters import merged_state
from gkd_core.models.sites import find_sites
from gkd_core.parallel.weights import named_weights, whole_state
from gkd_core.planning.search import Limit, Search
from gkd_core.planning.shapes import ShapeSpecBuilder, count_trained
from gkd_core.planning.simulation import simulate
from gkd_core.plugins import registry
from gkd_core.runs.outline import outline_stage
from gkd_core.runs.run import build_specs
from gkd_core.students.build import Student
from gkd_core.students.lora import add_lora
from gkd_core.training import loop

LORA = ("student.lora.rank=4", "training.lr=1e-2")
CAUSAL = ("task.kind=causal-lm", "student.layers=4")


class Killed(BaseException):
    """The process dies here; unlike SIGKILL a test can catch it."""


def _adapted(model, is_lm=True, initialized=(), **settings):
    student = Student(model, [], initialized=tuple(initialized))
    return add_lora(student, find_sites(model), LoraConfig(**settings), is_lm, 1, None)


def _disturb(model):
    """Give adapters values: they begin as nothing."""
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize(
    ("family", "head"),
    first_of([("gpt2", "causal-lm"), ("llama", "causal-lm"), ("bert", "classification")], 3)
    + first_of([(name, "causal-lm") for name in ("glm4", "qwen3_moe", "opt", "gpt_neox")], 0),
)
def test_merged_weights_compute_what_the_adapters_do(build_model, build_batch, family, head):
    model, batch = build_model(family, head), build_batch()
    before = model.state_dict()
    plain = model(**batch).logits
    made = _adapted(model, is_lm=head == "causal-lm", rank=3).model
    torch.testing.assert_close(made(**batch).logits, plain, rtol=0, atol=0)
    _disturb(made)
    expected = made(**batch).logits
    assert (expected - plain).abs().max() > 1e-3
    merged = merged_state(made, whole_state(made))
    assert list(merged) == list(before)
    fresh = build_model(family, head)
    fresh.load_state_dict(merged)
    torch.testing.assert_close(fresh(**batch).logits, expected, rtol=1e-4, atol=1e-5)


def test_only_adapters_are_trained_and_a_head_that_is_new_or_no_language_model(build_model):
    model = build_model("llama", "causal-lm")
    _adapted(model, rank=2, targets=["q_proj", "v_proj"])
    names = [name for name, _ in named_weights(model)]
    assert names == [name for name, w in model.named_parameters() if w.requires_grad]
    assert all(".lora_" in name for name in names)
    assert len(names) == 2 * 2 * model.config.num_hidden_layers
    model = build_model("bert", "classification")
    _adapted(model, is_lm=False, initialized=["bert.pooler.dense.weight"])
    whole = [name for name, _ in named_weights(model) if ".lora_" not in name]
    assert whole == ["bert.pooler.dense.weight", "classifier.weight", "classifier.bias"]
    model = build_model("bert", "classification")
    _adapted(model, is_lm=False, head=False)
    assert all(".lora_" in name for name, _ in named_weights(model))


def test_sites_are_those_of_the_adapted_layers(build_model, build_batch):
    model, batch = build_model("llama", "causal-lm"), build_batch()
    _adapted(model, rank=2)
    _disturb(model)
    sites = find_sites(model)
    found = []
    sites.ffns[0].register_forward_hook(lambda _, __, out: found.append(out))
    with torch.no_grad():
        model(**batch)
        mlp = sites.blocks[0].mlp
        assert sites.ffns[0] is mlp.down_proj
    assert found[0].shape[-1] == model.config.hidden_size
    Extractor(model, sites).remove()


def test_run_trains_adapters_and_resumes_to_the_last_bit(prepare_run, monkeypatch):
    settings = (
        *("method=pkd+soft", *LORA, "student.lora.dropout=0.1", "training.epochs=2"),
        "training.checkpoint_every=3",
    )
    whole = prepare_run(*settings, directory="whole")
    whole.execute()
    stock = loop.train_step

    def dies(stage, batches, step):
        if step.index == 7:
            raise Killed
        return stock(stage, batches, step)

    monkeypatch.setattr(loop, "train_step", dies)
    broken = prepare_run(*settings, directory="broken")
    with pytest.raises(Killed):
        broken.execute()
    folder = broken.directory / "stages" / "distil" / "checkpoints" / "step-00000006"
    stored = load_file(folder / "student.safetensors")
    assert {name for name in stored if ".lora_" not in name} == {
        "classifier.weight",
        "classifier.bias",
    }
    moments = load_file(folder / "optimizer.safetensors")
    assert len([name for name in moments if name.endswith(".exp_avg")]) == len(stored)
    monkeypatch.setattr(loop, "train_step", stock)
    broken = prepare_run(*settings, directory="broken")
    broken.execute()
    students = [load_file(run.student / "model.safetensors") for run in (whole, broken)]
    assert all(torch.equal(weight, students[1][name]) for name, weight in students[0].items())


@pytest.mark.parametrize(
    ("teacher", "settings", "auto"),
    first_of(
        [
            ("teacher", ("student.layers=4",), AutoModelForSequenceClassification),
            ("lm-decoder", CAUSAL, AutoModelForCausalLM),
        ],
        2,
    ),
)
def test_saved_adapter_is_one_of_peft_and_student_is_merged(
    prepare_run, world, teacher, settings, auto
):
    import peft

    run = prepare_run("method=soft+hard", *LORA, *settings, teachers=(teacher,))
    run.execute()
    merged = auto.from_pretrained(run.student).eval()
    config = json.loads((run.student / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((world / teacher).resolve())
    base = auto.from_pretrained(config["base_model_name_or_path"])
    loaded = peft.PeftModel.from_pretrained(base, run.student / "adapter").eval()
    tokens = torch.arange(1, 13).reshape(2, 6)
    expected, found = (model(input_ids=tokens).logits for model in (merged, loaded))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (auto.from_pretrained(world / teacher)(input_ids=tokens).logits - found).abs().max() > 0
    assert not list(run.student.rglob("*.bin"))


def test_adapter_of_a_base_that_is_saved_nowhere_is_only_merged(prepare_run):
    run = prepare_run("method=soft", *LORA, "student.layers=2")
    run.execute()
    assert not (run.student / "adapter").exists()
    assert (run.student / "model.safetensors").exists()


@pytest.mark.exhaustive
def test_stages_each_have_adapters_of_their_own(prepare_run):
    two = '[[stages]]\nname = "one"\nmethod = "soft"\n[[stages]]\nname = "two"\nmethod = "hard"\n'
    run = prepare_run(*LORA, file=two)
    run.execute()
    config = json.loads((run.student / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(run.results["one"].student)


def test_explain_and_plan_count_trained_weights(prepare_run):
    run = prepare_run("method=soft", *LORA)
    stage = run.build(run.last)
    trained = sum(weight.numel() for _, weight in named_weights(stage.student.model))
    outline = outline_stage(run.last).lora
    assert (outline.trained, outline.layers) == (trained, 12)
    planned = count_trained(run.last, run.registry)
    assert planned.weights == trained
    assert planned.state >= 8 * trained
    spec = _planned(run)
    estimate = simulate(spec, run.registry)
    assert estimate.parameters["student (trained)"] == trained
    assert 8 * trained <= estimate.memory["optimizer"] <= 16 * trained


def test_plan_of_frozen_weights_under_zero_3_is_refused_and_not_searched(prepare_run):
    run = prepare_run("method=soft", *LORA, "parallel.nproc=2", "parallel.zero=2")
    spec = _planned(run)
    tried = Search(spec, run.registry, Limit(10, None), lambda spec: pytest.fail("too large"))
    assert {choice.zero for choice in tried.choices()} == {0, 1, 2}
    run = prepare_run("method=soft", *LORA, "parallel.nproc=2", "parallel.zero=3")
    with pytest.raises(ConfigError, match=r"cannot be planned with student\.lora"):
        simulate(_planned(run), run.registry)


def _planned(run):
    builder = ShapeSpecBuilder(run.registry, [one.config.task for one in run.resolved.stages])
    return build_specs(run.resolved, builder)["distil"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("student.lora.targets=['quary']",), r"names 'quary'.*Did you mean 'query'"),
        (("student.lora.rank=0",), r"student\.lora\.rank"),
        (("student.init=random",), r"`lora` freezes the weights that it adapts"),
        (("parallel.tensor=2", "parallel.nproc=2"), r"puts adapters into whole layers"),
        (("method=autodisc", "student.layers=4"), r"autodisc cuts the student"),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_the_run(prepare_run, settings, said):
    with pytest.raises(GkdError, match=said):
        prepare_run("method=soft", *LORA, *settings)


def test_missing_package_is_named(prepare_run, monkeypatch):
    stock = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "peft" else stock(n))
    with pytest.raises(ConfigError, match=r"Install gkd-core\[lora\]"):
        prepare_run("method=soft", *LORA)


def test_new_setting_changes_no_fingerprint(prepare_run):
    from gkd_core.runs.fingerprint import Fingerprints

    run = prepare_run("method=soft")
    found = Fingerprints(registry()).of(run.last)
    assert StudentConfig().lora is None
    assert found.settings != Fingerprints(registry()).of(prepare_run(*LORA).last).settings


def _log(run):
    lines = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
    return [{n: v for n, v in line.items() if "second" not in n} for line in lines]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("teacher", ()), pytest.param("lm-decoder", CAUSAL[:1], marks=pytest.mark.exhaustive)],
)
def test_student_of_its_own_teacher_has_the_same_tensors_and_losses(
    prepare_run, world, tmp_path, name, settings
):
    shutil.copytree(world / name, tmp_path / "copy")
    given = ("method=pkd+soft+hard", *LORA, *settings, f"student.model={world / name}")
    runs = [
        prepare_run(*given, teachers=(place,), directory=folder)
        for folder, place in (("shared", world / name), ("apart", tmp_path / "copy"))
    ]
    held = []
    for run in runs:
        stage = run.build(run.last)
        teacher = dict(stage.live(0).model.named_parameters())
        student = stage.student.model.named_parameters()
        plain = {key.replace(".base_layer", ""): weight for key, weight in student}
        held.append([weight for key, weight in teacher.items() if plain[key] is weight])
        own = [weight for key, weight in plain.items() if not any(weight is w for w in held[-1])]
        assert all(weight.requires_grad for weight in own) == (run is runs[0])
        assert not any(weight.requires_grad for weight in held[-1])
        run.execute()
    assert runs[0].last.shares_weights
    assert len(held[0]) >= len(teacher) - 2
    assert not held[1]
    assert _log(runs[0]) == _log(runs[1])
    students = [load_file(run.student / "model.safetensors") for run in runs]
    assert all(torch.equal(weight, students[1][key]) for key, weight in students[0].items())


def test_plan_counts_shared_weights_once(prepare_run, world):
    given = ("method=soft", *LORA, f"student.model={world / 'lm-decoder'}", *CAUSAL[:1])
    whole = prepare_run(*given, teachers=("lm-decoder",))
    apart = prepare_run(*given, "teacher.dtype=bf16", teachers=("lm-decoder",))
    assert not apart.last.shares_weights
    found, other = (simulate(_planned(run), run.registry).memory for run in (whole, apart))
    adapters = 4 * count_trained(whole.last, whole.registry).weights
    assert adapters <= found["student weights"] < 1.5 * adapters < other["student weights"]


@pytest.mark.parametrize(
    "setting", ["teacher.placement=offload", "parallel.zero=3", "teacher.dtype=bf16"]
)
def test_weights_that_lie_elsewhere_are_not_shared(prepare_run, world, setting):
    spec = prepare_run("method=soft", *LORA, f"student.model={world / 'teacher'}", setting).last
    assert not spec.shares_weights
