"""`TeacherServer`: the log-probabilities of prompts, from an OpenAI-like server such as vLLM."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from gkd_core.errors import ConfigError, DataError
from gkd_core.teachers.server_ways import Likeliest, NotGiven, Way, WrongAnswer

LONGEST_PAUSE = 30.0
"""Seconds between two attempts at most; they begin with one second and double."""

TRANSIENT = (408, 425, 429)
"""Statuses of the client's that do not say that the request is wrong."""

NOT_UNDERSTOOD = (400, 422)
"""Statuses of a server that does not know a field of the request, or what is in it."""


UNCHANGED: Mapping[str, Any] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Fields that leave the distribution of a model as it is. A server may have other defaults: vLLM
takes those of the model's `generation_config.json`. Some versions refuse `top_k` = 0."""


class Refused(ConfigError):
    """A server refuses a request.

    Attributes:
        status: Of its answer.
        reason: The status and what the answer says.
    """

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class _NotNow(Exception):
    """A server has no answer now, but may have one later; the message says why."""


@dataclass(frozen=True)
class ServedText:
    """What a server has written after a prompt.

    Attributes:
        text: The text.
        ended: Whether it ended by itself.
        tokens: Its token ids, with that which ended it; None if the server does not give them.
    """

    text: str
    ended: bool
    tokens: Sequence[int] | None


