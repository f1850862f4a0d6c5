"""Teachers and rollouts with a real vLLM on the CPU: make test-server."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkd_core.api import Prompts
from gkd_core.errors import ConfigError
from gkd_core.teachers.server import TeacherServer
from gkd_core.teachers.server_ways import Echo, PromptLogProbs

pytestmark = pytest.mark.server

TEXTS = [[5, 6, 7, 8, 9, 10], [300, 301, 302]]
ENGINE = Path(__file__).parents[2] / "docs/examples/gkd-rollouts-vllm/gkd_rollouts_vllm.py"


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(url):
    return TeacherServer(url, "", "GKD_TEACHER_API_KEY", 120, 3)


@pytest.fixture
def ways(folder):
    return PromptLogProbs(), Echo(AutoTokenizer.from_pretrained(folder))


@torch.no_grad()
@pytest.mark.parametrize("number", [0, 1], ids=["prompt_logprobs", "echo"])
def test_the_likeliest_words_are_those_of_transformers(server, folder, ways, number):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert server.models() == ["served"]
    answers = server.likeliest("served", TEXTS, 64, ways[number])
    for ids, answer in zip(TEXTS, answers, strict=True):
        known = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert len(answer) == len(ids) - 1
        for place, (words, log_probs) in enumerate(answer):
            assert len(words) == 64
            torch.testing.assert_close(
                torch.tensor(log_probs), known[place, words], rtol=0, atol=5e-5
            )


def test_it_is_asked_for_prompt_logprobs_first(server, ways):
    assert server.first_way("served", TEXTS[0], ways) is ways[0]
    assert server.first_way("served", TEXTS[0], ways[::-1]) is ways[1]


@pytest.mark.parametrize("number", [0, 1], ids=["prompt_logprobs", "echo"])
def test_the_limit_of_the_server_is_named(server, ways, number):
    with pytest.raises(ConfigError, match="--max-logprobs"):
        server.likeliest("served", TEXTS, 65, ways[number])


def test_texts_of_parts_of_characters_are_not_taken_for_tokens(server, ways):
    texts = {"echo": True, "logprobs": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ways[1], "fields", lambda k: texts)
        with pytest.raises(ConfigError, match=r"names tokens by their text.*cannot be told"):
            server.likeliest("served", TEXTS, 2, ways[1])


def test_what_it_writes_greedily_is_what_transformers_writes(server, folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sampling = {"temperature": 0, "max_tokens": 8, "stop_token_ids": [1]}
    for ids in TEXTS:
        written, found = _greedy(model, ids, 8), server.write("served", ids, sampling)
        assert found.tokens == written
        # The server leaves out a character of which the last bytes are not written yet.
        assert found.text == tokenizer.decode(written, skip_special_tokens=True).rstrip("\ufffd")


def test_the_engine_writes_with_the_weights_of_the_step(url, folder):
    spec = importlib.util.spec_from_file_location("gkd_rollouts_vllm", ENGINE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = {"url": url, "model": "served", "folder": str(folder), "temperature": 0}
    engine = module.VLLM(module.VLLM.Config(**options))
    rows = [torch.tensor(ids) for ids in TEXTS]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    before = (folder / "model.safetensors").read_bytes()
    texts = []
    try:
        for seed in (1, 2):
            torch.manual_seed(seed)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.05 * torch.randn_like(weight))
            written = engine.write(Prompts(rows, 8, (1,), 1, [1, 2]), _Writer(model))
            assert list(written.tokens) == [_greedy(model, ids, 8) for ids in TEXTS]
            texts.append(list(written.tokens))
    finally:
        (folder / "model.safetensors").write_bytes(before)
    assert texts[0] != texts[1]


class _Writer:
    def __init__(self, model):
        self.model = model


@torch.no_grad()
def _greedy(model, ids, most):
    new = []
    while len(new) < most and 1 not in new:
        new.append(int(model(torch.tensor([[*ids, *new]])).logits[0, -1].argmax()))
    return new
