"""How likely the tokens of the student's own text were drawn, and what training makes of them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gkd_core.config.schema import RolloutConfig
from gkd_core.contract.rollout import Prompts
from gkd_core.contract.schedule import ALWAYS_1
from gkd_core.contract.step import Step
from gkd_core.errors import PluginError
from gkd_core.hooks.extraction import Extractor
from gkd_core.losses.importance import importance
from gkd_core.models.sites import find_sites
from gkd_core.rollouts.engines.generate import Generate
from gkd_core.rollouts.rollouts import Rollouts
from gkd_core.rollouts.rows import RowWriter
from gkd_core.rollouts.writer import Writer
from gkd_core.testing.tiny import PAD, VOCABULARY, tiny_batch, tiny_model, word_tokenizer

P = torch.tensor([0.5, 0.25, 0.15, 0.1])
NEW, LIMIT = 6, 1e-3


def _same_at_every_place():
    """A decoder whose next token has the distribution P, whatever it has read."""
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    words = {"vocab_size": len(P), "bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(**shape, **words)).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.eye(8)[0])
        model.lm_head.weight[:, 0] = P.log()
    return model


def _writer(model):
    return Writer("student", Extractor(model, find_sites(model)), torch.device("cpu"), nullcontext)


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, P),
        ({"temperature": 0.5}, P.square() / 0.345),
        ({"top_k": 2}, torch.tensor([2 / 3, 1 / 3, 0, 0])),
        ({"top_p": 0.8}, torch.tensor([5 / 9, 2.5 / 9, 1.5 / 9, 0])),
        ({"temperature": 0}, torch.tensor([1.0, 0, 0, 0])),
    ],
)
def test_generate_says_with_which_probability_it_drew_each_token(options, shares):
    prompts = Prompts([torch.tensor([1, 2])] * 20, 5, (), 0, range(20))
    writer = _writer(_same_at_every_place())
    with writer.writing(0):
        written = Generate(Generate.Config(**options)).write(prompts, writer)
    tokens = torch.tensor(written.tokens)
    assert set(tokens.flatten().tolist()) == set(shares.nonzero().flatten().tolist())
    expected = shares.log()[tokens]
    torch.testing.assert_close(torch.tensor(written.log_probs), expected, rtol=0, atol=1e-6)


def _student():
    """A decoder whose distributions are far from uniform, in fp64."""
    model = tiny_model("causal-lm", layers=2, seed=1)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(5)
    return model


@pytest.fixture
def student():
    return _student()


def _rollouts(model, engine=None, limit=LIMIT, **settings):
    config = RolloutConfig(
        engine="generate", student=ALWAYS_1, prompt_tokens=3, max_new_tokens=NEW, **settings
    )
    rows = RowWriter(word_tokenizer(f"w{n}" for n in range(VOCABULARY)), PAD)
    return Rollouts(engine or Generate(), config, {"student": _writer(model)}, rows, (), 0, limit)


def _step(index=0):
    return Step(index, 2, 0, "test", torch.default_generator)


@torch.no_grad()
def _log_probs(model, batch):
    """Log-probability of each label, 0 where there is none."""
    found = model(**batch.inputs).logits.log_softmax(-1)
    labels = batch.labels.clamp(min=0).unsqueeze(-1)
    return found.gather(-1, labels).squeeze(-1).masked_fill(~batch.targets.mask, 0)


def test_the_first_text_is_compared_with_a_pass_of_training(student):
    rollouts = _rollouts(student)
    (batch,) = rollouts.apply([tiny_batch("causal-lm")], _step())
    expected = _log_probs(student, batch)
    torch.testing.assert_close(batch.log_drawn, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        importance(-expected, batch), torch.ones_like(expected), rtol=0, atol=1e-5
    )
    assert 0 < rollouts.tally.read()["rollout/mismatch"] < 1e-5, "generate has its logits in fp32"
    rollouts.apply([tiny_batch("causal-lm")], _step(1))
    assert "rollout/mismatch" not in rollouts.tally.read()


def test_the_comparison_leaves_generators_and_mode_as_they_are(student):
    student.train()
    state = torch.get_rng_state()
    _rollouts(student).apply([tiny_batch("causal-lm")], _step())
    assert torch.equal(torch.get_rng_state(), state)
    assert student.training


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"top_k": 3}, {"temperature": 0}])
def test_text_from_another_distribution_ends_a_run(student, options):
    rollouts = _rollouts(student, Generate(Generate.Config(**options)))
    with pytest.raises(
        PluginError, match=r"'generate' drew .* at most 0.001\), so the text is not"
    ):
        rollouts.apply([tiny_batch("causal-lm")], _step())


class Quiet(Generate):
    """Does not say how likely its tokens were."""

    name = "quiet"

    def write(self, prompts, writer):
        return replace(super().write(prompts, writer), log_probs=None)


def test_text_of_an_engine_that_does_not_say_is_taken_for_the_students(student):
    rollouts = _rollouts(student, Quiet())
    (batch,) = rollouts.apply([tiny_batch("causal-lm")], _step())
    assert batch.log_drawn is None
    assert "rollout/mismatch" not in rollouts.tally.read()


def test_where_no_method_asks_nothing_is_kept_or_compared(student):
    rollouts = _rollouts(student, Generate(Generate.Config(temperature=0.7)), limit=None)
    (batch,) = rollouts.apply([tiny_batch("causal-lm")], _step())
    assert batch.log_drawn is None
    assert rollouts.state_dict() == {}


def test_kept_texts_have_the_probabilities_of_the_weights_that_wrote_them(student):
    """Also in a resumed run, which compares the first text no second time."""
    rollouts = _rollouts(student, replay=4)
    rollouts.apply([tiny_batch("causal-lm")], _step())
    state = rollouts.state_dict()
    with torch.no_grad():
        student.get_output_embeddings().weight.mul_(0.5)
    resumed = _rollouts(student, replay=4)
    resumed.load_state_dict(state)
    (batch,) = resumed.apply([tiny_batch("causal-lm")], _step(1))
    numbers = resumed.tally.read()
    assert "rollout/mismatch" not in numbers
    old, new = (
        ((_log_probs(model, batch) - batch.log_drawn).abs() < 1e-5).all(1)
        for model in (_student(), student)
    )
    assert old.double().mean() == numbers["rollout/stale"] > 0
    assert (old ^ new).all()


def test_texts_that_an_earlier_version_kept_have_no_weights(student):
    rollouts = _rollouts(student, replay=4)
    rollouts.apply([tiny_batch("causal-lm")], _step())
    state = rollouts.state_dict()
    state["replay"]["texts"] = [
        [prompt, written, step] for prompt, written, _, step in state["replay"]["texts"]
    ]
    resumed = _rollouts(student, replay=4)
    resumed.load_state_dict({name: state[name] for name in ("engine", "replay")})
    (batch,) = resumed.apply([tiny_batch("causal-lm")], Step(9, 10, 0, "test", None))
    assert batch.log_drawn is None
