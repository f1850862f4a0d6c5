"""`OnnxModel`: an ONNX graph that is called as the transformers model that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from gkd_core.errors import ConfigError
from gkd_core.hooks.padding import positions_of

EXTRA = "Install them with pip install 'gkd-core[onnx]'"

IN, OUT = "input.past_key_values", "output.past_key_values"
"""Prefixes of the names of the keys and values that a decoder reads and returns."""


class OnnxModel(nn.Module):
    """A graph in onnxruntime, on the CPU.

    Kinds of task read it as they read any model: `prepare` gives its output the `logits`.

    Args:
        file: The `.onnx` file.
        threads: Number of threads. Default: those of torch.

    Attributes:
        base_model: Itself: there is no body that runs alone.
        input_names: The inputs of the graph.
        output_names: Its outputs.

    Raises:
        ConfigError: onnxruntime is not installed, or cannot load the graph.
    """

    def __init__(self, file: Path, threads: int | None = None) -> None:
        super().__init__()
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors
        try:
            self._session = runtime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises many types, which it does not document
            reason = " ".join(str(error).split())
            raise ConfigError(f"{file} cannot be loaded by onnxruntime: {reason}") from error
        self.input_names = [each.name for each in self._session.get_inputs()]
        self.output_names = [each.name for each in self._session.get_outputs()]

    @property
    def base_model(self) -> OnnxModel:
        """The model itself."""
        return self

    def get_output_embeddings(self) -> None:
        """Return None: there is no head that could be given other states."""

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Return the outputs by name, as attributes.

        Args:
            **inputs: The inputs by name; those that the graph does not read are left out.
        """
        return SimpleNamespace(**self.run(inputs))

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the outputs by name; arguments as for `forward`."""
        feeds = {name: inputs[name].numpy() for name in self.input_names}
        found = self._session.run(None, feeds)
        return dict(zip(self.output_names, map(torch.from_numpy, found), strict=True))


class OnnxDecoder(OnnxModel):
    """A graph that continues texts: it keeps the keys and values of the tokens that it has read.

    Called as a model, it reads whole texts.
    """

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Return the outputs for whole texts, as attributes."""
        return SimpleNamespace(**self.run(self._begin(inputs)))

    def continue_greedily(self, ids: torch.Tensor, count: int) -> torch.Tensor:
        """Return a text with the likeliest tokens after it, int64 `[1, S + count]`.

        Args:
            ids: The text, int64 `[1, S]`.
            count: Number of tokens to write.
        """
        inputs = self._begin({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        for _ in range(count):
            found = self.run(inputs)
            token = found["logits"][:, -1:].argmax(-1)
            ids = torch.cat([ids, token], 1)
            kept = {IN + name.removeprefix(OUT): x for name, x in found.items() if OUT in name}
            own = {"input_ids": token, "attention_mask": torch.ones_like(ids)}
            inputs = {**kept, **own, "position_ids": torch.tensor([[ids.shape[1] - 1]])}
        return ids

    def _begin(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the inputs of the first pass, with empty keys and values."""
        rows, mask = len(inputs["input_ids"]), inputs["attention_mask"]
        shapes = {each.name: each.shape for each in self._session.get_inputs()}
        empty = {
            name: torch.zeros(rows, int(shape[1]), 0, int(shape[3]))
            for name, shape in shapes.items()
            if name.startswith(IN)
        }
        return {"position_ids": positions_of(mask), **empty, **inputs}


def import_onnxruntime() -> Any:
    """Return the module onnxruntime.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"ONNX files need onnx and onnxruntime ({error}). {EXTRA}") from error
    return onnxruntime
