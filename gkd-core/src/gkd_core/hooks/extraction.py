"""`Extractor`: one forward pass that captures exactly what is asked and computes no more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gkd_core.errors import MethodError
from gkd_core.hooks.attention import (
    NAME,
    AttentionInputs,
    Listener,
    listening,
    switch_attention,
)
from gkd_core.hooks.features import Features
from gkd_core.hooks.paths import ATTENTION_SITES, Capture

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from gkd_core.models.sites import Sites

LOGITS = Capture("logits")


class StopForward(Exception):
    """Everything asked for is captured; what follows in the forward pass is of no use."""


class Extractor:
    """Runs a model and captures tensors on the way.

    Hooks stay on the model between runs that capture the same, and do nothing outside of `run`, so
    that recomputation under gradient checkpointing records nothing. A model whose logits are not
    read runs without its head; without gradients it also stops as soon as everything is captured.
    """

    def __init__(self, model: PreTrainedModel, sites: Sites) -> None:
        """Prepare a model; it stays as it is until something is captured.

        Args:
            model: The model. Its train or eval mode is the caller's.
            sites: Its sites.
        """
        self.model = model
        self._sites = sites
        self._captures: frozenset[Capture] = frozenset()
        self._handles: list[RemovableHandle] = []
        self._listeners: dict[nn.Module, Listener] = {}
        self._stock_attention: str | None = None
        self._recording: _Recording | None = None

    def run(self, captures: frozenset[Capture], inputs: Mapping[str, Tensor]) -> Features:
        """Run the model on a batch and return what was asked for.

        Args:
            captures: What to capture. With nothing to capture the model does not run.
            inputs: What the model's forward takes: int64 `[B, S]` each.

        Raises:
            MethodError: The model has no such site.
        """
        if captures != self._captures:
            self.remove()
            self._install(captures)
        recording = _Recording(captures, inputs, self._sites)
        self._recording = recording
        try:
            with suppress(StopForward), listening(self._listeners):
                self._forward(recording, inputs)
        finally:
            self._recording = None
        recording.check_complete()
        return recording.features

    def remove(self) -> None:
        """Take every hook off the model and give it back the attention function it came with."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._listeners.clear()
        if self._stock_attention is not None:
            switch_attention(self.model, self._stock_attention)
            self._stock_attention = None
        self._captures = frozenset()

    def _install(self, captures: frozenset[Capture]) -> None:
        # In a fixed order: it decides in which order autograd sums the gradients of a tensor.
        hidden = [capture for capture in sorted(captures) if capture.site == "hidden"]
        attention = [capture for capture in sorted(captures) if capture.site in ATTENTION_SITES]
        if attention and self._sites.obstacle is not None:
            names = ", ".join(str(capture) for capture in sorted(attention))
            raise MethodError(f"{names} cannot be captured: {self._sites.obstacle}")
        for (layer, normed), group in _grouped(hidden).items():
            self._handles.append(self._hook(layer, normed, group))
        for (layer, _), group in _grouped(attention).items():
            self._listeners[self._sites.attentions[layer - 1]] = self._listener(group)
        if attention:
            self._stock_attention = self.model.config._attn_implementation
        self._captures = captures

    def _forward(self, recording: _Recording, inputs: Mapping[str, Tensor]) -> None:
        if not recording.pending:
            return
        if self._listeners:
            switch_attention(self.model, NAME)
        # Nothing is generated, so that a cache of keys and values would only take memory.
        options = {"use_cache": False} if self._sites.causal else {}
        if LOGITS not in recording.pending:
            self.model.base_model(**inputs, **options)
            return
        output = self.model(**inputs, **options)
        if not hasattr(output, "logits"):
            raise MethodError(
                f"{type(self.model).__name__} has no head, so that its logits cannot be read. "
                "Load it with a head for its task"
            )
        recording.add([LOGITS], output.logits)

    def _hook(self, layer: int, normed: bool, captures: list[Capture]) -> RemovableHandle:
        """Capture a hidden state."""

        def see_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._capture(captures, args[0] if args else kwargs["hidden_states"])

        def see_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._capture(captures, output[0] if isinstance(output, tuple) else output)

        if layer == 0:
            return self._sites.blocks[0].register_forward_pre_hook(see_input, with_kwargs=True)
        block = self._sites.blocks[layer - 1]
        norm = self._sites.final_norm if normed else None
        return (block if norm is None else norm).register_forward_hook(see_output)

    def _listener(self, captures: list[Capture]) -> Listener:
        """Capture the attention sites of one layer."""
        outputs = [capture for capture in captures if capture.site == "context"]

        def see_inputs(inputs: AttentionInputs, value: Tensor) -> None:
            if self._recording is not None:
                self._recording.add_attention(captures, inputs, value)
                self._recording.stop_if_complete()

        def see_context(context: Tensor) -> None:
            self._capture(outputs, context)

        return Listener(see_inputs, see_context)

    def _capture(self, captures: list[Capture], tensor: Tensor) -> None:
        if self._recording is not None:
            self._recording.add(captures, tensor)
            self._recording.stop_if_complete()


