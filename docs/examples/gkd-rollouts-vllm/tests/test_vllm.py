"""The engine against a small server with the endpoints of vLLM, which answers with a real model."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from gkd_rollouts_vllm import VLLM
from safetensors.torch import load_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from gkd_core.api import ConfigError, DataError, Prompts

END = 3


class Server(ThreadingHTTPServer):
    """Serves the model in a folder.

    Attributes:
        calls: The endpoints that were called, in order.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.calls: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(path)
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            load_model(self.model, Path(body["kwargs"]["weights_path"]) / "model.safetensors")
            return {}
        if path == "/reset_prefix_cache":
            return {}
        assert body["logprobs"] == 1
        # What the model's generation_config.json would decide otherwise.
        assert (body["top_p"], body["top_k"], body["min_p"]) == (1, -1, 0)
        assert body["repetition_penalty"] == 1
        assert body["presence_penalty"] == body["frequency_penalty"] == 0
        (ids,) = body["prompt"]
        tokens = greedy(self.model, ids, body["max_tokens"])
        likely = {"token_logprobs": [-0.5 * number for number in range(len(tokens))]}
        return {"choices": [{"token_ids": tokens, "logprobs": likely}]}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = json.dumps(self.server.answer(self.path, body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@torch.no_grad()
def greedy(model: Any, ids: list[int], most: int) -> list[int]:
    new: list[int] = []
    while len(new) < most and END not in new:
        new.append(int(model(torch.tensor([[*ids, *new]])).logits[0, -1].argmax()))
    return new


class Student:
    """What an engine sees of the student."""

    def __init__(self, model: Any) -> None:
        self.model = model


def tiny(seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=40, num_hidden_layers=2, initializer_range=0.3, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny(0).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = Server(folder)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def engine(server: Server, folder: Path, temperature: float = 0) -> VLLM:
    return VLLM(VLLM.Config(url=server.url, folder=str(folder), temperature=temperature))


def prompts() -> Prompts:
    rows = [torch.tensor(ids) for ids in ([5, 6, 7], [8, 9], [10])]
    return Prompts(rows, 6, (END,), 0, [1, 2, 3])


def test_text_is_of_the_weights_of_the_step(server: Server, folder: Path) -> None:
    for seed in (1, 2):
        student = tiny(seed)
        written = engine(server, folder).write(prompts(), Student(student))  # type: ignore[arg-type]
        expected = [greedy(student, row.tolist(), 6) for row in prompts().rows]
        assert list(written.tokens) == expected
    reload = ["/collective_rpc", "/reset_prefix_cache"]
    assert server.calls == [*reload, *["/v1/completions"] * 3] * 2


@pytest.mark.parametrize("temperature", [0, 1])
def test_it_says_how_likely_tokens_were_where_they_are_drawn_from_the_model_itself(
    server: Server, folder: Path, temperature: float
) -> None:
    written = engine(server, folder, temperature).write(prompts(), Student(tiny(1)))  # type: ignore[arg-type]
    expected = [[-0.5 * number for number in range(len(text))] for text in written.tokens]
    assert (written.log_probs and list(written.log_probs)) == (expected if temperature else None)


def test_a_folder_without_a_model_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no model"):
        engine(server, tmp_path).write(prompts(), Student(tiny(1)))  # type: ignore[arg-type]


def test_a_server_that_is_not_there_is_named(server: Server, folder: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="VLLM_SERVER_DEV_MODE=1"):
        engine(server, folder).write(prompts(), Student(tiny(1)))  # type: ignore[arg-type]


def test_a_student_with_adapters_is_refused(server: Server, folder: Path) -> None:
    student = tiny(1)
    student.peft_config = {}
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="adapters have others"):
        engine(server, folder).write(prompts(), Student(student))  # type: ignore[arg-type]
    assert (folder / "model.safetensors").read_bytes() == before


def test_several_processes_are_refused(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="in one process"):
        engine(server, folder).write(prompts(), Student(tiny(1)))  # type: ignore[arg-type]
    assert not (folder / ".model.safetensors").exists()
    shutil.rmtree(folder)
