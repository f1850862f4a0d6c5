"""`Forward`: the captures and changes of one forward pass, visible to the hooks in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gkd_core.distributed.heads import heads_of
from gkd_core.errors import MethodError
from gkd_core.hooks.features import Features
from gkd_core.hooks.paths import ATTENTION_SITES, LOGITS, Capture
from gkd_core.losses.logits import LinearHead
from gkd_core.losses.vocabulary import DividedVocabulary

if TYPE_CHECKING:
    from gkd_core.losses.relation import Relation
    from gkd_core.models.sites import Sites
    from gkd_core.parallel.layers import VocabularyHead

COMPUTED_LATER = ("attention", "scores", "probs")


class StopForward(Exception):
    """Raised when every capture is done, and the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class Change:
    """An operation bound to one place of a model.

    Attributes:
        place: A `Capture` without reduction; `block` stands for the module itself.
        apply: Out-of-place function of the tensor at the place. For `block`: the function called
            in its stead, with its arguments.
    """

    place: Capture
    apply: Callable[..., Any]


class Forward:
    """One forward pass: its pending captures, its changes, and the tensors captured so far."""

    def __init__(
        self,
        sites: Sites,
        captures: Iterable[Capture],
        changes: Iterable[Change],
        inputs: Mapping[str, Tensor],
    ) -> None:
        self.sites = sites
        self.heads = heads_of(sites.model)
        self.features = Features(self.heads)
        self.pending = set(captures)
        self.defers_logits = False
        self.left_blocks = False
        self.placeholder: Tensor | None = None
        self._gradients = torch.is_grad_enabled()
        # Logits come last. Hooks of ZeRO-3 on a head must see it end, to release its weights.
        self._stops = bool(self.pending) and not self._gradients and LOGITS not in self.pending
        self.rows = len(next(iter(inputs.values()), ()))
        self._mask = inputs.get("attention_mask")
        self._ids = inputs.get("input_ids")
        self._captures: dict[Capture, list[Capture]] = defaultdict(list)
        # Sorted, because the order determines in which order autograd sums a tensor's gradients.
        for capture in sorted(self.pending):
            self._captures[place_of(capture, sites)].append(capture)
        self._changes: dict[Capture, list[Callable[..., Any]]] = defaultdict(list)
        for change in changes:
            self._changes[place_of(change.place, sites)].append(change.apply)
        self.places = frozenset([*self._captures, *self._changes])
        self._attentions = {
            sites.attentions[place.layer - 1]: place.layer
            for place in self.places
            if place.site in ATTENTION_SITES and place.layer and sites.attentions
        }

    def visit(self, place: Capture, tensor: Tensor) -> Tensor:
        """Apply the changes at a place, capture the tensor, and return it to the model."""
        if place in self._changes:
            tensor = self._change(place, tensor)
        if not _recomputing():
            for capture in self._captures.get(place, ()):
                self.features.keep(capture, self._reduce(capture, tensor))
                self.pending.discard(capture)
            self.stop_if_complete()
        return tensor

    def replacement(self, layer: int) -> Callable[..., Any] | None:
        """Return the replacement of a swapped block, or None."""
        swaps = self._changes.get(Capture("block", layer))
        return swaps[-1] if swaps else None

    def changes(self, place: Capture) -> bool:
        """Whether an operation changes a place."""
        return place in self._changes

    @property
    def mask(self) -> Tensor | None:
        """The mask of the positions that are not padding, `[B, S]`, if the inputs have one."""
        return self._mask

    def mask_of(self, tensor: Tensor) -> Tensor:
        """Return the mask of the positions that are not padding, `[B, S]`."""
        if self._mask is None:
            return torch.ones(tensor.shape[:2], dtype=torch.long, device=tensor.device)
        return self._mask

    def summaries_of(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and positions of the summarizing tokens: the first, or the last if causal."""
        mask = self.mask_of(tensor)
        rows = torch.arange(len(mask), device=mask.device)
        if not self.sites.causal:
            return rows, torch.zeros_like(rows)
        # A head that classifies rows skips the token that its model pads with.
        skips = self.sites.classifier is not None
        padding = getattr(self.sites.model.config, "pad_token_id", None) if skips else None
        return rows, last_tokens(mask, self._ids, padding)

    def attention_layer(self, module: nn.Module) -> int | None:
        """Return the layer number of an attention module that is read or changed, or None."""
        return self._attentions.get(module)

    def enter_attention(
        self, layer: int, relation: Relation, value: Tensor
    ) -> tuple[Relation, Tensor]:
        """Change and capture the inputs of a layer's attention."""
        if self._gradients and not torch.is_grad_enabled() and not _recomputing():
            raise MethodError(
                "attention inside reentrant gradient checkpointing has no gradient; enable "
                "checkpointing with use_reentrant=False"
            )
        relation = replace(
            relation,
            query=self.visit(Capture("query", layer), relation.query),
            key=self.visit(Capture("key", layer), relation.key),
        )
        value = self.visit(Capture("value", layer), value)
        if not _recomputing():
            self._note_relation(layer, relation)
        return relation, value

    def computes_probs(self, layer: int) -> bool:
        """Whether scores or distributions are changed, so that fast attention cannot be used."""
        return any(self.changes(Capture(site, layer)) for site in ("scores", "probs"))

    def defer_logits(self, hidden: Tensor, head: nn.Linear | VocabularyHead) -> Tensor:
        """Store the logits in factored form, and return an empty tensor in their place."""
        weight: Tensor = head.weight
        bias: Tensor | None = head.bias
        if not torch.is_grad_enabled():
            # ZeRO-3 may release the weights when the head has run; the detached ones stay.
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        self.features.head = _linear_head(weight, bias, head)
        self.features.deferred = self.features.head(hidden)
        self.pending.discard(LOGITS)
        self.placeholder = hidden.new_empty((*hidden.shape[:-1], 0))
        return self.placeholder

    def stop_if_complete(self) -> None:
        """Raise `StopForward` if nothing is left to capture in this pass."""
        if self._stops and not self.pending:
            raise StopForward

    def finish(self) -> Features:
        """Return the captured tensors.

        Recomputation under gradient checkpointing keeps this object alive, but not the tensors.
        """
        if self.pending:
            missing = ", ".join(str(capture) for capture in sorted(self.pending))
            raise MethodError(
                f"{type(self.sites.model).__name__} did not compute {missing} at the sites "
                f"found by {type(self.sites).__name__}"
            )
        features, self.features = self.features, Features()
        self._mask = self._ids = None
        return features

    def _change(self, place: Capture, tensor: Tensor) -> Tensor:
        """Apply the operations at a place, which see all heads of a divided model."""
        divided = self.heads if place.site in ATTENTION_SITES else None
        whole = tensor if divided is None else divided.gather(place.site, tensor)
        for apply in self._changes[place]:
            whole = apply(whole)
        return whole if divided is None else divided.shard(place.site, whole)

    def _note_relation(self, layer: int, relation: Relation) -> None:
        """Keep the relation for scores and distributions, unless the pass computes them anyway."""
        later = ("attention",) if self.computes_probs(layer) else COMPUTED_LATER
        for site in later:
            for capture in self._captures.get(Capture(site, layer), ()):
                self.features.attention[capture] = replace(relation, heads=self.heads)
                self.pending.discard(capture)
        self.stop_if_complete()

    def _reduce(self, capture: Capture, tensor: Tensor) -> Tensor:
        if not capture.reduce:
            return tensor
        mask = self.mask_of(tensor)
        # A checkpointed block counts the tensors saved for backward inside it, and recomputation
        # does not reduce again: keep the reduction out of that count.
        with saved_tensors_hooks(_keep, _keep):
            if capture.reduce == "mean":
                return _mean(tensor, mask.bool())
            return tensor[self.summaries_of(tensor)]


def place_of(capture: Capture, sites: Sites) -> Capture:
    """Return the place of a capture in the model: post-norm models have no norm after the last."""
    normed = capture.normed and sites.final_norm is not None
    return replace(capture, reduce="", normed=normed)


def last_tokens(mask: Tensor, ids: Tensor | None = None, padding: int | None = None) -> Tensor:
    """Return the position of the last token of each row that is not padding, int64 `[B]`.

    Args:
        mask: 1 at tokens and 0 at padding, `[B, S]`.
        ids: The tokens, `[B, S]`.
        padding: A token that is passed over at the end of a row, unless it has no other.
    """
    real = mask.long()
    read = real if ids is None or padding is None else real * (ids != padding)
    order = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (real + read * order).argmax(1)


_current: ContextVar[tuple[Forward, bool] | None] = ContextVar("forward", default=None)


def current_forward() -> Forward | None:
    """Return the current forward pass, or the one that is being recomputed."""
    found = _current.get()
    return None if found is None else found[0]


@contextmanager
def under_way(forward: Forward) -> Iterator[None]:
    """Make a forward pass the current one inside the context."""
    token = _current.set((forward, False))
    try:
        yield
    finally:
        _current.reset(token)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the `context_fn` of a checkpoint: recomputation knows which pass it repeats."""
    forward = current_forward()
    return nullcontext(), nullcontext() if forward is None else _Recomputation(forward)


class _Recomputation(AbstractContextManager[None]):
    """Lets the hooks repeat the changes of a pass. A graph may be recomputed several times."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._tokens: list[Token[Any]] = []

    def __enter__(self) -> None:
        self._tokens.append(_current.set((self._forward, True)))

    def __exit__(self, *error: object) -> None:
        _current.reset(self._tokens.pop())


def _linear_head(
    weight: Tensor, bias: Tensor | None, head: nn.Linear | VocabularyHead
) -> LinearHead:
    if isinstance(head, nn.Linear):
        return LinearHead(weight, bias)
    vocabulary = DividedVocabulary(head.tp_group, head.words)
    return LinearHead(weight, vocabulary.fill_up(weight, bias), vocabulary)


def _recomputing() -> bool:
    found = _current.get()
    return found is not None and found[1]


def _mean(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `[B, S, D]` over the positions that are not padding, `[B, D]`."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    total = tensor.masked_fill(~mask[..., None], 0).sum(1, dtype=wide)
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(tensor.dtype)


def _keep(tensor: Tensor) -> Tensor:
    return tensor