@dataclass(frozen=True)
class TeacherServer:
    """A server of a language model.

    Attributes:
        url: Its address, such as `http://host:8000`; `/v1` is added if it names no path.
        key: The API key; empty if it needs none. It is in no message.
        key_variable: The environment variable of the key, for messages.
        timeout: Seconds to wait for an answer.
        attempts: How often a request is sent if none comes.
    """

    url: str
    key: str
    key_variable: str
    timeout: float
    attempts: int

    @property
    def base(self) -> str:
        """The address that requests are below."""
        return self.url.rstrip("/") + ("" if urlsplit(self.url).path.strip("/") else "/v1")

    def models(self) -> list[str]:
        """Return the names of the models that it serves.

        Raises:
            ConfigError: It refuses.
            DataError: No answer, or not a list of models.
        """
        answer = self._send("GET", "models", None)
        try:
            return [str(model["id"]) for model in answer["data"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.base}/models: the answer is no list of models") from error

    def first_way(self, model: str, ids: Sequence[int], ways: Sequence[Way]) -> Way:
        """Return the first way in which it gives the likeliest words of a text.

        Args:
            model: The name that it serves the model under.
            ids: Token ids to ask about.
            ways: The ways to try.

        Raises:
            ConfigError: It gives them in none, or refuses to answer.
            DataError: No answer, or one about something else.
        """
        reasons = []
        for way in ways:
            try:
                self._ask(model, [ids], 1, way)
            except NotGiven as error:
                reasons.append(f"asked for {way.name}, its answer is not of use: {error}")
            except Refused as error:
                if error.status not in NOT_UNDERSTOOD:
                    raise
                reasons.append(f"it refuses {way.name} ({error.reason})")
            except WrongAnswer as error:
                raise self._wrong(str(error)) from error
            else:
                return way
        refusal = self._refusal_of_ids(model, ids)
        problem = (
            f"does not say how likely the words of a text are: {'; '.join(reasons)}"
            if refusal is None
            else f"takes no token ids ({refusal}), and may read a text as other tokens than the "
            "teacher's tokenizer"
        )
        raise ConfigError(
            f"{self.base} {problem}. Serve the teacher with vLLM, or by another server that takes "
            f"token ids and gives {' or '.join(way.name for way in ways)} for them"
        )

    def _refusal_of_ids(self, model: str, ids: Sequence[int]) -> str | None:
        """Return how it refuses token ids when nothing is asked about them; None if it does not."""
        try:
            body = {"model": model, "prompt": [[*ids]], "max_tokens": 1, "temperature": 1.0}
            self._send("POST", "completions", body)
        except Refused as error:
            return error.reason if error.status in NOT_UNDERSTOOD else None
        return None

    def likeliest(
        self, model: str, prompts: Sequence[Sequence[int]], k: int, way: Way
    ) -> list[list[Likeliest]]:
        """Return the k likeliest words at each token of each prompt but the first.

        An answer that is not about these tokens is never returned.

        Args:
            model: The name that it serves the model under.
            prompts: Token ids.
            k: Number of words.
            way: How it is asked.

        Raises:
            ConfigError: It refuses the request, which is then not repeated.
            DataError: No answer, or one about something else.
        """
        try:
            return self._ask(model, prompts, k, way)
        except WrongAnswer as error:
            raise self._wrong(str(error)) from error

    def write(self, model: str, prompt: Sequence[int], sampling: Mapping[str, Any]) -> ServedText:
        """Return the model's text after a prompt.

        Args:
            model: The name that it serves the model under.
            prompt: Token ids.
            sampling: How it writes, as fields of the request; by default from the distribution of
                the model.

        Raises:
            ConfigError: It refuses the request, which is then not repeated.
            DataError: No answer, or one about something else.
        """
        plain = {**sampling, "model": model, "prompt": [list(prompt)]}
        try:
            answer = self._send(
                "POST", "completions", {**UNCHANGED, "return_token_ids": True, **plain}
            )
        except Refused as error:
            if error.status not in NOT_UNDERSTOOD:
                raise
            # It may not know these fields, and then has no other defaults for them, either.
            answer = self._send("POST", "completions", plain)
        (choice,) = self._choices(answer, 1)
        try:
            text, reason, tokens = choice["text"], choice["finish_reason"], choice.get("token_ids")
            found = ServedText(str(text), reason == "stop", tokens and [*map(int, tokens)])
        except (KeyError, TypeError, ValueError) as error:
            raise self._wrong(f"a text has no `text`, `finish_reason` or ids ({error})") from error
        if reason not in ("stop", "length"):
            raise self._wrong(f"a text ended because of {reason}")
        return found

    def _ask(
        self, model: str, prompts: Sequence[Sequence[int]], k: int, way: Way
    ) -> list[list[Likeliest]]:
        """Return the likeliest words.

        Raises:
            WrongAnswer: The answer is about something else, or has none.
        """
        # At temperature 1, the log-probabilities are the model's own.
        body = {"model": model, "prompt": [*map(list, prompts)], "max_tokens": 1}
        answer = self._send("POST", "completions", {**body, "temperature": 1.0, **way.fields(k)})
        choices = self._choices(answer, len(prompts))
        return [way.likeliest(*pair, k) for pair in zip(choices, prompts, strict=True)]

    def _choices(self, answer: Any, count: int) -> list[dict[str, Any]]:
        """Return the answers about the texts of a request, in their order."""
        try:
            choices = sorted(map(dict, answer["choices"]), key=lambda one: int(one["index"]))
        except (KeyError, TypeError, ValueError) as error:
            raise self._wrong("it has no `choices`, each with an `index`") from error
        if len(choices) != count:
            raise self._wrong(f"it is about {len(choices)} texts instead of {count}")
        return choices

    def _wrong(self, reason: str) -> DataError:
        return DataError(
            f"the answer of {self.base} is not used: {reason}. Is it the server of the "
            "teacher? If it has been replaced, change teacher.source.revision"
        )

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        """Return the answer to a request, which is repeated while none comes."""
        pause, reason = 1.0, ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            try:
                response = httpx2.request(
                    method,
                    f"{self.base}/{path}",
                    json=body,
                    headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
                    timeout=self.timeout,
                )
                return self._content(response)
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                reason = f"{type(error).__name__}: {error}"
            except _NotNow as error:
                reason = str(error)
        raise DataError(
            f"{self.base}/{path} does not answer, in {self.attempts} attempts ({reason}). Start "
            "the server again, and resume the run: what it has answered is kept"
        )

    def _content(self, response: httpx2.Response) -> Any:
        """Return what an answer holds.

        Raises:
            ConfigError: The request is refused, or whoever answers is no such server.
            _NotNow: The same request may be answered later.
        """
        status = response.status_code
        if status >= 400:
            reason = f"status {status}: {response.text[:500]}"
            if status >= 500 or status in TRANSIENT:
                raise _NotNow(reason)
            raise self._refusal(status, reason)
        if status >= 300:
            place = response.headers.get("location", "nowhere")
            raise self._stranger(status, f"a redirect to {place}")
        try:
            return response.json()
        except ValueError as error:
            kind = response.headers.get("content-type", "no content type")
            if "json" not in kind:
                raise self._stranger(status, f"{kind} instead of JSON") from error
            raise _NotNow(f"status {status}: {error}") from error

    def _stranger(self, status: int, what: str) -> Refused:
        reason = f"status {status}, {what}"
        message = (
            f"{self.base} answers as no OpenAI-like server does ({reason}). Give the address of "
            "the server itself by teacher.source.url"
        )
        return Refused(message, status, reason)

    def _refusal(self, status: int, reason: str) -> Refused:
        if status in (401, 403):
            advice = f"Set the environment variable {self.key_variable} to the API key"
        elif "logprobs" in reason:
            advice = (
                "vLLM gives at most 20 words unless it is started with --max-logprobs: start it "
                "with more, or set teacher.source.k to fewer"
            )
        else:
            advice = "Correct teacher.source, or what the server was started with"
        message = f"{self.base} refuses the request ({reason}). {advice}"
        return Refused(message, status, reason)
