"""Cosine distance between the hidden states of matched layers."""

from pydantic import Field
from torch import nn

from gkd_core.api import LayerMap, Method, cosine, hookimpl, layer_pairs


class Cosine(Method):
    """L = mean over matched layers of 1 - cos(W h_s, h_t); W is learned if the widths differ."""

    name = "cosine"
    paper = "Sanh, Debut, Chaumond, Wolf, 2019, arXiv:1910.01108 (there for the last layer)"

    class Config(Method.Config):
        layers: LayerMap = Field("spaced", description="Teacher layer of each student layer.")

    def pairs(self, student, teacher):
        return layer_pairs(self.config.layers, student.layers, teacher.layers)

    def reads(self, models, step):
        for s, t in self.pairs(models.student, models.teacher):
            yield from (f"student.hidden[{s}]", f"teacher.hidden[{t}]")

    def build_modules(self, models):
        widths = models.student.hidden_size, models.teacher.hidden_size
        return {"project": nn.Identity() if len(set(widths)) == 1 else nn.Linear(*widths)}

    def loss(self, student, teacher, batch, step):
        pairs = self.pairs(student.model, teacher.model)
        learned = [self.modules["project"](student.hidden[s]) for s, _ in pairs]
        known = [teacher.hidden[t] for _, t in pairs]
        terms = [cosine(h, t, batch.tokens) for h, t in zip(learned, known, strict=True)]
        return {"cosine": 1 / len(pairs) * sum(terms)}


@hookimpl
def gkd_register_methods():
    return [Cosine]
