"""MobileBERT: which layer is learnt when, what is at rest, and its bottlenecked models."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from tests.grids import first_of
from transformers import MobileBertConfig, MobileBertForMaskedLM

from gkd_core.api import Models, Step
from gkd_core.contract.model_info import ModelInfo
from gkd_core.losses import Relation
from gkd_core.testing import check_method
from gkd_core.testing.tiny import PAD, VOCABULARY, tiny_model
from gkd_methods_intermediate.mobilebert import MobileBERT

TEACHER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "embedding_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "initializer_range": 0.2,
    "attention_probs_dropout_prob": 0.0,
    "intra_bottleneck_size": 64,
    "intermediate_size": 128,
    "num_feedforward_networks": 1,
    "hidden_act": "gelu",
    "normalization_type": "layer_norm",
}
"""An IB-BERT, inverted bottlenecks, 3 blocks."""
STUDENT = TEACHER | {
    "intra_bottleneck_size": 16,
    "intermediate_size": 32,
    "num_feedforward_networks": 4,
    "hidden_act": "relu",
    "normalization_type": "no_norm",
}
"""A MobileBERT, bottlenecks, as deep."""


def bottlenecked():
    torch.manual_seed(0)
    models = (MobileBertForMaskedLM(MobileBertConfig(**shape)) for shape in (STUDENT, TEACHER))
    return tuple(model.double().eval() for model in models)


def step(index, total=10):
    return Step(index, total, 0, "test", torch.Generator())


def infos(layers):
    shape = (32, 4, 4, 8, 64, 64, 3, 64)
    return Models(*(ModelInfo(name, "bert", n, *shape) for name, n in layers.items()))


def rates(index, total=10, layers=(4, 8), **options):
    method = MobileBERT(MobileBERT.Config(**options))
    found = method.lr_factors(
        infos({"student": layers[0], "teacher": layers[1]}), step(index, total)
    )
    return [found.get(part, 1) for part in ("embedding", *range(1, layers[0] + 1), "head")]


def test_layers_are_unlocked_one_by_one_in_equal_parts():
    found = [rates(index, total=700, layers=(7, 7), below=0) for index in range(700)]
    newest = [row[1:-1].index(1) + 1 for row in found]
    assert newest == [1 + index // 100 for index in range(700)]


@pytest.mark.parametrize(
    ("index", "below", "expected"),
    [
        (0, 0.1, [0, 1, 0, 0, 0, 0]),
        (4, 0.1, [0, 0.1, 1, 0, 0, 0]),
        (9, 0.1, [0, 0.1, 0.1, 0.1, 1, 0]),
        (9, 0, [0, 0, 0, 0, 1, 0]),
    ],
)
def test_what_is_below_rests_and_what_is_above_is_frozen(index, below, expected):
    assert rates(index, below=below) == expected


def test_a_budget_in_steps_leaves_the_last_layer_for_the_rest():
    newest = [rates(index, budget=2, below=0)[1:-1].index(1) + 1 for index in range(10)]
    assert newest == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("budget", "steps", "said"),
    [
        (5, 15, ["mobilebert learns 4 layers for 5 steps each, and the stage has 15"]),
        (5, 16, []),
        ("even", 2, []),
    ],
)
def test_a_stage_that_ends_before_the_last_layer_says_so(budget, steps, said):
    method, lines = MobileBERT(MobileBERT.Config(budget=budget)), []
    method.models = infos({"student": 4, "teacher": 8})
    method.on_stage_start(SimpleNamespace(total_steps=steps, say=lines.append))
    assert [line.partition(":")[0] for line in lines] == said


def test_blocks_that_have_no_teacher_layer_are_learnt_with_the_next_that_has_one():
    pairs = [[2, 4], [4, 8]]
    method = MobileBERT(MobileBERT.Config(layers=pairs))
    found = [
        method.lr_factors(infos({"student": 5, "teacher": 8}), step(index, 2)) for index in (0, 1)
    ]
    assert found[0] == {"embedding": 0, 3: 0, 4: 0, 5: 0, "head": 0}
    assert found[1] == {"embedding": 0, 1: 0.1, 2: 0.1, 5: 0, "head": 0}


def test_only_the_newest_layer_is_read(trial):
    one = trial("mobilebert", layers=(2, 4))
    assert one.captures(index=0) == (["attention[1]", "hidden[1]"], ["attention[2]", "hidden[2]"])
    assert one.captures(index=9) == (["attention[2]", "hidden[2]"], ["attention[4]", "hidden[4]"])


def relation(scores):
    """A relation of one head over two positions whose distribution is that of the logits."""
    query = torch.eye(2, dtype=torch.float64)[None, None]
    key = torch.tensor(scores, dtype=torch.float64).log().T.reshape(1, 1, 2, 2)
    return Relation(query, key, None, causal=False, scale=1.0)


def test_golden_numbers(terms):
    student = {
        "hidden[1]": torch.tensor([[[1.0, 2.0], [0.0, 0.0]]], dtype=torch.float64),
        "attention[1]": relation([[0.5, 0.5], [0.5, 0.5]]),
    }
    teacher = {
        "hidden[2]": torch.tensor([[[1.0, 4.0], [0.0, 0.0]]], dtype=torch.float64),
        "attention[2]": relation([[0.75, 0.25], [0.5, 0.5]]),
    }
    found = terms(MobileBERT(), student, teacher)
    # squared difference 4 in one of 2 x 2 entries; KL of (3/4, 1/4) from (1/2, 1/2), 0.130812, in
    # one of two rows
    assert float(found["hidden"]) == pytest.approx(1.0)
    assert float(found["attention"]) == pytest.approx(0.130812 / 2, abs=1e-6)


@pytest.mark.parametrize("index", [0, 4, 9])
def test_equal_models_cost_nothing_whatever_is_unlocked(trial, index):
    models = tuple(tiny_model("classification", 3, seed=1) for _ in range(2))
    for term in trial("mobilebert", models=models).terms(index=index).values():
        torch.testing.assert_close(term, torch.zeros_like(term), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("index", "newest"), [(0, 1), (4, 2), (9, 3)])
def test_no_gradient_reaches_what_is_above(trial, index, newest):
    one = trial("mobilebert", "causal-lm", layers=(3, 3))
    sum(one.terms(index=index).values()).backward()
    for number, block in enumerate(one.student.sites.blocks, start=1):
        slopes = [weight.grad for weight in block.parameters() if weight.grad is not None]
        reached = any(slope.abs().sum() > 0 for slope in slopes)
        assert reached == (number <= newest), number


def test_a_bottlenecked_student_learns_from_one_with_inverted_bottlenecks(trial):
    models = bottlenecked()
    one = trial("mobilebert", models=models)
    assert (one.models.student.head_size, one.models.teacher.head_size) == (4, 16)
    found = one.terms(index=5)
    learned, known = (
        model(**one.batch.inputs, output_hidden_states=True).hidden_states[2] for model in models
    )
    mask = one.batch.inputs["attention_mask"].bool()
    expected = (learned - known)[mask].square().mean()
    torch.testing.assert_close(found["hidden"], expected)
    for model in models:
        model.set_attn_implementation("eager")
    own, theirs = (
        model(**one.batch.inputs, output_attentions=True).attentions[1] for model in models
    )
    rows = torch.where(theirs > 0, theirs * (theirs / own).log(), 0).sum(-1).mean(1)
    torch.testing.assert_close(found["attention"], rows[mask].mean())


@pytest.mark.parametrize("options", first_of([{"below": 0, "budget": 1}, {}, {"layers": "last"}]))
def test_it_has_the_properties_every_method_must_have(options, kinds):
    check_method(MobileBERT, options, kinds)


@pytest.fixture
def ib_bert(world, tmp_path):
    """A masked language model with inverted bottlenecks that reads the words of the world."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "lm-teacher")
    torch.manual_seed(0)
    shape = TEACHER | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    folder = tmp_path / "ib-bert"
    MobileBertForMaskedLM(MobileBertConfig(**shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MOBILE = [
    *("student.layers=3", "student.ffn_size=32", "student.config.intra_bottleneck_size=16"),
    *("student.config.num_feedforward_networks=4", "student.config.hidden_act=relu"),
    "student.config.normalization_type=no_norm",
]


@pytest.mark.exhaustive
def test_the_recipe_makes_a_mobilebert_of_an_ib_bert(invoke, world, ib_bert, tmp_path):
    """The command that the documentation names."""
    output = tmp_path / "run"
    given = [part for setting in MOBILE for part in ("--set", setting)]
    done = invoke(
        *("run", "--recipe", "mobilebert", "--teacher", ib_bert, *given),
        *("--data", world / "train.jsonl", "--set", "task.max_length=32"),
        *("--set", "training.steps=2", "--output", output),
    )
    assert done.code == 0, done.err
    config = json.loads((output / "student" / "config.json").read_text())
    shape = ("model_type", "intra_bottleneck_size", "true_hidden_size", "num_feedforward_networks")
    assert [config[name] for name in shape] == ["mobilebert", 16, 16, 4]
    assert config["num_hidden_layers"] == 3


@pytest.mark.exhaustive
def test_a_resumed_run_goes_on_with_the_same_layer(interrupted, settings):
    whole, broken = interrupted("--method", "mobilebert", *settings, after=3)
    assert whole == broken


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["student.hidden_size=16", "student.heads=2"], "the student has 2 attention heads"),
        (["student.hidden_size=16", "student.heads=4"], "Set student.hidden_size=32 and make the"),
        (
            ["mobilebert.below=2"],
            "mobilebert.below must be a number of at least 0 and of at most 1",
        ),
        (["mobilebert.layers=[[1,9]]"], "teacher block 9, but the teacher has blocks 1 to 4"),
    ],
)
def test_what_cannot_work_is_refused_before_weights_are_read(
    invoke, settings, monkeypatch, values, message
):
    monkeypatch.setattr("gkd_core.runs.run.build_stage", lambda *_: pytest.fail("too late"))
    given = [part for value in values for part in ("--set", value)]
    done = invoke("run", "--method", "mobilebert", *settings, *given)
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_explain_shows_what_is_learnt_first(invoke, settings):
    done = invoke("explain", "mobilebert", *settings)
    assert done.code == 0, done.err
    assert "embedding, block 2, head: frozen, for mobilebert" in done.out
