"""Loss terms of a method on tensors written down in a test."""

from __future__ import annotations

import pytest
import torch

from gkd_core import Batch, ModelInfo, Step, View
from gkd_core.hooks.features import Features
from gkd_core.hooks.paths import parse_path


def _view(name, tensors, layers):
    width = next((t.shape[-1] for key, t in tensors.items() if key != "logits"), 32)
    info = ModelInfo(name, "bert", layers, width, 4, 4, 8, 64, 100, 2, 64)
    features = Features()
    for key, tensor in tensors.items():
        (capture,) = parse_path(f"{name}.{key}", "test").resolve(info, "test")
        features.tensors[capture] = tensor
    return View(features, features.tensors, info, "test")


@pytest.fixture
def terms():
    """`terms(method, student, teacher)`: terms by name; tensors are given by path, fp64."""

    def _terms(method, student, teacher=None, labels=None, layers=(2, 4), index=0, total=10):
        rows = len(next(iter(student.values())))
        length = 1 if labels is None or labels.dim() == 1 else labels.shape[1]
        ones = torch.ones(rows, length, dtype=torch.long)
        batch = Batch({"input_ids": ones, "attention_mask": ones}, labels, torch.arange(rows))
        step = Step(index, total, 0, "test", torch.Generator())
        views = _view("student", student, layers[0]), _view("teacher", teacher or {}, layers[1])
        return {name: term.mean() for name, term in method.loss(*views, batch, step).items()}

    return _terms
