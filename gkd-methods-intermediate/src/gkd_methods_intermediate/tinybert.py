"""TinyBERT: distillation of every layer of a Transformer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from gkd_core.api import (
    Batch,
    LayerMap,
    Method,
    Models,
    Schedule,
    Step,
    Term,
    View,
    layer_pairs,
    mse,
    relation_mse,
    same_heads,
)
from gkd_methods_intermediate.projection import linear_projection


class TinyBERT(Method):
    """Match the embeddings and every layer's attention scores and hidden states.

    L = MSE(E_s W_e, E_t) + sum_l MSE(H_s^l W_h, H_t^g(l)) + MSE(A_s^l, A_t^g(l)) over the
    student's blocks l (section 3.1); g is the layer map. A are the attention scores before softmax,
    averaged over heads and unmasked keys. W_e and W_h are trained. The paper distills the
    predictions last: a stage with `soft` in the recipe `tinybert`.
    """

    name = "tinybert"
    paper = "Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, Findings of EMNLP 2020, arXiv:1909.10351"
    kinds = (
        *Method.kinds,
        "multi-label",
        "token-classification",
        "multiple-choice",
        "span-extraction",
        "embedding",
    )

    class Config(Method.Config):
        """Options of `tinybert`."""

        layers: LayerMap = Field(
            "spaced",
            description="Teacher layer of each student layer: a strategy, or a list of [student, "
            "teacher] pairs.",
        )
        projection: Literal["separate", "shared"] = Field(
            "separate",
            description="`separate`: W_e for the embedding and W_h for all hidden states, as in "
            "the paper; `shared`: one for both, as in the released code.",
        )
        embedding_weight: Schedule = Field(
            Schedule.parse(1.0), description="Weight of the embedding term; may be a schedule."
        )
        hidden_weight: Schedule = Field(
            Schedule.parse(1.0), description="Weight of the hidden states; may be a schedule."
        )
        attention_weight: Schedule = Field(
            Schedule.parse(1.0), description="Weight of the attention scores; may be a schedule."
        )

    config: Config

    def check(self, models: Models) -> None:
        """Reject models whose heads do not correspond one to one, and layers that do not exist."""
        self._pairs(models)
        same_heads(
            models,
            self.name,
            "Give the student as many heads as the teacher (student.heads), or use minilmv2, which "
            "works with any number",
        )

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        """Build W_e and W_h, or one projection for both."""
        student, teacher = models.pair
        names = ["shared"] if self.config.projection == "shared" else ["embedding", "hidden"]
        return {name: linear_projection(student.hidden_size, teacher.hidden_size) for name in names}

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the embeddings, and the hidden states and attention of all matched layers."""
        yield "student.embedding"
        yield "teacher.embedding"
        for student, teacher in self._pairs(models):
            for site in ("hidden", "attention"):
                yield f"student.{site}[{student}]"
                yield f"teacher.{site}[{teacher}]"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare embeddings, hidden states and attention scores."""
        over = batch.tokens
        pairs = self._pairs(Models(student.model, teacher.model))
        embedding = mse(self._project("embedding", student.embedding), teacher.embedding, over)
        hidden = [
            mse(self._project("hidden", student.hidden[s]), teacher.hidden[t], over)
            for s, t in pairs
        ]
        attention = [
            relation_mse(student.attention[s], teacher.attention[t], over) for s, t in pairs
        ]
        embedding_weight, hidden_weight, attention_weight = (
            schedule.at(step)
            for schedule in (
                self.config.embedding_weight,
                self.config.hidden_weight,
                self.config.attention_weight,
            )
        )
        return {
            "embedding": embedding_weight * embedding,
            "hidden": hidden_weight * Term.sum(hidden),
            "attention": attention_weight * Term.sum(attention),
        }

    def _pairs(self, models: Models) -> Sequence[tuple[int, int]]:
        """Return the pairs of layers to compare."""
        student, teacher = models.pair
        return layer_pairs(self.config.layers, student.layers, teacher.layers)

    def _project(self, name: str, states: Tensor) -> Tensor:
        """Project the student's states `[B, S, D_s]` to the teacher's width, `[B, S, D_t]`."""
        projection = self.modules["shared" if self.config.projection == "shared" else name]
        projected: Tensor = projection(states)
        return projected
