"""What was captured in a forward pass, and the part of it that one method asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gkd_core.errors import MethodError
from gkd_core.hooks.paths import Capture

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.hooks.attention import AttentionInputs
    from gkd_core.models.info import ModelInfo


class Features:
    """The captured tensors of one forward pass.

    Scores and attention distributions are computed when they are first asked for, and kept.

    Attributes:
        tensors: What was captured or computed so far.
        attention: What the scores and distributions that may be asked for are computed from.
    """

    def __init__(self) -> None:
        self.tensors: dict[Capture, Tensor] = {}
        self.attention: dict[Capture, AttentionInputs] = {}

    def __getitem__(self, capture: Capture) -> Tensor:
        if capture in self.attention:
            inputs = self.attention.pop(capture)
            scores = capture.site == "scores"
            self.tensors[capture] = inputs.scores() if scores else inputs.probs()
        return self.tensors[capture]


class View:
    """What one method reads of one model; B samples, S positions, width D, A heads.

    `view.hidden[2]`, `view.hidden[-1]`, `view.hidden.cls[2]` and `view.hidden.normed` are tensors,
    `view.hidden.layers` the numbers of the layers read; likewise for the other sites.

    Attributes:
        model: Shape and name of the model.
        hidden: Residual stream `[B, S, D]` (reduced `[B, D]`); 0 is the embedding output.
        query: Queries after rotary embedding, `[B, A, S, Dh]`.
        key: Keys after rotary embedding, `[B, A_kv, S, Dh]`.
        value: Values, `[B, A_kv, S, Dh]`.
        scores: Scaled and masked dot products before softmax, fp32 `[B, A, S, S]`.
        probs: Attention distributions before dropout, fp32 `[B, A, S, S]`.
        context: Attention output before the output projection, `[B, S, A*Dh]`.
    """

    def __init__(
        self, features: Features, captures: Iterable[Capture], model: ModelInfo, owner: str
    ) -> None:
        """Open the window of a method.

        Args:
            features: What was captured for all methods.
            captures: What this method asked for.
            model: Shape and name of the model.
            owner: Name of the method, for errors.
        """
        self._features = features
        self._captures = frozenset(captures)
        self._owner = owner
        self.model = model
        self.hidden = Layers(self, "hidden")
        self.query = Layers(self, "query")
        self.key = Layers(self, "key")
        self.value = Layers(self, "value")
        self.scores = Layers(self, "scores")
        self.probs = Layers(self, "probs")
        self.context = Layers(self, "context")

    @property
    def logits(self) -> Tensor:
        """Output of the head: `[B, C]` in classification, `[B, S, V]` in language modelling."""
        return self[Capture("logits")]

    @property
    def embedding(self) -> Tensor:
        """Embedding output `[B, S, D]`, the same as `hidden[0]`."""
        return self.hidden[0]

    @property
    def captures(self) -> frozenset[Capture]:
        """What the method asked for."""
        return self._captures

    def __getitem__(self, capture: Capture) -> Tensor:
        """Return a tensor by its canonical key.

        Raises:
            MethodError: The method did not ask for it.
        """
        if capture not in self._captures:
            asked = ", ".join(f"{self.model.name}.{c}" for c in sorted(self._captures)) or "nothing"
            raise MethodError(
                f"{self._owner} did not ask for {self.model.name}.{capture}; it reads: {asked}. "
                "Add it to `reads`"
            )
        return self._features[capture]


class Layers:
    """The layers of one site in a `View`."""

    def __init__(self, view: View, site: str, reduce: str = "") -> None:
        self._view = view
        self._site = site
        self._reduce = reduce

    def __getitem__(self, layer: int) -> Tensor:
        """Return the tensor of a layer; -1 is the last one.

        Raises:
            MethodError: The method did not ask for it.
        """
        number = layer + self._view.model.layers + 1 if layer < 0 else layer
        return self._view[Capture(self._site, number, reduce=self._reduce)]

    @property
    def cls(self) -> Layers:
        """The layers reduced to the summarising position: `[B, D]` each."""
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
