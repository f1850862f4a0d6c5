"""Text whose tokens are drawn from a mixture of the student's and the teacher's distributions."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from gkd_core.config.schema import RolloutConfig
from gkd_core.contract.rollout import Prompts, RolloutEngine, Written
from gkd_core.contract.schedule import ALWAYS_1
from gkd_core.contract.step import Step
from gkd_core.errors import PluginError
from gkd_core.hooks.extraction import Extractor
from gkd_core.losses.importance import importance
from gkd_core.models.sites import find_sites
from gkd_core.rollouts.decoding import CoWriter
from gkd_core.rollouts.engines.generate import Generate
from gkd_core.rollouts.replay_buffer import KeptText, ReplayBuffer
from gkd_core.rollouts.rollouts import Rollouts
from gkd_core.rollouts.rows import RowText, RowWriter
from gkd_core.rollouts.writer import Writer
from gkd_core.testing.tiny import PAD, VOCABULARY, tiny_batch, tiny_model

NEW = 6


def _model(seed):
    """A decoder whose distributions are far from uniform, in fp64."""
    model = tiny_model("causal-lm", layers=2, seed=seed).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


def _extractor(model):
    return Extractor(model, find_sites(model))


def _writer(student, teacher=None, share=0.2):
    co_writer = None if teacher is None else CoWriter(_extractor(teacher), share)
    return Writer("student", _extractor(student), torch.device("cpu"), nullcontext, co_writer)


def _prompts(rows, seeds, new=NEW, ends=()):
    return Prompts(rows, new, ends, PAD, seeds)


def _written(writer, prompts, **options):
    with writer.writing(0):
        return Generate(Generate.Config(**options)).write(prompts, writer)


@torch.no_grad()
def _log_probs(model, ids):
    """Log-probability of every word after each token of a row."""
    return model(input_ids=ids.unsqueeze(0)).logits[0].log_softmax(-1)


def _mixed(student, teacher, ids, share):
    """(1 - share) q + share p after each token of a row, in logarithms."""
    q, p = (_log_probs(model, ids).exp() for model in (student, teacher))
    return ((1 - share) * q + share * p).log()


DRAWS = 8_000


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_the_first_token_is_drawn_from_the_mixture(share):
    student, teacher, prompt = _model(1), _model(2), torch.tensor([5, 9, 7])
    expected = _mixed(student, teacher, prompt, share)[-1].exp()
    alone = _log_probs(student, prompt)[-1].exp()
    prompts = _prompts([prompt] * DRAWS, range(DRAWS), new=1)
    drawn = torch.tensor(_written(_writer(student, teacher, share), prompts).tokens).flatten()
    shares = torch.bincount(drawn, minlength=VOCABULARY) / DRAWS
    deviation = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((shares - expected).abs() <= 5 * deviation + 1e-12).all()
    assert ((shares - alone).abs() > 10 * deviation).any(), "the student alone draws otherwise"


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 9}, {"temperature": 0}])
def test_with_itself_a_student_writes_what_it_writes_alone(options):
    student = _model(1)
    rows = [torch.tensor(row) for row in ([5, 9, 7], [4], [6, 8, 10, 12, 9])]
    alone = _written(_writer(student), _prompts(rows, (3, 4, 5)), **options)
    together = _written(_writer(student, student), _prompts(rows, (3, 4, 5)), **options)
    assert together.tokens == alone.tokens


def test_a_row_ends_at_the_token_at_which_it_ends_alone():
    student, rows = _model(1), [torch.tensor([5, 9, 7]), torch.tensor([4])]
    whole = _written(_writer(student, _model(2)), _prompts(rows, (3, 4))).tokens
    end = whole[0][1]
    cut = _written(_writer(student, _model(2)), _prompts(rows, (3, 4), ends=(end,))).tokens
    for text, ended in zip(whole, cut, strict=True):
        length = text.index(end) + 1 if end in text else NEW
        assert ended[:length] == text[:length]


def _tokenizer():
    words = {f"w{index}": index for index in range(VOCABULARY)}
    model = Tokenizer(WordLevel(words, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token=f"w{PAD}")


def _rollouts(student, teacher, engine=None, **settings):
    config = RolloutConfig(
        engine="generate", student=ALWAYS_1, prompt_tokens=3, max_new_tokens=NEW, **settings
    )
    writers = {"student": _writer(student, teacher, config.mixture)}
    rows = RowWriter(_tokenizer(), PAD)
    return Rollouts(engine or Generate(), config, writers, rows, (), seed=0)


def _step():
    return Step(0, 2, 0, "test", torch.default_generator)


def test_a_batch_says_how_likely_each_label_was_drawn_and_its_weight():
    student, teacher, share = _model(1), _model(2), 0.2
    (batch,) = _rollouts(student, teacher, mixture=share).apply([tiny_batch("causal-lm")], _step())
    assert batch.targets.count == NEW * len(batch)
    assert not batch.log_drawn[~batch.targets.mask].any()
    surprise = torch.zeros_like(batch.log_drawn)
    for row, own in enumerate(batch.mask):
        ids, learned = batch.inputs["input_ids"][row][own], batch.targets.mask[row][own]
        labels = batch.labels[row][own][learned].unsqueeze(1)
        expected = _mixed(student, teacher, ids, share)[learned].gather(1, labels).squeeze(1)
        found = batch.log_drawn[row][own][learned]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        own_log = _log_probs(student, ids)[learned].gather(1, labels).squeeze(1)
        surprise[row, batch.targets.mask[row]] = -own_log
    weights = importance(surprise, batch)
    expected = (-surprise - batch.log_drawn).exp()
    torch.testing.assert_close(weights[batch.targets.mask], expected[batch.targets.mask])
    assert weights.max() <= 1 / (1 - share) + 1e-9
    assert weights.min() < 0.9, "some tokens were the teacher's idea"


def test_without_a_mixture_the_weights_are_1():
    (batch,) = _rollouts(_model(1), None).apply([tiny_batch("causal-lm")], _step())
    assert batch.log_drawn is None
    assert (importance(torch.rand(batch.labels.shape), batch) == 1).all()


def test_words_that_only_the_student_has_are_drawn_from_its_share():
    student, prompt = _model(1), torch.tensor([5, 9, 7])
    teacher = _model(2)
    teacher.resize_token_embeddings(40)
    with torch.no_grad():
        writer = _writer(student, teacher, 0.5)
        logits = writer.start(_prompts([prompt], [0])).logits[0]
    q = _log_probs(student, prompt)[-1]
    torch.testing.assert_close(logits[40:], q[40:] + torch.tensor(0.5).double().log())
    torch.testing.assert_close(logits.exp().sum().item(), 1.0)


def test_kept_texts_keep_how_likely_they_were():
    replay = ReplayBuffer(RolloutConfig(engine="generate", replay=3))
    drawn = torch.tensor([-0.1, -1 / 3], dtype=torch.float64)
    replay.add(KeptText(RowText(torch.tensor([1]), torch.tensor([2, 3]), drawn), 4))
    replay.add(KeptText(RowText(torch.tensor([1]), torch.tensor([2])), 5))
    again = ReplayBuffer(RolloutConfig(engine="generate", replay=3))
    again.load_state_dict(json.loads(json.dumps(replay.state_dict())))
    assert torch.equal(again.texts[0].text.log_drawn, drawn)
    assert again.texts[1].text.log_drawn is None
    assert [kept.step for kept in again.texts] == [4, 5]


class Silent(RolloutEngine):
    """Mixes, as it says, and keeps the log-probabilities to itself."""

    name = "silent"
    mixes = True

    def write(self, prompts, writer):
        return Written([[5, 6] for _ in prompts.rows])


def test_an_engine_that_does_not_say_how_likely_its_tokens_were_is_named():
    rollouts = _rollouts(_model(1), _model(2), Silent(), mixture=0.2)
    with pytest.raises(PluginError, match="'silent' did not return the log-probability of each"):
        rollouts.apply([tiny_batch("causal-lm")], _step())
