"""A rollout engine of one file: a vLLM server writes with the student's current weights."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from pydantic import Field
from safetensors.torch import save_model

from gkd_core.api import (
    ConfigError,
    DataError,
    Prompts,
    RolloutEngine,
    TokenSampling,
    Writer,
    Written,
    hookimpl,
)

WEIGHTS = "model.safetensors"

UNCHANGED = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Fields that leave the student's distribution as it is. Without them, vLLM has the defaults of the
model's `generation_config.json`."""


class VLLM(RolloutEngine):
    """Text that a vLLM server writes, to which each step gives the weights of its model.

    The weights are written to the folder that the server has its model from, and the server is
    told to read them again.
    """

    name = "vllm"
    batch_coupled = True  # kernels for other numbers of rows round differently

    class Config(RolloutEngine.Config):
        """Options of `vllm`."""

        url: str = Field("http://127.0.0.1:8000", description="Address of the server.")
        model: str = Field("student", description="The name it serves the student under.")
        folder: str = Field(
            "student", description="Folder of the served model, which the server can read, too."
        )
        temperature: float = Field(1.0, ge=0, description="Divides the logits; 0 is greedy.")
        requests: int = Field(32, gt=0, description="Prompts that are asked at a time.")
        timeout: float = Field(600.0, gt=0, description="Seconds to wait for an answer.")

    config: Config

    def sampling(self) -> TokenSampling:
        """Return how it draws tokens."""
        return TokenSampling(self.config.temperature)

    def write(self, prompts: Prompts, writer: Writer) -> Written:
        """Give the server the weights, and let it continue each prompt from its own seed."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "the rollout engine vllm takes the weights of a student in one process. Use "
                "rollout.engine = generate with several"
            )
        if hasattr(writer.model, "peft_config"):
            raise ConfigError(
                "the rollout engine vllm gives the server weights by the names of the checkpoint, "
                "and those of a student with adapters have others. Remove student.lora, or use "
                "rollout.engine = generate"
            )
        self._give_weights(writer)

        def ask(row: int) -> tuple[list[int], list[float]]:
            return self._ask(prompts, row)

        with ThreadPoolExecutor(self.config.requests) as pool:
            tokens, log_probs = zip(*pool.map(ask, range(len(prompts))), strict=True)
        # vLLM gives those of the model, which are other than it drew with at other temperatures.
        return Written(tokens, log_probs if self.config.temperature == 1 else None)

    def _give_weights(self, writer: Writer) -> None:
        folder = Path(self.config.folder).resolve()
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"rollout.folder = {str(folder)!r} is no model. Name the folder that the server "
                "was started with: a copy of the checkpoint that the student starts from"
            )
        aside = folder / f".{WEIGHTS}"
        save_model(writer.model, str(aside))
        os.replace(aside, folder / WEIGHTS)
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._post("collective_rpc", body)
        self._post("reset_prefix_cache", {})  # what is cached was read with the weights before

    def _ask(self, prompts: Prompts, row: int) -> tuple[list[int], list[float]]:
        body = {
            "model": self.config.model,
            "prompt": [prompts.rows[row].tolist()],
            "max_tokens": prompts.max_new_tokens,
            "temperature": self.config.temperature,
            **UNCHANGED,
            "seed": prompts.seeds[row] % 2**31,
            "stop_token_ids": list(prompts.end_ids),
            "return_token_ids": True,
            "logprobs": 1,
            "skip_special_tokens": False,
        }
        answer = self._post("v1/completions", body)
        try:
            (choice,) = answer["choices"]
            tokens = [int(token) for token in choice["token_ids"]]
            return tokens, [float(one) for one in choice["logprobs"]["token_logprobs"]]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.config.url} gave no tokens; is it a vLLM server?") from error

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request."""
        request = urllib.request.Request(
            f"{self.config.url.rstrip('/')}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.config.timeout) as answer:
                content = answer.read()
        except OSError as error:
            raise DataError(
                f"{request.full_url}: {error}. Start the server with VLLM_SERVER_DEV_MODE=1 and "
                f"--served-model-name {self.config.model}, and resume the run"
            ) from error
        try:
            return cast("dict[str, Any]", json.loads(content)) if content.strip() else {}
        except ValueError as error:
            raise DataError(f"{request.full_url} answers {content[:80]!r}, not JSON") from error


@hookimpl
def gkd_register_rollouts() -> list[type[RolloutEngine]]:
    """Register the engine."""
    return [VLLM]
