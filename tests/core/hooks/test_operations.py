"""Operations change a forward pass at a place: every site, out of place, also when recomputed."""

import copy

import pytest
import torch

from gkd_core.contract.batch import Batch
from gkd_core.contract.step import Step
from gkd_core.errors import MethodError
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.forward import Change, checkpoint_contexts
from gkd_core.hooks.operations import Interchange, Perturb, Replace, Swap, When, chain
from gkd_core.hooks.paths import Capture
from gkd_core.models.sites import find_sites

FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen3", "glm", "glm4", "modernbert"]
LOGITS, POOLED = Capture("logits"), Capture("pooled")
INNER = [
    Capture(site, 2)
    for site in ("query", "key", "value", "scores", "probs", "context", "ffn", "hidden")
]
PLACES = [Capture("hidden", 0), *INNER, Capture("hidden", 3, normed=True), POOLED, LOGITS]


def extractor(model):
    return Extractor(model, find_sites(model))


def change(place, apply):
    return Change(place, apply)


def step_at(index, stage):
    return Step(index, 10, 0, stage, torch.Generator())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_place_can_be_written_and_what_follows_sees_it(build_model, build_batch, family):
    model = build_model(family, "classification")
    reader, batch = extractor(model), build_batch()
    for place in PLACES:
        captures = frozenset([place, LOGITS])
        stock = reader.run(captures, batch)
        moved = reader.run(captures, batch, [change(place, lambda tensor: 0.5 * tensor + 0.3)])
        same = reader.run(captures, batch, [change(place, lambda tensor: tensor.clone())])
        torch.testing.assert_close(moved[place], 0.5 * stock[place] + 0.3, msg=str(place))
        torch.testing.assert_close(same[LOGITS], stock[LOGITS], msg=str(place))
        assert not torch.allclose(moved[LOGITS], stock[LOGITS], atol=1e-5), place


@pytest.mark.parametrize("family", ["bert", "llama"])
@torch.no_grad()
def test_operations_are_out_of_place_and_act_in_order(build_model, build_batch, family):
    reader, place = extractor(build_model(family)), Capture("hidden", 1)
    following = Capture("hidden", 2)
    stock = reader.run(frozenset([place, following]), build_batch())
    before = stock[place].clone()
    changes = [change(place, lambda t: t + 1), change(place, lambda t: 2 * t)]
    changed = reader.run(frozenset([place, following]), build_batch(), changes)
    assert torch.equal(changed[place], 2 * (before + 1))
    assert torch.equal(stock[place], before)
    again = reader.run(frozenset([place, following]), build_batch())
    assert torch.equal(again[following], stock[following])


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@torch.no_grad()
def test_uniform_attention_written_in_gives_the_mean_of_the_values(
    build_model, build_batch, family
):
    model = build_model(family, "classification")
    batch = build_batch(rows=1)
    captures = frozenset([Capture("context", 1), Capture("value", 1), Capture("probs", 1)])
    changes = [change(Capture("probs", 1), lambda probs: torch.full_like(probs, 1 / 12))]
    features = extractor(model).run(captures, batch, changes)
    assert torch.equal(features[Capture("probs", 1)], torch.full((1, 4, 12, 12), 1 / 12))
    values = features[Capture("value", 1)].repeat_interleave(
        4 // features[Capture("value", 1)].shape[1], dim=1
    )
    mean = values.mean(2, keepdim=True).expand(-1, -1, 12, -1).transpose(1, 2).flatten(2)
    torch.testing.assert_close(features[Capture("context", 1)], mean)


@torch.no_grad()
def test_scores_written_low_hide_a_key_as_padding_does(build_model, build_batch):
    model = build_model("bert")
    batch = build_batch(rows=1)
    hidden = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].clone()}
    hidden["attention_mask"][:, -1] = 0

    def hide(scores):
        return scores.index_fill(-1, torch.tensor([11]), torch.finfo(scores.dtype).min)

    changes = [change(Capture("scores", layer), hide) for layer in (1, 2, 3)]
    captures = frozenset([Capture("hidden", 3)])
    changed = extractor(model).run(captures, batch, changes)[Capture("hidden", 3)]
    expected = extractor(model).run(captures, hidden)[Capture("hidden", 3)]
    torch.testing.assert_close(changed[:, :-1], expected[:, :-1])


def gradients_of(model, batch, changes):
    captures = frozenset([LOGITS, Capture("hidden", 2)])
    torch.manual_seed(5)
    reader = extractor(model)
    first = reader.run(captures, batch, changes)
    # A second pass, changed otherwise: each recomputation must repeat its own.
    second = reader.run(captures, batch, [change(Capture("hidden", 1), lambda t: -t)])
    loss = sum(f[c].square().mean() for f in (first, second) for c in sorted(captures))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("place", [p for p in PLACES if p.layer], ids=str)
