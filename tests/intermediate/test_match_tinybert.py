"""TinyBERT's losses (Jiao et al., 2020, section 3.1) in words, against formulae written by hand.

The description is the one of the how-to guide; the tensors come from the models' own modules.
"""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from gkd_core.api import ModelInfo, Models, Step
from gkd_core.config.formats import READERS
from gkd_core.contract.schedule import Schedule
from gkd_core.hooks.extraction import Extractor
from gkd_core.models.sites import find_sites
from gkd_core.objective.objective import Objective
from gkd_core.objective.passes import ActiveMethod, run_passes
from gkd_core.plugins import registry
from gkd_core.testing import tiny_batch

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "describe-a-method.md"
HEADS = 4


def bert(layers, width, seed):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=64,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
        initializer_range=0.2,
    )
    return BertForSequenceClassification(config).double().eval()


@pytest.fixture
def models():
    return bert(2, 16, seed=1), bert(6, 32, seed=2)


@pytest.fixture
def batch():
    return tiny_batch("classification")


@pytest.fixture
def terms_of(models, batch):
    """Terms, total and projections of a method, computed as in a run."""

    def _terms_of(name, options, weights=None):
        infos = [
            ModelInfo.read(side, model.config, 3)
            for side, model in zip(("student", "teacher"), models, strict=True)
        ]
        method = registry().method(name)
        method = method(method.Config(**options))
        member = ActiveMethod(
            name, Schedule.parse(1.0), (method,), (Models(*infos),), torch.Generator()
        )
        objective = Objective([member])
        objective.build_modules(seed=0)
        objective.modules.double()
        if weights is not None:
            method.modules.load_state_dict(weights)
        student, teacher = (Extractor(model, find_sites(model)) for model in models)
        step = Step(0, 10, 0, "test", torch.Generator())
        plan = objective.plan(step)
        captured = run_passes(plan, student, [teacher], batch, step)
        terms = objective.terms(captured, batch, step, plan)
        total = objective.total(terms, batch.counts(), step)
        means = {term.partition(".")[2]: value.mean() for term, value in terms.items()}
        return means, total, method.modules

    return _terms_of


def hidden_states(model, batch):
    return model(**batch.inputs, output_hidden_states=True).hidden_states


def scores(model, batch, layer):
    """Scores of block `layer`, counted from 1, `[B, A, S, S]`, masked nowhere."""
    attention = model.bert.encoder.layer[layer - 1].attention.self
    before = hidden_states(model, batch)[layer - 1]
    query, key = (
        linear(before).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for linear in (attention.query, attention.key)
    )
    return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


def positions(batch):
    """`(row, position, length of the row)` of every position that is not padding."""
    lengths = batch.mask.sum(1).tolist()
    return [(row, p, length) for row, length in enumerate(lengths) for p in range(length)]


def mean_squared(project, student, teacher, batch):
    """Mean over the tokens and the width of (W s - t)^2."""
    values = [
        (project(student[row, p]) - teacher[row, p]).square().mean()
        for row, p, _ in positions(batch)
    ]
    return torch.stack(values).mean()


def scores_squared(student, teacher, batch):
    """Mean over the tokens, the heads and the keys that are not padding of (a_s - a_t)^2."""
    values = [
        (student[row, :, p, :n] - teacher[row, :, p, :n]).square().mean()
        for row, p, n in positions(batch)
    ]
    return torch.stack(values).mean()


def gradient(total, model, modules):
    parameters = [*model.parameters(), *modules.parameters()]
    return torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)


def description(stage):
    """Return the options of `match` in a stage of the guide's `tinybert.toml`."""
    text = GUIDE.read_text().partition("# tinybert.toml")[2].partition("```")[0]
    tree, _ = READERS[".toml"](text, "tinybert.toml")
    return next(s["match"] for s in tree["stages"] if s["name"] == stage)


def test_the_first_stage_of_the_guide_is_the_layer_loss(models, batch, terms_of):
    student, teacher = models
    terms, total, modules = terms_of("match", description("layers"))
    learned, known = hidden_states(student, batch), hidden_states(teacher, batch)
    embedding = mean_squared(modules["embedding"], learned[0], known[0], batch)
    hidden, attention = 0, 0
    for s, t in ((1, 3), (2, 6)):
        hidden += mean_squared(modules["hidden"], learned[s], known[t], batch)
        pair = scores(student, batch, s), scores(teacher, batch, t)
        attention += scores_squared(*pair, batch)
    assert terms["embedding"].item() == pytest.approx(embedding.item(), abs=1e-9)
    assert terms["hidden"].item() == pytest.approx(hidden.item(), abs=1e-9)
    assert terms["attention"].item() == pytest.approx(attention.item(), abs=1e-9)
    expected = embedding + hidden + attention
    assert total.item() == pytest.approx(expected.item(), abs=1e-9)
    slopes = (gradient(loss, student, modules) for loss in (total, expected))
    assert all(torch.allclose(f, e, atol=1e-9) for f, e in zip(*slopes, strict=True))


def test_the_last_stage_of_the_guide_is_the_soft_cross_entropy(models, batch, terms_of):
    terms, _, modules = terms_of("match", description("prediction"))
    learned, known = (model(**batch.inputs).logits for model in models)
    expected = -(known.softmax(-1) * learned.log_softmax(-1)).sum(-1).mean()
    assert terms["logits-ce"].item() == pytest.approx(expected.item(), abs=1e-9)
    assert not modules


def test_the_recipe_has_one_projection_for_the_embedding_and_all_layers(models, batch, terms_of):
    student, teacher = models
    path = registry().recipes["match"]
    tree, _ = READERS[".toml"](path.read_text(), "match.toml")
    terms, _, modules = terms_of("match", tree["stages"][0]["match"])
    assert list(modules) == ["hidden-mse"]
    learned, known = hidden_states(student, batch), hidden_states(teacher, batch)
    expected = sum(
        mean_squared(modules["hidden-mse"], learned[s], known[t], batch)
        for s, t in ((0, 0), (1, 3), (2, 6))
    )
    assert terms["hidden-mse"].item() == pytest.approx(expected.item(), abs=1e-9)


def test_the_guide_says_what_the_method_tinybert_does(models, terms_of):
    terms, total, modules = terms_of("match", description("layers"))
    written, whole, own = terms_of("tinybert", {}, modules.state_dict())
    assert written.keys() == terms.keys()
    assert all(written[name].item() == pytest.approx(terms[name].item()) for name in terms)
    pairs = zip(gradient(total, models[0], modules), gradient(whole, models[0], own), strict=True)
    assert all(torch.allclose(found, expected, atol=1e-12) for found, expected in pairs)
