"""`MatchTerm`: one comparison of student and teacher, as described in a run file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from gkd_core.api import LayerMap, Schedule, Temperature
from gkd_methods_intermediate.matching.knowledge import (
    DIVERGENCES,
    FIXED,
    HEADED,
    LAYERED,
    PRESETS,
    REDUCIBLE,
    Activation,
    Assigned,
    ComparedPositions,
    Distance,
    HeadTreatment,
    Knowledge,
    Products,
    Site,
)


class MatchTerm(BaseModel):
    """What to compare, in which layers, by which distance and with which weight.

    Omitted options are filled in from the knowledge type. Options that do not apply are rejected if
    given, and omitted when the term is serialized.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        "",
        pattern=r"^[a-z][a-z0-9-]*$",
        description="Name of the loss in the log. Default: the knowledge type, or site and "
        "distance.",
    )
    knowledge: Knowledge = Field(
        "custom",
        description="What to compare, by name: `logits-ce`, `logits-mse`, `attention-mse`, "
        "`attention-mse-sum`, `attention-ce`, `attention-ce-mean`, `hidden-mse`, `hidden-cosine`, "
        "`hidden-pkd`, `hidden-gram`, `hidden-nst`, `query-relation`, `key-relation` or "
        "`value-relation`. It sets site, relation, distance and heads. `custom`: give at least "
        "site and distance yourself.",
    )
    site: Site = Field(
        "hidden",
        description="Which tensors: `hidden`, `embedding`, `normed` (the last hidden state after "
        "the final norm), `context`, `ffn`, `pooled` (the input of a classification head), "
        "`query`, `key`, `value`, `attention` (the scores) or `logits`.",
    )
    relation: Products = Field(
        "none",
        description="What is compared: `none`, the vectors; `channels`, their products X^T X / "
        "length over the positions of a sample; `tokens`, the products of positions, X X^T / "
        "width, or softmax(X X^T / sqrt(width)) for a divergence.",
    )
    distance: Distance = Field(
        "mse",
        description="Between vectors: `mse`, `huber`, `cosine` or `normalized` (squared distance "
        "of the vectors scaled to length 1). Between distributions (logits, scores and token "
        "products) also `kl`, `reverse-kl`, `js`, `total-variation` or `cross-entropy`.",
    )
    positions: ComparedPositions = Field(
        "tokens",
        description="Which positions count: all non-padding `tokens`; the `targets` of a language "
        "model; the summary position, `cls`; or the `mean` of the tokens. Default for logits: "
        "`targets`.",
    )
    layers: LayerMap | Assigned = Field(
        "spaced",
        description="Which layers are paired: a strategy, such as `spaced` or `last2`; pairs "
        "[student, teacher]; or chosen in each step from the cost of every pair: `emd` (optimal "
        "transport, BERT-EMD) or `monotone` (the cheapest order-preserving pairing).",
    )
    embedding: bool = Field(
        False,
        description="Compare the embedding outputs too. `hidden-mse`, `hidden-gram` and "
        "`hidden-nst` do unless `layers` lists pairs.",
    )
    span: int = Field(
        0,
        ge=0,
        description="Products of two layers: those of a pair and of the pair `span` pairs further "
        "up. 0: a layer with itself; 1: the flow between matched layers (FSP).",
    )
    heads: HeadTreatment | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="Scores: compared for `each` head, or as `mean` or `sum` over heads. Token "
        "products: within `each` head, over `merged` heads, or a number of heads to split the "
        "width into. `auto`: `each`; products use `merged` if the head counts differ.",
    )
    projection: Activation = Field(
        "auto",
        description="Trainable projection of the student's vectors to the teacher's width: "
        "`linear`, or linear followed by `relu` or `tanh`, or `none`. `auto`: linear if the widths "
        "differ, else none.",
    )
    per_layer: bool = Field(
        False,
        description="Use one projection per student layer instead of one per term.",
    )
    temperature: Temperature = Field(
        Schedule.parse(1.0),
        description="T for a divergence between logits, which is scaled by T^2; may be a schedule.",
    )
    weight: Schedule = Field(
        Schedule.parse(1.0), description="Weight of the term; may be a schedule."
    )

    @property
    def is_divergence(self) -> bool:
        """Whether the term compares distributions."""
        return self.distance in DIVERGENCES

    @property
    def is_assigned(self) -> bool:
        """Whether the pairs of layers depend on their costs."""
        return self.layers in ("emd", "monotone")

    @property
    def has_vectors(self) -> bool:
        """Whether the compared vectors must be as wide as the teacher's."""
        return self.site not in ("attention", "logits") and self.relation != "tokens"

    def options(self) -> list[str]:
        """Return the names of the options that apply to this term."""
        layered = self.site in LAYERED
        products = self.site == "attention" or self.relation == "tokens"
        applies = {
            "relation": self.site not in ("pooled", "attention", "logits"),
            "positions": self.site != "pooled" and self.relation != "channels",
            "layers": layered,
            "embedding": self.site == "hidden",
            "span": layered and self.relation != "none" and not self.is_assigned,
            "heads": products,
            "projection": self.has_vectors,
            "per_layer": self.has_vectors and layered,
            "temperature": self.site == "logits" and self.is_divergence,
        }
        return [name for name in type(self).model_fields if applies.get(name, True)]

    @model_validator(mode="after")
    def _complete(self) -> MatchTerm:
        if self.knowledge == "custom" and not {"site", "distance"} <= self.model_fields_set:
            raise ValueError("give `knowledge`, or both `site` and `distance`")
        for name, value in self._defaults().items():
            # The model is frozen for everyone else.
            object.__setattr__(self, name, value)
        self._refuse_options_without_meaning()
        self._refuse_what_cannot_be_compared()
        return self

    def _defaults(self) -> dict[str, Any]:
        """Return the values that the knowledge type sets and the author omitted."""
        preset = PRESETS[self.knowledge]
        for name in FIXED:
            given, fixed = getattr(self, name), preset.get(name)
            if name in self.model_fields_set and name in preset and given != fixed:
                raise ValueError(
                    f"knowledge '{self.knowledge}' has {name} = {fixed!r}, not {given!r}; remove "
                    "one of them"
                )
        site = preset.get("site", self.site)
        values: dict[str, Any] = {
            "name": self.knowledge if preset else f"{self.site}-{self.distance}"
        }
        values |= {"positions": "targets"} if site == "logits" else {}
        values |= preset
        values |= {"embedding": False} if isinstance(self.layers, list) else {}
        return {name: v for name, v in values.items() if name not in self.model_fields_set}

    def _refuse_options_without_meaning(self) -> None:
        extra = self.model_fields_set - set(self.options())
        for name in sorted(extra):
            raise ValueError(f"`{name}` does not apply to {self._what()}; remove it")

    def _refuse_what_cannot_be_compared(self) -> None:
        has_distributions = self.site in ("attention", "logits") or self.relation == "tokens"
        if self.is_divergence and not has_distributions:
            raise ValueError(
                f"distance '{self.distance}' compares distributions, which {self._what()} does not "
                "provide; use relation = 'tokens', or a distance between vectors: mse, huber, "
                "cosine or normalized"
            )
        reduced = self.positions in ("cls", "mean")
        if reduced and (self.site not in REDUCIBLE or self.relation != "none"):
            raise ValueError(
                f"positions = '{self.positions}' requires one vector per position, which "
                f"{self._what()} does not provide"
            )
        heads = ["auto", *self._head_choices()]
        if not isinstance(self.heads, int) and self.heads not in heads:
            raise ValueError(
                f"heads = '{self.heads}' does not fit {self._what()}; choose one of "
                f"{', '.join(heads)}"
            )
        if isinstance(self.heads, int) and self.site == "attention":
            raise ValueError("attention scores have the heads of the model and cannot be re-split")

    def _head_choices(self) -> list[str]:
        if self.site == "attention":
            return ["each", "mean", "sum"]
        return ["each", "merged"] if self.site in HEADED else ["merged"]

    def _what(self) -> str:
        relation = "" if self.relation == "none" else f" with relation '{self.relation}'"
        return f"site '{self.site}'{relation}"

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = handler(self)
        return {name: written[name] for name in self.options() if name in written}
