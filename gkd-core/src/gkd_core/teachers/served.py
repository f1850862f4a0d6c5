"""`server`: a teacher that a server runs, asked for its likeliest words over HTTP."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from gkd_core import digest
from gkd_core.contract.rollout import Prompts, TokenSampling
from gkd_core.data.cache import cache_entry
from gkd_core.data.cache_limit import use_entry
from gkd_core.errors import ConfigError, DataError
from gkd_core.hooks.paths import LOGITS
from gkd_core.teachers.answer_cache import Document, documents, of_batch
from gkd_core.teachers.answer_form import IDS, LOG_PROBS, Columns, LikeliestWords
from gkd_core.teachers.answer_store import AnswerStore
from gkd_core.teachers.live_check import divergence_from_live
from gkd_core.teachers.server import ServedText, TeacherServer
from gkd_core.teachers.server_ways import Echo, Likeliest, PromptLogProbs, Way
from gkd_core.teachers.source import AnswerSource

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.contract.step import Step
    from gkd_core.hooks.features import Answer
    from gkd_core.hooks.paths import Capture

ROUNDING = 1e-2
"""By how much the probabilities of some words may exceed 1: servers compute in bf16."""

WRITTEN_AT_ONCE = 32
"""The maximum number of texts that are asked for at the same time."""

FIRST_ATTEMPTS = 3
"""The maximum number of requests to a server that has not answered yet."""


class Served(AnswerSource):
    """The likeliest words of a language model on a server, and the mass of all others.

    The server gives `prompt_logprobs` for token ids, as vLLM does, or `echo` and `logprobs`: the
    first request finds out which. Its answers are kept in the cache, where later epochs and runs
    find them.
    """

    name = "server"
    any_text = True
    packs = True
    next_words = True

    class Config(AnswerSource.Config):
        """Options of `server`."""

        url: str = Field(description="Address of the server, such as `http://host:8000`.")
        model: str | None = Field(
            None, description="The name it serves the teacher under. Default: its only one."
        )
        revision: str = Field(
            "",
            description="Any text that says which weights these are: answers and students of "
            "another are not used. Change it when the server gets other weights under this name, "
            "or is replaced.",
        )
        k: PositiveInt = Field(
            20,
            description="Likeliest words at each token. vLLM gives 20, or its --max-logprobs; "
            "other servers may give fewer.",
        )
        timeout: PositiveFloat = Field(120.0, description="Seconds to wait for an answer.")
        attempts: PositiveInt = Field(
            8, description="How often a request is sent while no answer comes; pauses double."
        )
        live: str | None = Field(
            None,
            description="Directory or hub id of the model that the server should run: at the first "
            "batch, its answers are compared with this model's own.",
        )
        live_limit: PositiveFloat = Field(
            0.01,
            description="Largest mean KL per token between the two; a bf16 server is some "
            "thousandths away.",
        )
        key_variable: str = Field(
            "GKD_TEACHER_API_KEY",
            description="Environment variable with the API key; the key itself is never stored.",
        )

    config: Config

    def __init__(self, config: Any, teacher: ModelInfo) -> None:
        super().__init__(config, teacher)
        self._compared = False

    def check(self) -> None:
        """Reject a server that is not there, or says nothing about the likeliest words."""
        self.check_server()
        self.way  # noqa: B018 - asks the server before anything is loaded

    def check_server(self) -> None:
        """Reject an address that is none or has a password, and a server that is not there."""
        parts = urlsplit(self.config.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts):
            raise ConfigError(
                f"teacher.source.url is {self.config.url!r}. Give an address such as "
                "http://host:8000"
            )
        if parts.username or parts.password:
            raise ConfigError(
                "teacher.source.url has a user name or a password, which would be stored. Put an "
                f"API key into the environment variable {self.config.key_variable}"
            )
        self._model  # noqa: B018 - asks the server before anything is loaded

    def check_tokens(self) -> None:
        """Reject a server that does not give the token ids of what it writes."""
        prompts = Prompts([torch.tensor(self._short_text())], 1, (), 0, [0])
        if self.write(prompts, TokenSampling(temperature=0.0))[0].tokens is None:
            raise ConfigError(
                f"{self._server.base} does not give the token ids of what it writes "
                "(`return_token_ids`), and its text may be read as other tokens. Serve the teacher "
                "with a vLLM that gives them, or leave rollout.teacher out"
            )

    @cached_property
    def way(self) -> Way:
        """The way to ask the server: that of the answers that are kept, or what a probe finds."""
        ways = (PromptLogProbs(), Echo(self.tokenizer))
        kept = [way for way in ways if self._folder(way).exists()]
        if len(kept) == 1:
            return kept[0]
        text = self._short_text()
        found = self._server.first_way(self._model, text, ways)
        self._server.likeliest(self._model, [text], self._form.k, found)  # k is not too many
        return found

    def missing(self, capture: Capture) -> str | None:
        """A server gives log-probabilities."""
        return None if capture == LOGITS else "a server gives log-probabilities only"

    def truncated_at(self) -> float | None:
        """Return 1, at which servers answer."""
        return self._form.temperature

    def fingerprint(self) -> str:
        """Return the hash of the teacher's address, name, revision and number of tokens."""
        return digest.of_value([self._server.base, self._model, self.config.revision, self._form.k])

    def answer(
        self, captures: Collection[Capture], batch: Batch, step: Step
    ) -> Mapping[Capture, Answer]:
        """Return the likeliest words at the tokens that are learned."""
        texts = list(documents(batch, self._form.scored))
        self._ask([one for one in texts if self._store.find(one.key) is None], batch)
        kept = [self._store.find(one.key) for one in texts]
        found = [own for own in kept if own is not None]
        if self.config.live is not None and not self._compared:
            self._compare(self.config.live, texts, found, batch)
        columns = of_batch(texts, found, self._form, batch.mask.shape)
        device = batch.rows.device
        return {LOGITS: self._form.logits({n: c.to(device) for n, c in columns.items()}, {})}

    def write(self, prompts: Prompts, sampling: TokenSampling) -> list[ServedText]:
        """Return the teacher's text after each prompt.

        Each has a request of its own: a server draws all texts of a request from the same seed.

        Args:
            prompts: The prompts.
            sampling: How tokens are drawn.
        """
        server, model = self._server, self._model  # looked up once, before there are threads

        def ask(row: int) -> ServedText:
            return server.write(model, prompts.rows[row].tolist(), _fields(prompts, row, sampling))

        with ThreadPoolExecutor(WRITTEN_AT_ONCE) as pool:
            return list(pool.map(ask, range(len(prompts))))

    def _ask(self, missing: Sequence[Document], batch: Batch) -> None:
        """Ask about documents that nobody was asked about, and keep the answers."""
        new = list({one.key: one for one in missing}.values())
        if not new:
            return
        rows = batch.inputs["input_ids"].cpu()
        texts = [rows[one.row, one.tokens].tolist() for one in new]
        answers = self._server.likeliest(self._model, texts, self._form.k, self.way)
        columns = [self._columns(*pair) for pair in zip(new, answers, strict=True)]
        self._store.add([one.key for one in new], columns)

    def _compare(
        self, live: str, texts: Sequence[Document], found: Sequence[Columns], batch: Batch
    ) -> None:
        """Reject a server that runs another model than the one on this machine."""
        rows = batch.inputs["input_ids"].cpu()
        divergence = divergence_from_live(
            live,
            "teacher.source.live",
            (
                (rows[one.row, one.tokens], one.places - one.tokens.start, own)
                for one, own in zip(texts, found, strict=True)
            ),
        )
        if divergence > self.config.live_limit:
            raise DataError(
                f"{self._server.base} does not answer as {live} does (teacher.source.live): a mean "
                f"KL of {divergence:.3g} per token on the first batch; {self.config.live_limit:g} "
                "is allowed (teacher.source.live_limit). Is it the same model, at the same "
                "precision?"
            )
        self._compared = True

    def _columns(self, document: Document, answer: Sequence[Likeliest]) -> Columns:
        """Return the stored answers: the words that follow each learned token."""
        # The answer begins with the prediction of the second token, which is that at the first.
        at = (document.places - document.tokens.start).tolist()
        ids = torch.tensor([answer[place][0] for place in at], dtype=torch.int64)
        known = torch.tensor([answer[place][1] for place in at], dtype=torch.float64)
        ids, known = ids.view(len(at), self._form.k), known.view(len(at), self._form.k)
        total = known.exp().sum(-1, keepdim=True)
        is_word = (ids >= 0) & (ids < self.teacher.labels)
        if not bool(is_word.all()) or bool((total > 1 + ROUNDING).any()):
            raise DataError(
                f"{self._server.base} answers with words that the teacher's tokenizer lacks, or "
                "that are likelier than possible. Give the tokenizer of its model by "
                "teacher.tokenizer"
            )
        # If all words are known, what is missing to 1 is rounding.
        rest = 1 - total if self._form.k < self._form.words else torch.zeros_like(total)
        tail = rest.clamp(min=0.0).log()
        return {IDS: ids.int(), LOG_PROBS: torch.cat([known, tail], -1).float()}

    @cached_property
    def _server(self) -> TeacherServer:
        config = self.config
        key = os.environ.get(config.key_variable, "")
        return TeacherServer(config.url, key, config.key_variable, config.timeout, config.attempts)

    @cached_property
    def _model(self) -> str:
        """The name that the teacher is served under."""
        if self.config.model is not None:
            return self.config.model
        # Whether it is there at all is found out soon; later it may be started again.
        names = replace(self._server, attempts=min(FIRST_ATTEMPTS, self.config.attempts)).models()
        if len(names) != 1:
            raise ConfigError(
                f"{self._server.base} serves {', '.join(names) or 'no model'}. Name the teacher by "
                "teacher.source.model"
            )
        return names[0]

    @cached_property
    def _form(self) -> LikeliestWords:
        words = self.teacher.labels
        return LikeliestWords("fp32", min(self.config.k, words), 1.0, words)

    @cached_property
    def _store(self) -> AnswerStore:
        folder = self._folder(self.way)
        use_entry(folder)
        return AnswerStore(folder)

    def _folder(self, way: Way) -> Path:
        """Return the folder of the answers to one way of asking: two ways may be rounded apart."""
        return cache_entry("answers", f"server-{self.fingerprint()}{way.mark}")

    def _short_text(self) -> list[int]:
        """Return two tokens that are not special."""
        special = set(self.tokenizer.all_special_ids)
        return sorted(set(self.tokenizer.get_vocab().values()) - special)[:2]


def _fields(prompts: Prompts, row: int, sampling: TokenSampling) -> dict[str, Any]:
    """Return the fields of a request that say how the text after a prompt is written."""
    few = {"top_k": sampling.top_k} if sampling.top_k else {}
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": prompts.max_new_tokens,
        "seed": prompts.seeds[row] % 2**31,
        "stop_token_ids": list(prompts.end_ids),
        **few,
    }


def _has_port(parts: SplitResult) -> bool:
    """Return whether the port of an address is one, or is not given."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False