class _Recording:
    """What one run has captured so far, and what is still to come."""

    def __init__(
        self, captures: frozenset[Capture], inputs: Mapping[str, Tensor], sites: Sites
    ) -> None:
        self.features = Features()
        self.pending = set(captures)
        self._gradients = torch.is_grad_enabled()
        self._inputs = inputs
        self._sites = sites

    def add(self, captures: Iterable[Capture], tensor: Tensor) -> None:
        for capture in captures:
            self.features.tensors[capture] = self._reduce(capture, tensor)
            self.pending.discard(capture)

    def add_attention(
        self, captures: Iterable[Capture], inputs: AttentionInputs, value: Tensor
    ) -> None:
        if self._gradients and not torch.is_grad_enabled():
            raise MethodError(
                "attention inside reentrant gradient checkpointing has no gradient; enable "
                "checkpointing with use_reentrant=False"
            )
        tensors = {"query": inputs.query, "key": inputs.key, "value": value}
        for capture in captures:
            if capture.site in tensors:
                self.add([capture], tensors[capture.site])
            elif capture.site in ("scores", "probs"):
                self.features.attention[capture] = inputs
                self.pending.discard(capture)

    def stop_if_complete(self) -> None:
        if not self.pending and not self._gradients:
            raise StopForward

    def check_complete(self) -> None:
        if self.pending:
            missing = ", ".join(str(capture) for capture in sorted(self.pending))
            raise MethodError(
                f"{type(self._sites.model).__name__} did not compute {missing} where its sites, "
                f"found by {type(self._sites).__name__}, say"
            )

    def _reduce(self, capture: Capture, tensor: Tensor) -> Tensor:
        if not capture.reduce:
            return tensor
        mask = self._inputs.get("attention_mask")
        mask = torch.ones(tensor.shape[:2], device=tensor.device) if mask is None else mask
        # A checkpointed block counts what is saved for backward inside it, and recomputation does
        # not reduce again: keep the reduction out of that count.
        with saved_tensors_hooks(_keep, _keep):
            if capture.reduce == "mean":
                return _mean(tensor, mask.bool())
            return _summary(tensor, mask.bool(), self._sites.causal)


def _grouped(captures: Iterable[Capture]) -> dict[tuple[int, bool], list[Capture]]:
    """Return captures by layer and whether they follow the final norm."""
    groups: dict[tuple[int, bool], list[Capture]] = defaultdict(list)
    for capture in captures:
        assert capture.layer is not None
        groups[capture.layer, capture.normed].append(capture)
    return groups


def _mean(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `[B, S, D]` over the positions that are not padding, `[B, D]`."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    total = tensor.masked_fill(~mask[..., None], 0).sum(1, dtype=wide)
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(tensor.dtype)


def _summary(tensor: Tensor, mask: Tensor, causal: bool) -> Tensor:
    """Return the summarising position of `[B, S, D]`: the first, if causal the last, `[B, D]`."""
    rows, positions = (torch.arange(size, device=tensor.device) for size in mask.shape)
    chosen = (mask * positions).argmax(1) if causal else torch.zeros_like(rows)
    # Indexing copies: a slice would keep the whole tensor alive.
    return tensor[rows, chosen]


def _keep(tensor: Tensor) -> Tensor:
    return tensor
