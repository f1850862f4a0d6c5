"""SDFT: the student learns from itself with the answer before its eyes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pydantic import Field
from torch import Tensor

from gkd_core.api import (
    Batch,
    Items,
    LinearLogits,
    Logits,
    Method,
    Models,
    Step,
    Term,
    View,
    js,
    kl,
    reverse_kl,
)


class SDFT(Method):
    """The divergence from a teacher that reads the same answer behind another prompt.

    L = KL(q(. | x, y_<t) || p(. | c, y_<t)), averaged over the tokens y_t of the answers: x is the
    prompt of the row, c what the teacher is asked in its place (`teacher.prompt`), with a
    demonstration. The teacher is the model itself, as it was or as a moving average
    (`teacher.follow`).
    """

    name = "sdft"
    paper = "Shenfeld, Damani, Hübotter, Agrawal, 2026, arXiv:2601.19897, section 3"
    kinds = ("causal-lm",)
    same_tokenizer = True
    other_prompts = True

    class Config(Method.Config):
        """Options of `sdft`."""

        beta: float = Field(
            1.0,
            ge=0,
            le=1,
            description="Divergence between the teacher's distribution p and the student's q: 1 is "
            "KL(q || p), 0 is KL(p || q), and between them the Jensen-Shannon divergence with this "
            "share of the teacher in the mixture.",
        )

    config: Config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the predictions of each token of the answers."""
        known = teacher.prediction
        view = batch.view(teacher.model.name)
        if view is not batch:
            known = _moved(known, _places(batch, view))
        return {"sdft": self._divergence(student.prediction, known, batch.targets)}

    def _divergence(self, student: Logits, teacher: Logits, over: Items) -> Term:
        beta = self.config.beta
        if beta == 0:
            return kl(student, teacher, over)
        if beta == 1:
            return reverse_kl(student, teacher, over)
        return js(student, teacher, over, beta=beta)


def _places(batch: Batch, view: Batch) -> Tensor:
    """Return the position at which the teacher predicts what the student does at each, `[B, S]`.

    Each row has as many targets for one as for the other; other positions are 0.
    """
    learned, known = batch.targets.mask, view.targets.mask
    places = learned.new_zeros(learned.shape, dtype=known.nonzero().dtype)
    places[learned] = known.nonzero()[:, 1]
    return places


def _moved(logits: Logits, places: Tensor) -> Logits:
    """Return logits of the given positions of each row."""

    def moved(values: Tensor) -> Tensor:
        return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

    if isinstance(logits, LinearLogits):
        return replace(logits, hidden=moved(logits.hidden))
    assert isinstance(logits, Tensor), "a teacher with a prompt of its own is a live model"
    return moved(logits)
