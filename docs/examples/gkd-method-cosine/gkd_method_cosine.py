"""Cosine distance between the hidden states of matched layers."""

from collections.abc import Iterable, Mapping

from pydantic import Field
from torch import Tensor, nn

from gkd_core.api import (
    Batch,
    LayerMap,
    Method,
    ModelInfo,
    Models,
    Step,
    Term,
    View,
    cosine,
    hookimpl,
    layer_pairs,
)


class Cosine(Method):
    """L = mean over matched layers of 1 - cos(W h_s, h_t); W is learned if the widths differ."""

    name = "cosine"
    paper = "Sanh, Debut, Chaumond, Wolf, 2019, arXiv:1910.01108 (there for the last layer)"

    class Config(Method.Config):
        layers: LayerMap = Field("spaced", description="Teacher layer of each student layer.")

    config: Config

    def pairs(self, student: ModelInfo, teacher: ModelInfo) -> list[tuple[int, int]]:
        return layer_pairs(self.config.layers, student.layers, teacher.layers)

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        for s, t in self.pairs(*models.pair):
            yield from (f"student.hidden[{s}]", f"teacher.hidden[{t}]")

    def build_modules(self, models: Models) -> Mapping[str, nn.Module]:
        student, teacher = models.pair
        widths = student.hidden_size, teacher.hidden_size
        return {"project": nn.Identity() if len(set(widths)) == 1 else nn.Linear(*widths)}

    def loss(
        self, student: View, teacher: View, batch: Batch, step: Step
    ) -> Mapping[str, Term | Tensor]:
        pairs = self.pairs(student.model, teacher.model)
        learned = [self.modules["project"](student.hidden[s]) for s, _ in pairs]
        known = [teacher.hidden[t] for _, t in pairs]
        terms = [cosine(h, t, batch.tokens) for h, t in zip(learned, known, strict=True)]
        return {"cosine": 1 / len(pairs) * sum(terms[1:], start=terms[0])}


@hookimpl
def gkd_register_methods() -> Iterable[type[Method]]:
    return [Cosine]
