"""A small server on the loopback interface that answers with a real model, as others do."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

KEY = "sesame"
WORDS = [5, 6]
"""The first tokens of the world that are not special: what is asked about at first."""

OTHERS_LACK = {
    "prompt_logprobs",
    "echo",
    "top_k",
    "min_p",
    "repetition_penalty",
    "return_token_ids",
}
"""Fields of requests that some servers do not know."""


STRANGE = {
    "page": (200, b"<html>Log in</html>", "text/html"),
    "moved": (302, b"", "text/html", "https://elsewhere/v1"),
    "garbled": (200, b"{", "application/json"),
}
"""What some proxies answer instead: status, content, kind, place."""


class Server(ThreadingHTTPServer):
    """Answers as vLLM does, unless it is told to fail, or to do so otherwise.

    Attributes:
        gives: The fields of requests that it knows: `prompt_logprobs`, or `echo` and `logprobs`,
            or none of them; the others it does not mind.
        names_ids: Whether it names tokens by id when asked to.
        is_strict: Whether it refuses fields that it does not know.
        takes_ids: Whether it takes token ids, or texts only.
        defaults: What stands in the model's `generation_config.json`, for requests that do not say.
        faults: What to do instead with the next requests: a status, a function that spoils an
            answer, or `page` (of HTML), `moved` (elsewhere), `garbled` (not JSON after all).
        prompts: Every prompt that was asked about.
    """

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.faults, self.prompts, self.most = [], [], 1000
        self.gives, self.names_ids, self.is_strict = ("prompt_logprobs",), True, False
        self.takes_ids = True
        self.defaults = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def texts(self):
        """What was asked about, without the words by which the way to ask is found."""
        return [prompt for prompt in self.prompts if prompt != WORDS]

    @torch.no_grad()
    def likeliest(self, ids, k):
        """Return the k likeliest words and the text's own at each token but the first."""
        log_probs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        for row, own in zip(log_probs, ids[1:], strict=False):
            words = dict.fromkeys([*row.topk(min(k, len(row))).indices.tolist(), own])
            yield {word: float(row[word]) for word in words}

    def choice(self, index, ids, body):
        """Answer a request for `prompt_logprobs`."""
        answer = [
            {str(word): {"logprob": value} for word, value in words.items()}
            for words in self.likeliest(ids, body["prompt_logprobs"])
        ]
        return {"index": index, "text": "", "prompt_logprobs": [None, *answer]}

    def echo(self, index, ids, body):
        """Answer a request for `echo` and `logprobs`: about the text and a token after it."""
        by_id = self.names_ids and body.get("return_tokens_as_token_ids")
        name = "token_id:{}".format if by_id else self.tokenizer.decode
        ids = [*ids, 5]
        likeliest = list(self.likeliest(ids, body["logprobs"]))
        own = [words[token] for words, token in zip(likeliest, ids[1:], strict=True)]
        answer = {
            "tokens": [*map(name, ids)],
            "token_logprobs": [None, *own],
            "top_logprobs": [None, *({name(w): v for w, v in at.items()} for at in likeliest)],
        }
        return {"index": index, "text": self.tokenizer.decode(ids), "logprobs": answer}

    @torch.no_grad()
    def written(self, index, ids, body):
        """Continue a prompt: all prompts of a request draw from the same seed."""
        given = {**self.defaults, **body}
        draw = torch.Generator().manual_seed(given.get("seed", 0))
        new, ends = [], given.get("stop_token_ids", [])
        while len(new) < given["max_tokens"] and not (new and new[-1] in ends):
            read = torch.tensor([[*ids, *new]])
            logits = shaping(given)(read, self.model(read).logits[:, -1].float())
            if given["temperature"] == 0:
                new.append(int(logits.argmax()))
                continue
            probabilities = (logits[0] / given["temperature"]).softmax(-1)
            new.append(int(torch.multinomial(probabilities, 1, generator=draw)))
        reason = "stop" if new[-1] in ends else "length"
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        answer = {"index": index, "text": text, "finish_reason": reason}
        return answer | ({"token_ids": new} if body.get("return_token_ids") else {})

    def complete(self, body):
        unknown = OTHERS_LACK & body.keys() - set(self.gives)
        if self.is_strict and unknown:
            return 400, {"error": {"message": f"unrecognized argument: {', '.join(unknown)}"}}
        unknown &= {"prompt_logprobs", "echo"}
        if not self.takes_ids and not isinstance(body["prompt"], str):
            return 422, {"error": {"message": "prompt: input should be a valid string"}}
        known = body.keys() - unknown
        k = body.get("prompt_logprobs", body.get("logprobs", 0))
        if known & {"prompt_logprobs", "echo"} and k > self.most:
            return 400, {"error": {"message": f"logprobs: the most is {self.most}"}}
        self.prompts += body["prompt"]
        answer = self.written
        if "prompt_logprobs" in known:
            answer = self.choice
        elif "echo" in known:
            answer = self.echo
        choices = [answer(index, ids, body) for index, ids in enumerate(body["prompt"])]
        return 200, {"choices": choices[::-1]}


def shaping(given):
    """Return what a request, or the defaults of the server, does to the scores of words."""
    found = LogitsProcessorList()
    if given.get("repetition_penalty", 1) != 1:
        found.append(RepetitionPenaltyLogitsProcessor(given["repetition_penalty"]))
    if given.get("top_k", -1) > 0:
        found.append(TopKLogitsWarper(given["top_k"]))
    if given.get("top_p", 1) < 1:
        found.append(TopPLogitsWarper(given["top_p"]))
    if given.get("min_p", 0) > 0:
        found.append(MinPLogitsWarper(given["min_p"]))
    return found


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.respond(200, {"data": [{"id": "the-teacher"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "the-teacher"
        if body.keys() & {"prompt_logprobs", "echo"}:
            assert (body["max_tokens"], body["temperature"]) == (1, 1.0)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.respond(401, {"error": "no key"})
        elif fault == "dies":
            self.close_connection = True
        elif fault in STRANGE:
            self.send(*STRANGE[fault])
        elif isinstance(fault, int):
            self.respond(fault, {"error": "busy"})
        else:
            status, answer = self.server.complete(body)
            if fault is not None:
                fault(answer["choices"])
            self.respond(status, answer)

    def respond(self, status, answer):
        self.send(status, json.dumps(answer).encode())

    def send(self, status, content, kind="application/json", place=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if place is not None:
            self.send_header("Location", place)
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
