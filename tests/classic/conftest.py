"""Loss terms of a method on tensors written down in a test."""

from __future__ import annotations

import pytest
import torch

from gkd_core.api import Batch, ModelInfo, Step
from gkd_core.losses import Relation


def _mask(labels, rows):
    """Without padding: one position, or those that have a label each."""
    length = 1 if labels is None or labels.dim() == 1 else labels.shape[1]
    return torch.ones(rows, length, dtype=torch.long)


@pytest.fixture
def terms(view_of):
    """`terms(method, student, teacher)`: terms by name.

    Tensors and relations are given by path. `mask` tells which positions are not padding, `index`
    and `total` where training stands.
    """

    def _terms(
        method, student, teacher=None, labels=None, layers=(2, 4), mask=None, index=0, total=10
    ):
        first = next(iter(student.values()))
        rows = len(first.query if isinstance(first, Relation) else first)
        mask = _mask(labels, rows) if mask is None else mask.long()
        batch = Batch({"input_ids": mask, "attention_mask": mask}, labels, torch.arange(rows))
        step = Step(index, total, 0, "test", torch.Generator())
        views = view_of("student", student, layers[0]), view_of("teacher", teacher or {}, layers[1])
        found = method.loss(*views, batch.seen_by(method.name), step)
        return {name: term.mean() for name, term in found.items()}

    return _terms


@pytest.fixture
def term_of(view_of):
    """`term_of(method, batch, student, teacher)`: terms by name, given the logits of both."""

    def _term_of(method, batch, student, teacher):
        batch.declare(method.name, method.items(batch))
        step = Step(0, 10, 0, "test", torch.Generator())
        views = (
            view_of(name, {"logits": logits}, 4)
            for name, logits in (("student", student), ("teacher", teacher))
        )
        return method.loss(*views, batch.seen_by(method.name), step)

    return _term_of


@pytest.fixture
def info():
    """`info("student", layers=6)`: the shape of a BERT-base with other sizes where given."""

    def _info(name, layers=12, hidden_size=768, heads=12, kv_heads=None, head_size=None):
        return ModelInfo(
            name=name,
            family="bert",
            layers=layers,
            hidden_size=hidden_size,
            heads=heads,
            kv_heads=kv_heads or heads,
            head_size=head_size or hidden_size // heads,
            ffn_size=4 * hidden_size,
            vocab_size=30522,
            labels=2,
            max_length=512,
        )

    return _info


@pytest.fixture
def reading():
    """`reading([[(5, 0, 2), (6, 2, 4)]])`: rows of tokens, each with its first and last byte."""

    def _reading(rows, views=None):
        width = max(map(len, rows))
        filled = torch.tensor([[*row, *[(0, -1, -1)] * (width - len(row))] for row in rows])
        mask = torch.tensor([[n < len(row) for n in range(width)] for row in rows])
        ids = filled[..., 0]
        labels = ids.roll(-1, 1).masked_fill(~mask.roll(-1, 1), -100)
        labels[:, -1] = -100
        return Batch(
            {"input_ids": ids, "attention_mask": mask.long()},
            labels,
            torch.arange(len(rows)),
            byte_offsets=filled[..., 1:],
            views=views or {},
        )

    return _reading
