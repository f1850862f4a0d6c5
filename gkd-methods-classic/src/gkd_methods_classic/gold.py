"""GOLD: predictions of spans of text that are whole tokens for both models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from pydantic import Field
from torch import Tensor

from gkd_core.api import Batch, Method, Models, Step, Term, View, cross_entropy
from gkd_methods_classic.alignment import Spans, pair_spans
from gkd_methods_classic.uld import sorted_distance


class GOLD(Method):
    """Predictions of the same bytes: tokens of both vocabularies by name, the others sorted.

    A span is the shortest piece of text that is whole tokens for both models. The measure of a
    model over its vocabulary is its prediction of the span's first token, times the probabilities
    of the tokens that follow in the span: q for the student, p for the teacher. With m = beta p +
    (1 - beta) q, L = w sum_v (beta p log(p / m) + (1 - beta) q log(q / m)) over the tokens that
    both vocabularies have, plus u sum_i |q_(i) - p_(i)| over the sorted others.
    """

    name = "gold"
    paper = (
        "Patiño et al., Unlocking On-Policy Distillation for Any Model Family, Hugging Face, 2025"
    )
    kinds = ("causal-lm",)
    aligns = True

    class Config(Method.Config):
        """Options of `gold`."""

        beta: float = Field(0.5, gt=0, lt=1, description="Share of the teacher in the mixture.")
        matched_weight: float | None = Field(
            None,
            ge=0,
            description="w: weight of the tokens that both vocabularies have. Default: their share "
            "of the teacher's vocabulary.",
        )
        unmatched_weight: float | None = Field(
            None, ge=0, description="u: weight of the other tokens. Default: 1 - that share."
        )

    config: Config

    def items(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return where the student predicts the first token of a span that both predict."""
        teacher = self.models.pair[1].name
        pairs = pair_spans(batch, batch.view(teacher))
        mask = torch.zeros_like(batch.mask)
        mask[pairs.rows, pairs.student.first[pairs.rows, pairs.spans]] = True
        return {teacher: mask}

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student: View, teacher: View, batch: Batch, step: Step) -> Mapping[str, Term]:
        """Compare the measures of every span."""
        name = teacher.model.name
        over, view = batch.items(name), batch.view(name)
        pairs = pair_spans(batch, view)
        where = pairs.rows, pairs.spans
        learned = _log_measures(student, batch, pairs.student, *where)
        known = _log_measures(teacher, view, pairs.teacher, *where)
        places = pairs.rows, pairs.student.first[where]

        def term(values: Tensor, weight: float) -> Term:
            filled = values.new_zeros(over.mask.shape).index_put(places, values)
            return weight * Term(filled, over)

        mine, theirs = (ids.to(learned.device) for ids in self._matches)
        share = len(theirs) / known.shape[-1]
        options = self.config
        return {
            "matched": term(
                mixture_divergence(learned[:, mine], known[:, theirs], options.beta),
                share if options.matched_weight is None else options.matched_weight,
            ),
            "unmatched": term(
                sorted_distance(_others(learned, mine).exp(), _others(known, theirs).exp()),
                1 - share if options.unmatched_weight is None else options.unmatched_weight,
            ),
        }

    @cached_property
    def _matches(self) -> tuple[Tensor, Tensor]:
        """Ids of the student and of the teacher that stand for the same text, int64 `[M]` each."""
        student, teacher = self.models.pair
        # Several ids of a text would be the same token twice: the first of them counts.
        mine, theirs = (
            {text: token for token, text in reversed([*enumerate(one.tokens)]) if text}
            for one in (student, teacher)
        )
        pairs = [(token, theirs[text]) for text, token in mine.items() if text in theirs]
        found = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
        return found[:, 0], found[:, 1]


def mixture_divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Return beta p log(p / m) + (1 - beta) q log(q / m), summed, of measures of any size, `[N]`.

    Args:
        student: log q, `[N, M]`.
        teacher: log p, `[N, M]`.
        beta: Share of the teacher in the mixture m.
    """
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    known = beta * teacher.exp() * (teacher - mixture)
    return (known + (1 - beta) * student.exp() * (student - mixture)).sum(-1)


def _log_measures(view: View, batch: Batch, spans: Spans, rows: Tensor, numbers: Tensor) -> Tensor:
    """Return the logarithm of a model's measure for each span, `[N, V]`, in fp32 or fp64."""
    following = -cross_entropy(view.prediction, batch.require_labels(), batch.targets).values
    logits = view.logits[rows, spans.first[rows, numbers]]
    first = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return first + spans.chain(following)[rows, numbers].unsqueeze(-1)


def _others(measures: Tensor, ids: Tensor) -> Tensor:
    """Return the columns that are not among `ids`."""
    rest = torch.ones(measures.shape[-1], dtype=torch.bool, device=measures.device)
    rest[ids] = False
    return measures[:, rest]
