"""`Extractor`: a forward pass that captures exactly the requested tensors and computes no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gkd_core.errors import GkdError, MethodError
from gkd_core.hooks.attention import NAME, switch_attention
from gkd_core.hooks.features import Features
from gkd_core.hooks.forward import (
    Change,
    Forward,
    StopForward,
    current_forward,
    under_way,
)
from gkd_core.hooks.obstacles import obstacle_at
from gkd_core.hooks.packing import without_mask
from gkd_core.hooks.paths import ATTENTION_SITES, LOGITS, POOLED, Capture
from gkd_core.kinds.task_kind import PREPARED

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from gkd_core.losses.logits import ModelLogits
    from gkd_core.models.sites import Sites


class Extractor:
    """Runs a model, and changes and captures tensors on the way.

    A place is hooked when it is first read or changed. The hooks stay, ask the current pass what to
    do, and do nothing outside of one: captures may differ from pass to pass, and recomputation
    under gradient checkpointing repeats the changes but records nothing. A model whose logits are
    not read runs without its head; without gradients it also stops as soon as everything is
    captured.
    """

    def __init__(self, model: PreTrainedModel, sites: Sites) -> None:
        """Wrap a model, which stays as it is until something is captured.

        Args:
            model: The model. The caller controls its train or eval mode.
            sites: Its sites.
        """
        self.model = model
        self.sites = sites
        self._hooked: set[Capture] = set()
        self._handles: list[RemovableHandle] = []
        self._overridden: list[nn.Module] = []
        self._stock_attention: str | None = None
        self._plain_head: bool | None = None

    def run(
        self,
        captures: frozenset[Capture],
        inputs: Mapping[str, Tensor],
        changes: Iterable[Change] = (),
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Features:
        """Run the model on a batch and return the captured tensors.

        Args:
            captures: Tensors to capture. If empty, the model does not run.
            inputs: Inputs of the model's forward method: int64 `[B, S]` each.
            changes: Operations of this pass, in order. Captures see their results.
            options: Other arguments of the model's forward method, such as a key-value cache.

        Raises:
            MethodError: The model has no such site.
        """
        if not captures:
            return Features()
        forward = self._prepare(captures, changes, inputs)
        forward.defers_logits = self._can_defer(forward, inputs)
        with under_way(forward), suppress(StopForward):
            self._forward(forward, inputs, options)
        features = forward.finish()
        if LOGITS in captures and features.head is None and not hasattr(self.model, PREPARED):
            features.head = self.sites.classifier
        if self.model.dtype == torch.bfloat16:
            features.widen()
        return features

    def predict(
        self,
        inputs: Mapping[str, Tensor],
        changes: Iterable[Change] = (),
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> ModelLogits:
        """Return the model's logits, dense or not yet computed; arguments as for `run`.

        Raises:
            MethodError: The model has no head.
        """
        found = self.run(frozenset({LOGITS}), inputs, changes, options)
        return found.deferred or found[LOGITS]

    @contextmanager
    def changed(self, changes: Iterable[Change], inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """Apply operations when the model is called on `inputs` inside the context."""
        with under_way(self._prepare((), changes, inputs)):
            yield

    def remove(self) -> None:
        """Remove every hook from the model and restore its original attention function."""
        for handle in self._handles:
            handle.remove()
        for module in self._overridden:
            del module.forward
        self._handles.clear()
        self._overridden.clear()
        self._hooked.clear()
        if self._stock_attention is not None:
            switch_attention(self.model, self._stock_attention)
            self._stock_attention = None

    def _prepare(
        self, captures: Iterable[Capture], changes: Iterable[Change], inputs: Mapping[str, Tensor]
    ) -> Forward:
        forward = Forward(self.sites, captures, changes, inputs)
        for place in sorted(forward.places - self._hooked):
            self._hook(place)
            self._hooked.add(place)
        if self._stock_attention is not None:
            switch_attention(self.model, NAME)
        return forward

    def _forward(
        self, forward: Forward, inputs: Mapping[str, Tensor], given: Mapping[str, Any]
    ) -> None:
        # Where nothing is generated, a key-value cache would only take memory.
        options = ({"use_cache": False} if self.sites.causal else {}) | dict(given)
        read = without_mask(inputs)
        runs = self.model.base_model if {LOGITS, POOLED}.isdisjoint(forward.places) else self.model
        try:
            runs(**read, **options)
        except (GkdError, StopForward):
            raise
        except Exception as error:
            ids = inputs.get("input_ids")
            shape = "" if ids is None else f" of shape {list(ids.shape)}"
            where = f"{type(self.model).__name__} (model type {self.model.config.model_type!r})"
            error.add_note(f"in the forward pass of {where} on tokens{shape}")
            raise

    def _mine(self) -> Forward | None:
        """Return the current pass if it is one of this model."""
        forward = current_forward()
        return forward if forward is not None and forward.sites is self.sites else None

    def _hook(self, place: Capture) -> None:
        """Register the hook that shows a place to the current pass."""
        obstacle = obstacle_at(place, self.sites)
        if obstacle is not None:
            raise MethodError(f"{place} cannot be captured: {obstacle}")
        if place.site in ATTENTION_SITES:
            self._hook_attention()
        elif place.site == "block":
            self._override(self._block(place), self._swappable(place))
        elif place == LOGITS:
            self._handles.append(self.model.register_forward_hook(self._see_logits))
        elif place == POOLED:
            assert self.sites.classifier is not None, "or there would be an obstacle"
            hook = self.sites.classifier.register_forward_pre_hook(self._see_pooled)
            self._handles.append(hook)
        elif place.site == "neurons":
            self._handles.append(self._hook_input(self._ffn(place), place))
        elif place == Capture("hidden", 0):
            self._handles.append(self._hook_input(self.sites.blocks[0], place))
        elif place.normed:
            self._hook_norm(place)
        else:
            self._handles.append(self._hook_output(self._module(place), place))

    def _module(self, place: Capture) -> nn.Module:
        """Return the module whose output is found at a place."""
        return self._ffn(place) if place.site == "ffn" else self._block(place)

    def _ffn(self, place: Capture) -> nn.Module:
        return self.sites.ffns[(place.layer or 0) - 1]

    def _block(self, place: Capture) -> nn.Module:
        assert place.layer is not None
        return self.sites.blocks[place.layer - 1]

    def _hook_output(self, module: nn.Module, place: Capture) -> RemovableHandle:
        def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            forward = self._mine()
            if forward is None:
                return None
            if isinstance(output, tuple):
                return (forward.visit(place, output[0]), *output[1:])
            if isinstance(output, list):  # as in the first GPT
                return [forward.visit(place, output[0]), *output[1:]]
            return _visit(forward, place, output)

        return module.register_forward_hook(see)

    def _hook_norm(self, place: Capture) -> None:
        """Show the output of the final norm, and make sure that it is that of the last block."""
        norm = self.sites.final_norm
        assert norm is not None, "or the place would not be `normed`"

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            forward = self._mine()
            if forward is not None:
                forward.left_blocks = True

        def check(module: nn.Module, args: tuple[Any, ...]) -> None:
            forward = self._mine()
            if forward is not None and not forward.left_blocks:
                raise MethodError(
                    f"{place} cannot be captured: the norm found in {type(self.model).__name__} "
                    "runs before its last block. A plugin can name the right one with a `Sites` "
                    "class"
                )

        self._handles += [
            self._block(place).register_forward_hook(leave),
            norm.register_forward_pre_hook(check),
            self._hook_output(norm, place),
        ]

    def _hook_input(self, module: nn.Module, place: Capture) -> RemovableHandle:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            forward = self._mine()
            if forward is None:
                return None
            if args:
                return (_visit(forward, place, args[0]), *args[1:]), kwargs
            hidden = forward.visit(place, kwargs["hidden_states"])
            return args, {**kwargs, "hidden_states": hidden}

        return module.register_forward_pre_hook(see, with_kwargs=True)

    def _hook_attention(self) -> None:
        if self._stock_attention is None:
            self._stock_attention = self.model.config._attn_implementation

    def _see_logits(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        forward = self._mine()
        if forward is None or forward.defers_logits:
            return None
        if not hasattr(output, "logits"):
            raise MethodError(
                f"{type(self.model).__name__} has no head, so its logits cannot be read. Load it "
                "with a head for its task"
            )
        output.logits = forward.visit(LOGITS, output.logits)
        return output

    def _see_pooled(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Show the vector that the head classifies; a decoder's head sees every position."""
        forward = self._mine()
        if forward is None:
            return None
        hidden = args[0]
        if hidden.dim() == 2:
            return (forward.visit(POOLED, hidden), *args[1:])
        if not self.sites.causal:
            raise MethodError(
                f"pooled cannot be captured: the head of {type(self.model).__name__} classifies "
                "more than one vector of a row"
            )
        at = forward.summaries_of(hidden)
        pooled = hidden[at]
        changed = forward.visit(POOLED, pooled)
        if changed is pooled:
            return None
        return (hidden.index_put(at, changed), *args[1:])

    def _swappable(self, place: Capture) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        assert place.layer is not None
        layer = place.layer

        def swap(stock: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                forward = self._mine()
                replacement = None if forward is None else forward.replacement(layer)
                return (replacement or stock)(*args, **kwargs)

            return call

        return swap

    def _can_defer(self, forward: Forward, inputs: Mapping[str, Tensor]) -> bool:
        """Whether the logits are read, unchanged, and a linear map of the head's input."""
        if LOGITS not in forward.pending or forward.changes(LOGITS) or self.sites.head is None:
            return False
        if hasattr(self.model, PREPARED):  # the kind of task makes its logits of the head's
            return False
        if self._plain_head is None:
            self._override(self.sites.head, self._deferring)
            self._plain_head = self._probe_head(inputs)
        return self._plain_head

    def _deferring(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        head = self.sites.head
        assert head is not None

        def call(hidden: Tensor) -> Any:
            forward = self._mine()
            if forward is None or not forward.defers_logits:
                return stock(hidden)
            return forward.defer_logits(hidden, head)

        return call

    def _probe_head(self, inputs: Mapping[str, Tensor]) -> bool:
        """Test with one row whether the model returns the output of its head unchanged."""
        row = {name: value[:1] for name, value in inputs.items()}
        probe = Forward(self.sites, (), (), row)
        probe.defers_logits = True
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), under_way(probe):
                logits = self.model(**row).logits
        except (RuntimeError, IndexError):
            return False
        finally:
            self.model.train(was_training)
        made = probe.placeholder
        # Hooks of ZeRO-3 return another tensor of the same memory.
        return made is not None and (logits is made or logits.is_set_to(made))

    def _override(
        self, module: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        module.forward = wrap(module.forward)
        self._overridden.append(module)


def _visit(forward: Forward, place: Capture, tensor: Tensor) -> Tensor:
    """Show a tensor to a pass; OPT's feed-forward block runs on the rows of all samples, joined."""
    if tensor.dim() > 2:
        return forward.visit(place, tensor)
    rows: Tensor = tensor.reshape(forward.rows, -1, tensor.shape[-1])
    return forward.visit(place, rows).flatten(0, 1)
