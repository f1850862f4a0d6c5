"""A small server on the loopback interface that answers with a real model, as vLLM does."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

KEY = "sesame"


class Server(ThreadingHTTPServer):
    """Answers as vLLM does, unless it is told to fail.

    Attributes:
        faults: What to do instead with the next requests: a status, or a function that spoils an
            answer.
        prompts: Every prompt that was asked about.
    """

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.faults, self.prompts, self.most = [], [], 1000

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @torch.no_grad()
    def choice(self, index, ids, k):
        log_probs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        answer = [None]
        for row, own in zip(log_probs, ids[1:], strict=False):
            words = dict.fromkeys([*row.topk(min(k, len(row))).indices.tolist(), own])
            answer.append({str(word): {"logprob": float(row[word])} for word in words})
        return {"index": index, "text": "", "prompt_logprobs": answer}

    @torch.no_grad()
    def written(self, index, ids, body):
        """Continue a prompt: the most likely token, or a draw from a generator of its own."""
        draw = torch.Generator().manual_seed(body.get("seed", 0) + index)
        new, ends = [], body.get("stop_token_ids", [])
        while len(new) < body["max_tokens"] and not (new and new[-1] in ends):
            logits = self.model(torch.tensor([[*ids, *new]])).logits[0, -1].float()
            if body["temperature"] == 0:
                new.append(int(logits.argmax()))
                continue
            probabilities = (logits / body["temperature"]).softmax(-1)
            new.append(int(torch.multinomial(probabilities, 1, generator=draw)))
        reason = "stop" if new[-1] in ends else "length"
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        answer = {"index": index, "text": text, "finish_reason": reason}
        return answer | ({"token_ids": new} if body.get("return_token_ids") else {})

    def complete(self, body):
        if "prompt_logprobs" not in body:
            self.prompts += body["prompt"]
            choices = [self.written(i, ids, body) for i, ids in enumerate(body["prompt"])]
            return 200, {"choices": choices[::-1]}
        if body["prompt_logprobs"] > self.most:
            return 400, {"error": {"message": f"logprobs: the most is {self.most}"}}
        self.prompts += body["prompt"]
        choices = [self.choice(i, p, body["prompt_logprobs"]) for i, p in enumerate(body["prompt"])]
        return 200, {"choices": choices[::-1]}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.respond(200, {"data": [{"id": "the-teacher"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "the-teacher"
        if "prompt_logprobs" in body:
            assert (body["max_tokens"], body["temperature"]) == (1, 1.0)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.respond(401, {"error": "no key"})
        elif fault == "dies":
            self.close_connection = True
        elif isinstance(fault, int):
            self.respond(fault, {"error": "busy"})
        else:
            status, answer = self.server.complete(body)
            if fault is not None:
                fault(answer["choices"])
            self.respond(status, answer)

    def respond(self, status, answer):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def serving(folder, monkeypatch):
    """Serve the model in a folder, which wants an API key.

    Args:
        folder: The model and its tokenizer.
        monkeypatch: Sets the key.
    """
    monkeypatch.setenv("GKD_TEACHER_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = Server(folder)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        served.shutdown()
        served.server_close()
