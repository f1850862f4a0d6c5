"""MiniLM: deep self-attention distillation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from gkd_core.api import (
    Batch,
    Method,
    Models,
    Schedule,
    Step,
    Term,
    View,
    relation_kl,
    same_heads,
)


class MiniLM(Method):
    """Match the last self-attention module: attention distributions and value relations.

    L = KL(A_t || A_s) + KL(R_t || R_s), averaged over heads and non-padding positions. A is the
    attention distribution, R = softmax(V V^T / sqrt(d_k)) the relation of the values V (sections
    3.1 and 3.2). Widths may differ; the number of heads may not.
    """

    name = "minilm"
    paper = "Wang, Wei, Dong, Bao, Yang, Zhou, NeurIPS 2020, arXiv:2002.10957"
    kinds = (
        *Method.kinds,
        "multi-label",
        "token-classification",
        "multiple-choice",
        "span-extraction",
        "similarity",
        "embedding",
    )

    class Config(Method.Config):
        """Options of `minilm`."""

        teacher_layer: int = Field(
            -1,
            description="Teacher layer that the student's last layer imitates, counted from 1, or "
            "from the end (-1 is the last).",
        )
        attention_weight: Schedule = Field(
            Schedule.parse(1.0), description="Weight of the attention term; may be a schedule."
        )
        value_weight: Schedule = Field(
            Schedule.parse(1.0), description="Weight of the value relations; may be a schedule."
        )

    config: Config

    def check(self, models: Models) -> None:
        """Reject models whose heads do not correspond one to one."""
        same_heads(
            models,
            self.name,
            "Give the student as many heads as the teacher, or use minilmv2, which works with any "
            "number",
            values=True,
        )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read attention and values of the student's last layer and of one teacher layer."""
        for site in ("attention", "value"):
            yield f"student.{site}[last]"
            yield f"teacher.{site}[{self.config.teacher_layer}]"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare attention and value relations."""
        layer = self.config.teacher_layer
        attention = relation_kl(student.attention[-1], teacher.attention[layer], batch.tokens)
        value = relation_kl(
            student.value.relation(-1, batch.mask),
            teacher.value.relation(layer, batch.mask),
            batch.tokens,
        )
        return {
            "attention": self.config.attention_weight.at(step) * attention,
            "value": self.config.value_weight.at(step) * value,
        }
