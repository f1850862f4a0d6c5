"""MiniLMv2: multi-head self-attention relation distillation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import gcd

from pydantic import Field, PositiveInt

from gkd_core.api import (
    Batch,
    Method,
    MethodError,
    ModelInfo,
    Models,
    Schedule,
    Step,
    Term,
    View,
    relation_kl,
)

SITES = ("query", "key", "value")
PER_HEAD = 4
"""Relation heads per attention head of the teacher: 48 for base-size models, 64 for large ones."""


class MiniLMv2(Method):
    """Match query, key and value relations, independent of the number of attention heads.

    L = sum over X in {Q, K, V} of KL(R_t || R_s), averaged over relation heads and non-padding
    positions, with R = softmax(X X^T / sqrt(d_r)). The heads of X are concatenated and re-split
    into A_r relation heads of width d_r (section 3.1), so student and teacher may differ in width
    and number of heads.
    """

    name = "minilmv2"
    paper = "Wang, Bao, Huang, Dong, Wei, Findings of ACL 2021, arXiv:2012.15828"
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
        """Options of `minilmv2`."""

        relation_heads: PositiveInt | None = Field(
            None,
            description="A_r: must divide the width of queries, keys and values of both models. "
            "Default: 4 per attention head of the teacher, which gives the paper's 48 for "
            "base-size and 64 for large teachers.",
        )
        teacher_layer: int = Field(
            -1,
            description="Teacher layer that the student's last layer imitates, counted from 1, or "
            "from the end (-1 is the last). For large teachers the paper uses an upper-middle one.",
        )
        query_weight: Schedule = Field(
            Schedule.parse(1.0), description="Weight of the query relations; may be a schedule."
        )
        key_weight: Schedule = Field(
            Schedule.parse(1.0), description="Weight of the key relations; may be a schedule."
        )
        value_weight: Schedule = Field(
            Schedule.parse(1.0), description="Weight of the value relations; may be a schedule."
        )

    config: Config

    def check(self, models: Models) -> None:
        """Reject models whose query, key or value width is not divisible by the relation heads."""
        student, teacher = models.pair
        heads = self._relation_heads(teacher)
        widths = [*_widths(student), *_widths(teacher)]
        for model in (student, teacher):
            for site, width in zip(SITES, _widths(model), strict=True):
                if width % heads:
                    raise MethodError(
                        f"minilmv2 splits queries, keys and values into {heads} relation heads, "
                        f"but the {site} of {model.described} is {width} wide. Set "
                        f"minilmv2.relation_heads={_largest_divisor(widths, heads)} or another "
                        "common divisor"
                    )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read queries, keys and values of the student's last layer and of one teacher layer."""
        for site in SITES:
            yield f"student.{site}[last]"
            yield f"teacher.{site}[{self.config.teacher_layer}]"

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the relations of queries, keys and values."""
        config, layer = self.config, self.config.teacher_layer
        heads = self._relation_heads(teacher.model)
        compared = {
            "query": (config.query_weight, student.query, teacher.query),
            "key": (config.key_weight, student.key, teacher.key),
            "value": (config.value_weight, student.value, teacher.value),
        }
        return {
            name: weight.at(step)
            * relation_kl(
                learned.relation(-1, batch.mask, heads),
                known.relation(layer, batch.mask, heads),
                batch.tokens,
            )
            for name, (weight, learned, known) in compared.items()
        }

    def _relation_heads(self, teacher: ModelInfo) -> int:
        return self.config.relation_heads or PER_HEAD * teacher.heads


def _widths(model: ModelInfo) -> tuple[int, int, int]:
    """Return the widths of queries, keys and values."""
    shared = model.kv_heads * model.head_size
    return model.heads * model.head_size, shared, shared


def _largest_divisor(widths: Iterable[int], at_most: int) -> int:
    common = gcd(*widths)
    return next(heads for heads in range(at_most, 0, -1) if common % heads == 0)
