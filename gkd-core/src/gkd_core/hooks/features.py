"""The captured tensors of a forward pass, and one method's view of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from gkd_core.distributed.heads import DividedHeads
from gkd_core.errors import MethodError
from gkd_core.hooks.paths import ATTENTION_SITES, LOGITS, MAIN, POOLED, Capture
from gkd_core.losses.logits import LinearHead, LinearLogits, Logits
from gkd_core.losses.relation import Relation, self_relation
from gkd_core.losses.top_k import TopKLogits

if TYPE_CHECKING:
    from gkd_core.contract.model_info import ModelInfo


Answer: TypeAlias = Tensor | Logits | Relation
"""A value that a method may read: a tensor, logits in any form, or the site `attention`."""


class Features:
    """The captured tensors of one forward pass.

    Scores, attention distributions and the logits of a language model are computed on first access
    and kept. The same holds for gathering the heads of a divided model.

    Attributes:
        heads: How the heads of the model are divided, if they are.
        tensors: Tensors captured or computed so far, whole.
        shares: Captured tensors of this rank's heads, if they are divided.
        attention: Relations from which requested scores and distributions can be computed.
        deferred: The logits in factored form, if they were not computed in the pass.
        likeliest: The logits, if only the likeliest are known.
        head: The last layer of the head, if the logits are its output.
    """

    def __init__(self, heads: DividedHeads | None = None) -> None:
        self.heads = heads
        self.tensors: dict[Capture, Tensor] = {}
        self.shares: dict[Capture, Tensor] = {}
        self.attention: dict[Capture, Relation] = {}
        self.deferred: LinearLogits | None = None
        self.likeliest: TopKLogits | None = None
        self.head: Callable[[Tensor], Logits] | None = None

    @classmethod
    def of(cls, found: Mapping[Capture, Answer]) -> Features:
        """Return tensors that no pass of a model here has captured.

        Args:
            found: Tensors, logits in any form, and the relations of the site `attention`.
        """
        features = cls()
        for capture, value in found.items():
            if isinstance(value, Relation):
                features.attention[capture] = value
            elif isinstance(value, LinearLogits):
                features.deferred = value
                features.head = LinearHead(value.weight, value.bias, value.divided)
            elif isinstance(value, TopKLogits):
                features.likeliest = value
            else:
                features.tensors[capture] = value
        return features

    def keep(self, capture: Capture, tensor: Tensor) -> None:
        """Store a captured tensor."""
        divided = self.heads is not None and capture.site in ATTENTION_SITES
        (self.shares if divided else self.tensors)[capture] = tensor

    def __getitem__(self, capture: Capture) -> Tensor:
        if capture not in self.tensors:
            self.tensors[capture] = self._compute(capture)
        return self.tensors[capture]

    def widen(self) -> None:
        """Convert the captured tensors to fp32."""
        self.tensors = {capture: tensor.float() for capture, tensor in self.tensors.items()}

    @property
    def prediction(self) -> Logits:
        """The logits in the form that they are known in."""
        return self.deferred or self.likeliest or self[LOGITS]

    def gather(self) -> None:
        """Gather everything that is divided over ranks, which then continue independently.

        All of the ranks call this before the next pass.
        """
        for capture in self.shares:
            self.tensors[capture] = self._compute(capture)
        self.shares.clear()
        self.attention = {c: relation.whole() for c, relation in self.attention.items()}
        if isinstance(self.head, LinearHead):
            self.head = replace(self.head, together=False)
        whole = None if self.deferred is None else self.deferred.whole()
        if isinstance(whole, LinearLogits):
            self.deferred = whole
        elif whole is not None:
            self.tensors[LOGITS], self.deferred = whole, None

    def held(self) -> list[Tensor]:
        """Return every tensor held, including the weights of a head."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.moved(note)
        if self.deferred is not None:
            head = self.deferred.weight, self.deferred.bias
            found.extend(tensor for tensor in head if tensor is not None)
        return found

    def moved(
        self, move: Callable[[Tensor], Tensor], captures: Container[Capture] | None = None
    ) -> Features:
        """Return a copy with `move` applied to each tensor.

        The weights of a head stay: no pass made them.

        Args:
            move: The function to apply.
            captures: Captures to return. Default: all.
        """

        def some(found: dict[Capture, Any]) -> Iterable[tuple[Capture, Any]]:
            return ((c, x) for c, x in found.items() if captures is None or c in captures)

        moved = Features(self.heads)
        moved.tensors = {c: move(tensor) for c, tensor in some(self.tensors)}
        moved.shares = {c: move(tensor) for c, tensor in some(self.shares)}
        moved.attention = {c: relation.moved(move) for c, relation in some(self.attention)}
        if captures is None or LOGITS in captures:
            moved.head = self.head
            if self.deferred is not None:
                moved.deferred = replace(self.deferred, hidden=move(self.deferred.hidden))
            if self.likeliest is not None:
                moved.likeliest = self.likeliest.moved(move)
        return moved

    def relation(self, capture: Capture, heads: int | None, mask: Tensor) -> Relation:
        """Relate the vectors of a layer to each other; arguments as for `Layers.relation`."""
        share = self.shares.get(capture)
        if share is None or self.heads is None or self.heads.repeats(capture.site) > 1:
            return _split(self[capture], heads, mask)
        ranks = self.heads.group.size()
        count = heads or share.shape[1] * ranks
        if count % ranks:
            return _split(self[capture], heads, mask)
        divided = DividedHeads(self.heads.group, count, count)
        return replace(_split(share, count // ranks, mask), heads=divided)

    def _compute(self, capture: Capture) -> Tensor:
        if capture in self.shares:
            assert self.heads is not None, "or there would be no shares"
            return self.heads.gather(capture.site, self.shares[capture])
        if capture == LOGITS and self.likeliest is not None:
            return self.likeliest.dense()
        if capture == LOGITS and self.deferred is not None:
            return self.deferred.dense()
        inputs = self.attention.pop(capture)
        return inputs.scores() if capture.site == "scores" else inputs.probs()


class View:
    """The tensors of one model that one method reads; B samples, S positions, width D, A heads.

    `view.hidden[2]`, `view.hidden[-1]`, `view.hidden.cls[2]` and `view.hidden.normed` are tensors,
    `view.hidden.layers` the numbers of the layers read; likewise for the other sites.

    There are no reference cycles, so that the captured tensors are freed with the last view.

    Attributes:
        model: Shape and name of the model.
    """

    def __init__(
        self,
        features: Features,
        captures: Iterable[Capture],
        model: ModelInfo,
        owner: str,
        passes: Mapping[str, View] | None = None,
    ) -> None:
        """Create the view of a method.

        Args:
            features: The captured tensors of all methods.
            captures: The captures that this method requested.
            model: Shape and name of the model.
            owner: Name of the method, for errors.
            passes: Views of its own passes.
        """
        self._passes = passes or {}
        self._features = features
        self._captures = frozenset(captures)
        self._owner = owner
        self._other_logits: Tensor | None = None
        self.model = model

    @property
    def hidden(self) -> Layers:
        """Residual stream `[B, S, D]` (reduced `[B, D]`); 0 is the embedding output."""
        return Layers(self, "hidden")

    @property
    def query(self) -> Layers:
        """Queries after rotary embedding, `[B, A, S, Dh]`."""
        return Layers(self, "query")

    @property
    def key(self) -> Layers:
        """Keys after rotary embedding, `[B, A_kv, S, Dh]`."""
        return Layers(self, "key")

    @property
    def value(self) -> Layers:
        """Values, `[B, A_kv, S, Dh]`."""
        return Layers(self, "value")

    @property
    def attention(self) -> Relations:
        """The queries, keys and mask that determine the scores, as a `Relation`."""
        return Relations(self)

    @property
    def scores(self) -> Layers:
        """Scaled and masked dot products before softmax, fp32 `[B, A, S, S]`."""
        return Layers(self, "scores")

    @property
    def probs(self) -> Layers:
        """Attention distributions before dropout, fp32 `[B, A, S, S]`."""
        return Layers(self, "probs")

    @property
    def context(self) -> Layers:
        """Attention output before the output projection, `[B, S, A*Dh]`."""
        return Layers(self, "context")

    @property
    def neurons(self) -> Layers:
        """Feed-forward neurons after their activation, `[B, S, F]`.

        With a gate, times the up projection: the input of the block's last linear layer.
        """
        return Layers(self, "neurons")

    @property
    def ffn(self) -> Layers:
        """Output of the feed-forward block, before dropout and residual, `[B, S, D]`."""
        return Layers(self, "ffn")

    @property
    def logits(self) -> Tensor:
        """Output of the head: `[B, C]` in classification, `[B, S, V]` in language modeling.

        For a loss, prefer `prediction`, which need not be held as a whole.
        """
        return self[LOGITS]

    @property
    def prediction(self) -> Logits:
        """The logits for a loss: a tensor or, in language modeling, a factored form."""
        self._check(LOGITS)
        return self._features.prediction if self._other_logits is None else self._other_logits

    @property
    def pooled(self) -> Tensor:
        """The input vector of the classification head's last linear layer, `[B, D]`."""
        return self[POOLED]

    def head(self, hidden: Tensor) -> Logits:
        """Return the logits that the last layer of the model's head gives for other vectors.

        The method reads `logits` of the model. Its weights may be sharded: the gradient of the
        vectors is complete on every rank.

        Args:
            hidden: As the layer sees them: `[B, S, D]` in language modeling, `[B, D]` in
                classification; replicated on the ranks that share the student.

        Raises:
            MethodError: The method does not read the logits, or they are not the output of a linear
                layer.
        """
        self._check(LOGITS)
        if self._features.head is None:
            raise MethodError(
                f"{self._owner} applies the head of {self.model.name}, but the logits of this "
                f"{self.model.family} model are not the output of a linear layer"
            )
        return self._features.head(hidden)

    def with_logits(self, logits: Tensor) -> View:
        """Return the same view with other logits in the main pass."""
        view = copy.copy(self)
        view._other_logits = logits
        return view

    def at(self, name: str) -> View:
        """Return the view of one of the method's own passes.

        Raises:
            MethodError: It has no such pass, or reads nothing of this model in it.
        """
        if name == MAIN:
            return self
        if name not in self._passes:
            known = ", ".join(self._passes) or "none"
            raise MethodError(
                f"{self._owner} reads nothing of {self.model.name} in a pass '{name}'; its own "
                f"passes there: {known}. Return the pass in `passes` and its paths in `reads`"
            )
        return self._passes[name]

    @property
    def embedding(self) -> Tensor:
        """Embedding output `[B, S, D]`, the same as `hidden[0]`."""
        return self.hidden[0]

    @property
    def captures(self) -> frozenset[Capture]:
        """The captures that the method requested."""
        return self._captures

    def __getitem__(self, capture: Capture) -> Tensor:
        """Return a tensor by its canonical key.

        Raises:
            MethodError: The method did not request it.
        """
        self._check(capture)
        if capture == LOGITS and self._other_logits is not None:
            return self._other_logits
        return self._features[capture]

    def relation(self, capture: Capture) -> Relation:
        """Return the relation that determines the scores of a layer.

        Raises:
            MethodError: The method did not request it.
        """
        self._check(capture)
        return self._features.attention[capture]

    def relate(self, capture: Capture, heads: int | None, mask: Tensor) -> Relation:
        """Relate the vectors of a layer to each other; arguments as for `Layers.relation`.

        Raises:
            MethodError: The method did not request it.
        """
        self._check(capture)
        return self._features.relation(capture, heads, mask)

    def _check(self, capture: Capture) -> None:
        if capture not in self._captures:
            reads = ", ".join(f"{self.model.name}.{c}" for c in sorted(self._captures)) or "nothing"
            raise MethodError(
                f"{self._owner} did not request {self.model.name}.{capture}; it reads: {reads}. "
                "Add it to `reads`"
            )


class Relations:
    """The layers of the site `attention` in a `View`."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __getitem__(self, layer: int) -> Relation:
        """Return the relation of a layer; -1 is the last one.

        Raises:
            MethodError: The method did not request it.
        """
        number = layer + self._view.model.layers + 1 if layer < 0 else layer
        return self._view.relation(Capture("attention", number))


class Layers:
    """The layers of one site in a `View`."""

    def __init__(self, view: View, site: str, reduce: str = "") -> None:
        self._view = view
        self._site = site
        self._reduce = reduce

    def __getitem__(self, layer: int) -> Tensor:
        """Return the tensor of a layer; -1 is the last one.

        Raises:
            MethodError: The method did not request it.
        """
        return self._view[self._capture(layer)]

    def relation(self, layer: int, mask: Tensor, heads: int | None = None) -> Relation:
        """Relate every position to every other by the dot products of queries, keys or values.

        This is `self_relation` of the concatenated vectors of all heads. If the model is divided
        over ranks, each rank relates its own heads where they can be split evenly.

        Args:
            layer: The layer; -1 is the last one.
            mask: True at positions that are not padding, bool `[B, S]`.
            heads: Relation heads to split the vectors into. Default: the model's own.

        Raises:
            MethodError: The method did not request the layer.
            ValueError: The vectors cannot be split into that many heads.
        """
        return self._view.relate(self._capture(layer), heads, mask)

    def _capture(self, layer: int) -> Capture:
        number = layer + self._view.model.layers + 1 if layer < 0 else layer
        return Capture(self._site, number, reduce=self._reduce)

    @property
    def cls(self) -> Layers:
        """The layers reduced to the summary position: `[B, D]` each."""
        return Layers(self._view, self._site, "cls")

    @property
    def mean(self) -> Layers:
        """The layers reduced to the mean over the positions that are not padding: `[B, D]` each."""
        return Layers(self._view, self._site, "mean")

    @property
    def normed(self) -> Tensor:
        """The last layer after the model's final norm."""
        return self._view[Capture(self._site, self._view.model.layers, True, self._reduce)]

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers read, ascending."""
        return sorted(
            capture.layer
            for capture in self._view.captures
            if capture.layer is not None
            and (capture.site, capture.normed, capture.reduce) == (self._site, False, self._reduce)
        )


def _split(vectors: Tensor, heads: int | None, mask: Tensor) -> Relation:
    """Relate `[B, A, S, Dh]` to themselves, split into `heads` heads unless that is None."""
    return self_relation(vectors.transpose(1, 2).flatten(2), heads or vectors.shape[1], mask)