def test_recomputed_blocks_are_changed_in_the_same_way(build_model, build_batch, family, place):
    options = {"bert": {"attention_probs_dropout_prob": 0.3}, "gpt2": {"attn_pdrop": 0.3}}
    model = build_model(family, "classification", **options.get(family, {})).train()
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": checkpoint_contexts}
    )
    batch = build_batch()

    def changes():
        context = Context(seed=7)
        return [
            change(place, Perturb("student.hidden[1]", std=0.3).bind(context)),
            change(place, lambda t: t * 0.5),
        ]

    loss, gradients = gradients_of(model, batch, changes())
    twin_loss, twin_gradients = gradients_of(twin, batch, changes())
    assert torch.equal(twin_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(twin_gradients[name], gradient, msg=name)


def test_gradient_flows_through_a_change_as_through_the_formula(build_model, build_batch):
    model = build_model("bert").double()
    factor = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(scale):
        changes = [change(Capture("hidden", 2), lambda t: t * scale)]
        features = extractor(model).run(frozenset([Capture("hidden", 3)]), build_batch(), changes)
        return features[Capture("hidden", 3)].pow(3).mean()

    (exact,) = torch.autograd.grad(loss(factor), factor)
    with torch.no_grad():
        numeric = (loss(factor + 1e-5) - loss(factor - 1e-5)) / 2e-5
    assert exact.item() == pytest.approx(numeric.item(), rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_autocast_does_not_disturb_a_change(build_model, build_batch, family):
    reader = extractor(build_model(family, "classification"))
    changes = [change(place, lambda t: t * 2) for place in INNER]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = reader.run(frozenset([LOGITS, *INNER]), build_batch(), changes)
    assert features[Capture("context", 2)].dtype == torch.bfloat16
    features[LOGITS].float().square().mean().backward()


class Context:
    """What an operation is told, as far as these tests need it."""

    def __init__(self, seed, rows=(0, 1, 2)):
        self.seed = seed
        self.batch = Batch({}, None, torch.tensor(rows))


@pytest.mark.parametrize("shape", [(3, 5, 8), (3, 2, 5, 8)])
def test_noise_of_a_row_depends_on_seed_and_row_alone(shape):
    noise = Perturb("student.embedding", std=2.0)
    zeros = torch.zeros(shape)
    added = noise.bind(Context(3))(zeros)
    assert torch.equal(added, noise.bind(Context(3))(zeros))
    assert not torch.equal(added, noise.bind(Context(4))(zeros))
    assert not torch.equal(added[0], added[1])
    assert torch.equal(noise.bind(Context(3, (2, 0)))(zeros[:2]), added[[2, 0]])
    longer = torch.zeros(*shape[:-2], 9, 8)
    assert torch.equal(noise.bind(Context(3))(longer)[..., :5, :], added)
    many = noise.bind(Context(0))(torch.zeros(3, 100, 100))
    assert many.std().item() == pytest.approx(2, abs=0.05)


@torch.no_grad()
def test_all_blocks_swapped_make_the_other_model(build_model, build_batch):
    model, other = build_model("bert", "classification"), build_model("bert", "classification")
    for block in find_sites(other).blocks:
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reader, foreign = extractor(model), find_sites(other)
    changes = [
        change(Capture("block", 1), foreign.blocks[0]),
        change(Capture("block", 2), chain(foreign.blocks[1:])),
        change(Capture("block", 3), lambda hidden, *args, **kwargs: hidden),
    ]
    batch = build_batch()
    expected = other(**batch).logits
    assert torch.equal(reader.run(frozenset([LOGITS]), batch, changes)[LOGITS], expected)
    assert torch.equal(reader.run(frozenset([LOGITS]), batch)[LOGITS], model(**batch).logits)
    reader.remove()
    assert all("forward" not in vars(module) for module in model.modules())


@torch.no_grad()
def test_model_called_directly_is_changed_only_inside_of_the_context(build_model, build_batch):
    model, batch = build_model("gpt2", "classification"), build_batch()
    reader, stock = extractor(model), model(**batch).logits
    with reader.changed([change(LOGITS, lambda t: t + 1)], batch):
        assert torch.equal(model(**batch).logits, stock + 1)
    assert torch.equal(model(**batch).logits, stock)


@pytest.mark.parametrize(
    ("when", "index", "stage", "training", "holds"),
    [
        (When(), 3, "a", True, True),
        (When(), 3, "a", False, False),
        (When(first=4), 3, "a", True, False),
        (When(first=3, last=5), 5, "a", True, True),
        (When(last=5), 6, "a", True, False),
        (When(stages=("b",)), 3, "a", True, False),
        (When(mode="eval"), 3, "a", True, False),
        (When(mode="eval"), 3, "a", False, True),
        (When(mode="always", stages=("a", "b")), 3, "a", False, True),
    ],
)
def test_an_operation_acts_when_all_its_conditions_hold(when, index, stage, training, holds):
    assert when.holds(step_at(index, stage), training) is holds


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Replace("student.attention[1]", abs), "'attention' is not a site"),
        (Replace("student.block[1]", abs), r"cannot replace student.block\[1\]"),
        (Swap("student.hidden[1]", "teacher.block[1]"), r"cannot swap student.hidden\[1\]"),
        (Replace("student.hidden[1]|cls", abs), "which are whole"),
    ],
)
def test_what_cannot_be_changed_is_refused(operation, message):
    with pytest.raises(MethodError, match=message):
        operation.path("mine")


def test_an_operation_says_what_it_does():
    operation = Interchange("student@b.hidden[1]", "student@a.hidden[1]", when=When(first=2))
    assert str(operation) == (
        "interchange student@b.hidden[1] with student@a.hidden[1] (from step 2)"
    )
    assert str(Swap("student.block[1]", "teacher.block[1,2]")) == (
        "swap student.block[1] for teacher.block[1,2]"
    )
