"""TinyBERT's losses by hand, against the same losses described in words, and its three stages."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from gkd_core.api import MethodError, ModelInfo, Models
from gkd_core.config.formats import READERS
from gkd_core.config.resolve import resolve
from gkd_core.losses import Relation
from gkd_core.plugins import registry
from gkd_core.runs.run import prepare_run
from gkd_core.testing import check_method
from gkd_core.testing.tiny import tiny_model
from gkd_methods_intermediate.tinybert import TinyBERT

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "describe-a-method.md"
ONE = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
OTHER = torch.tensor([[[1.0, 4.0]]], dtype=torch.float64)


def identity(width=2):
    """A projection that changes nothing."""
    linear = torch.nn.Linear(width, width).double()
    with torch.no_grad():
        linear.weight.copy_(torch.eye(width))
        linear.bias.zero_()
    return linear


def attend(*heads, mask=None):
    """A relation with one query in each head, which has these scores."""
    scores = torch.tensor(heads, dtype=torch.float64)
    count, keys = scores.shape
    query = scores.view(1, count, 1, keys).expand(1, count, keys, keys)
    key = torch.eye(keys, dtype=torch.float64).expand(1, count, keys, keys)
    return Relation(query, key, mask, False, 1.0)


@pytest.fixture
def tinybert(terms):
    """Terms of a student of one block; `learned` and `known` replace what the models give."""

    def _tinybert(learned=(), known=(), mask=None, modules=None, **options):
        same = {"embedding": ONE, "hidden[1]": ONE, "attention[1]": attend([0.0])}
        chosen = modules or {"embedding": identity(), "hidden": identity()}
        sides = same | dict(learned), same | dict(known)
        method = TinyBERT(TinyBERT.Config(**options))
        found = terms(method, *sides, modules=chosen, layers=(1, 1), mask=mask)
        return {name: value.item() for name, value in found.items()}

    return _tinybert


@pytest.mark.parametrize(("path", "name"), [("embedding", "embedding"), ("hidden[1]", "hidden")])
def test_states_are_compared_by_their_mean_squared_error(tinybert, path, name):
    found = tinybert(known={path: OTHER})
    assert found == {"embedding": 0, "hidden": 0, "attention": 0} | {name: 2}


def test_scores_are_compared_before_softmax(tinybert):
    moved = attend([0.0, 1.0]), attend([3.0, 4.0])
    assert torch.allclose(moved[0].probs(), moved[1].probs())
    states = {"embedding": ONE.expand(1, 2, 2), "hidden[1]": ONE.expand(1, 2, 2)}
    found = tinybert({"attention[1]": moved[0]} | states, {"attention[1]": moved[1]} | states)
    assert found["attention"] == pytest.approx(9)


def test_masked_scores_neither_differ_nor_count(tinybert):
    mask = torch.tensor([[1, 1, 0]])
    states = dict.fromkeys(("embedding", "hidden[1]"), ONE.expand(1, 3, 2))
    additive = torch.zeros(1, 1, 3, 3, dtype=torch.float64).index_fill_(-1, torch.tensor(2), -65504)
    for hidden in (mask.bool()[:, None, None], additive):
        found = tinybert(
            {"attention[1]": attend([1.0, 2.0, 7.0], mask=hidden)} | states,
            {"attention[1]": attend([1.0, 4.0, -5.0], mask=hidden)} | states,
            mask=mask,
        )
        # (0 + 4) / 2 keys; over all three keys it would be 4 / 3.
        assert found["attention"] == pytest.approx(2)


def test_heads_are_averaged_and_told_apart(tinybert):
    def attention(learned, known):
        learned, known = attend(*learned), attend(*known)
        return tinybert({"attention[1]": learned}, {"attention[1]": known})["attention"]

    student, teacher = ([1.0], [5.0]), ([2.0], [8.0])
    assert attention(student, teacher) == pytest.approx((1 + 9) / 2)
    assert attention(student[::-1], teacher[::-1]) == pytest.approx(5)
    assert attention(student, teacher[::-1]) == pytest.approx((49 + 9) / 2)


def test_terms_have_weights(tinybert):
    known = {"embedding": OTHER, "hidden[1]": OTHER, "attention[1]": attend([3.0])}
    weights = {"embedding_weight": 0.5, "hidden_weight": 3, "attention_weight": "linear(2 -> 0)"}
    assert tinybert(known=known, **weights) == {"embedding": 1, "hidden": 6, "attention": 18}


def test_equal_models_and_an_identity_as_projection_leave_nothing(trial):
    for kind in ("classification", "causal-lm"):
        same = trial("tinybert", kind, models=[tiny_model(kind, 3, seed=1) for _ in range(2)])
        for name in ("embedding", "hidden"):
            same.method.modules[name] = identity(32)
        assert all(value.item() < 1e-20 for value in same.terms().values())


@pytest.mark.parametrize(
    ("projection", "expected"),
    [("separate", {"embedding", "hidden"}), ("shared", {"shared"})],
)
def test_projections_are_those_of_the_paper_or_of_the_released_code(trial, projection, expected):
    tried = trial("tinybert", projection=projection)
    assert set(tried.method.modules) == expected
    tried.terms()["embedding"].backward()
    moved = {
        name for name, module in tried.method.modules.items() if module.weight.grad is not None
    }
    assert moved == ({"embedding"} if projection == "separate" else {"shared"})


def bert(layers, width, seed):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=64,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
        initializer_range=0.2,
    )
    return BertForSequenceClassification(config).double().eval()


def llama(layers, width, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2 if width == 16 else 4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).double().eval()


FAMILIES = {"classification": bert, "causal-lm": llama}


def described(source):
    """Options of `match` for the layers: two projections in the guide, one in the recipe."""
    text = registry().recipes["match"].read_text()
    if source == "guide":
        text = GUIDE.read_text().partition("# tinybert.toml")[2].partition("```")[0]
    tree, _ = READERS[".toml"](text, f"{source}.toml")
    return next(stage["match"] for stage in tree["stages"] if stage["name"] == "layers")


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    ("projection", "source", "names"),
    [
        ("separate", "guide", {"embedding": "embedding", "hidden": "hidden"}),
        ("shared", "recipe", {"shared": "hidden-mse"}),
    ],
)
def test_it_equals_its_description_in_words(trial, kind, projection, source, names):
    family = FAMILIES[kind]
    both = family(2, 16, seed=1), family(6, 32, seed=2)
    written = trial("tinybert", kind, models=both, projection=projection)
    said = trial("match", kind, models=both, **described(source))
    assert set(said.method.modules) == set(names.values())
    for mine, theirs in names.items():
        said.method.modules[theirs].load_state_dict(written.method.modules[mine].state_dict())

    def total_and_gradient(tried):
        total = sum(tried.terms().values())
        parameters = [*both[0].parameters(), *tried.method.modules.parameters()]
        slopes = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        return total.item(), torch.cat([slope.flatten() for slope in slopes])

    (found, slope), (expected, wanted) = total_and_gradient(written), total_and_gradient(said)
    assert found == pytest.approx(expected, rel=1e-6)
    assert (slope - wanted).abs().max() < 1e-6 * wanted.abs().max()


def info(name, layers, heads=4, width=32):
    return ModelInfo(name, "bert", layers, width, heads, heads, width // heads, 64, 100, 2, 64)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (info("student", 2, heads=2), "student has 2 attention heads and the teacher 'base' 4"),
        (info("student", 8), "student has 8 blocks and the teacher 4"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(student, message):
    with pytest.raises(MethodError, match=message):
        TinyBERT().check(Models(student, info("base", 4)))
    TinyBERT().check(Models(info("student", 2, width=16), info("base", 4)))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options", [{"projection": "shared"}, {"layers": "top"}, {"layers": [[1, 3], [2, 4]]}]
)
def test_other_options_keep_what_every_method_must(options, kinds):
    check_method(TinyBERT, options, kinds)


@pytest.fixture
def stages(world):
    """The stages of the recipe on the small world."""
    given = [
        f"task.train={world / 'train.jsonl'}",
        f"teacher.model={world / 'teacher'}",
        f"stages.general.teacher.model={world / 'lm-teacher'}",
        "task.max_length=32",
        "baseline=false",
    ]
    return prepare_run(resolve(registry(), recipe="tinybert", settings=given), registry())


def test_the_recipe_has_the_three_steps_of_the_paper(stages):
    found = [(stage.name, stage.kind.name, str(stage.expression)) for stage in stages]
    assert found == [
        ("general", "masked-lm", "tinybert"),
        ("task-intermediate", "classification", "tinybert"),
        ("task-prediction", "classification", "soft"),
    ]
    assert [stage.config.training.keep_best for stage in stages] == [False, False, True]
    assert [stage.config.training.epochs for stage in stages] == [3, 10, 3]


def test_the_last_step_is_the_soft_cross_entropy_without_any_projection(stages):
    ((soft,),) = (member.methods for member in stages[-1].members)
    assert (soft.config.divergence, soft.config.temperature.at(0, 1)) == ("soft-cross-entropy", 1)
    assert not soft.build_modules(stages[-1].members[0].models[0])


@pytest.mark.exhaustive
def test_a_run_of_the_recipe_ends(invoke, settings, world, tmp_path):
    output = tmp_path / "run"
    given = [*settings[4:], "--set", f"stages.general.teacher.model={world / 'lm-teacher'}"]
    given += ["--teacher", world / "teacher", "--set", "training.steps=2"]
    done = invoke("run", "--recipe", "tinybert", *given, "--output", output)
    assert done.code == 0, done.err
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = {
        (entry["stage"], name)
        for entry in logged
        for name in entry
        if name.startswith("loss/") and name != "loss/total"
    }
    names = [f"loss/tinybert.{term}" for term in ("attention", "embedding", "hidden")]
    assert losses == {
        *(("general", name) for name in names),
        *(("task-intermediate", name) for name in names),
        ("task-prediction", "loss/soft"),
    }
    stored, known = (
        load_file(folder / "model.safetensors")
        for folder in (output / "student", world / "teacher")
    )
    assert set(stored) < set(known)  # no projection
    exported = json.loads((output / "student" / "config.json").read_text())
    assert exported["architectures"] == ["BertForSequenceClassification"]


@pytest.mark.exhaustive
def test_a_narrower_student_is_trained_from_the_command_line(invoke, settings, tmp_path):
    shape = ("student.hidden_size=16", "student.heads=4", "training.steps=2")
    given = [part for value in shape for part in ("--set", value)]
    output = tmp_path / "run"
    done = invoke("run", "--method", "tinybert+soft", *settings, *given, "--output", output)
    assert done.code == 0, done.err
    fewer = ("--set", "student.heads=2", "--set", "student.init=random")
    refused = invoke("run", "--method", "tinybert", *settings, *fewer)
    assert refused.code == 2
    assert "the student has 2 attention heads and the teacher 'teacher' 4" in " ".join(
        refused.err.split()
    )
