"""Dual-space distillation, against the same formulas written down plainly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gkd_core.api import Batch, Models, Step
from gkd_core.hooks.features import Features, View
from gkd_core.hooks.paths import parse_path
from gkd_core.losses import LinearLogits
from gkd_core.testing import check_method
from gkd_methods_classic.dskd import DSKD, _attend

WIDTH, VOCABULARY = 4, 5


@pytest.fixture
def model_view(info):
    """What a method reads of a model with a head: `model_view("student", seed, length)`."""

    def _model_view(name, seed, length, rows=2, head_gradient=True):
        draw = torch.Generator().manual_seed(seed)

        def some(*shape):
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        shape = info(name, layers=2, hidden_size=WIDTH)
        hidden = some(rows, length, WIDTH).requires_grad_(head_gradient)
        weight = some(VOCABULARY, WIDTH).requires_grad_(head_gradient)
        paths = ("logits", "hidden[last].normed", "embedding")
        logits, state, embedding = (
            next(iter(parse_path(f"{name}.{path}", "dskd").resolve(shape, "dskd")))
            for path in paths
        )
        found = {logits: LinearLogits(hidden, weight, None), state: hidden}
        found[embedding] = some(rows, length, WIDTH)
        return View(Features.of(found), found, shape, "dskd")

    return _model_view


def losses(method, student, teacher, batch):
    batch.declare("dskd", method.items(batch))
    step = Step(0, 10, 0, "test", torch.Generator())
    return method.loss(student, teacher, batch.seen_by("dskd"), step)


@pytest.fixture
def dskd(info):
    def _dskd(**options):
        method = DSKD(DSKD.Config(**options))
        method.models = Models(
            *(info(name, layers=2, hidden_size=WIDTH) for name in ("student", "teacher")),
            "causal-lm",
        )
        torch.manual_seed(0)
        method.modules = nn.ModuleDict(method.build_modules(method.models)).double()
        return method

    return _dskd


@pytest.fixture
def batch(reading):
    words = [(1, 0, 1), (2, 1, 2), (3, 2, 3), (4, 3, 4)]
    return reading([words, words[:3]])


def test_equal_models_with_the_identity_as_projections_have_no_divergence(dskd, batch, model_view):
    method = dskd()
    for name in ("to_student", "to_teacher"):
        nn.init.eye_(method.modules[name].weight)
        nn.init.zeros_(method.modules[name].bias)
    student, teacher = model_view("student", 0, 4), model_view("teacher", 0, 4)
    terms = losses(method, student, teacher, batch)
    for name in ("student-space", "teacher-space"):
        assert terms[name].mean().item() == pytest.approx(0, abs=1e-14)
    plain = torch.nn.functional.cross_entropy(
        student.logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100
    )
    assert terms["projection"].mean().item() == pytest.approx(plain.item(), abs=1e-12)


def test_golden_value_of_the_attention():
    scores = torch.tensor([[[0.0, 2.0, 7.0], [1.0, 1.0, 7.0]]], dtype=torch.float64)
    found = _attend(scores, torch.tensor([[True, True, False]]))
    odds = torch.tensor(2.0, dtype=torch.float64).exp()
    expected = torch.tensor([[[0, 0, 0], [0.5, 0.5, 0]]], dtype=torch.float64)
    expected[0, 0, :2] = torch.stack([1 / (1 + odds), odds / (1 + odds)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert not _attend(scores, torch.zeros(1, 3, dtype=torch.bool)).any()


def test_terms_by_hand(dskd, batch, reading, model_view):
    """The same formulas, written down plainly with whole logits and one row after the other."""
    view = reading([[(9, 0, 2), (8, 2, 4)], [(9, 0, 2), (8, 2, 3), (7, 3, 4)]])
    both = Batch(**{**vars_of(batch), "views": {"teacher": view}})
    method = dskd(temperature=2)
    student, teacher = model_view("student", 1, 4), model_view("teacher", 2, 3, head_gradient=False)
    found = losses(method, student, teacher, both)
    own, other = student._features.deferred, teacher._features.deferred
    sums = {"projection": 0.0, "student-space": 0.0, "teacher-space": 0.0}
    for row in range(2):
        mine, theirs = (one.labels[row] != -100 for one in (both, view))
        e, f = student.embedding[row], teacher.embedding[row]
        here = torch.cat([e, e.roll(-1, 0)], -1)[mine]
        there = torch.cat([f, f.roll(-1, 0)], -1)[theirs]
        there = there / there.square().mean(-1, keepdim=True).sqrt()
        scores = method.modules["query"](here) @ there.T / (2 * WIDTH) ** 0.5
        values = sum(
            x / x.square().mean(-1, keepdim=True).sqrt() for x in (other.hidden[row], f.roll(-1, 0))
        )[theirs]
        to_student = scores.softmax(1) @ method.modules["to_student"](values)
        to_teacher = scores.T.softmax(1) @ method.modules["to_teacher"](own.hidden[row][mine])
        taught, own_logits = to_student @ own.weight.T, own.hidden[row][mine] @ own.weight.T
        known, mapped = other.hidden[row][theirs] @ other.weight.T, to_teacher @ other.weight.T
        labels = both.labels[row][mine]
        sums["projection"] -= taught.log_softmax(-1)[range(len(labels)), labels].sum()
        for name, p, q in (
            ("student-space", taught, own_logits),
            ("teacher-space", known, mapped),
        ):
            p, q = (p / 2).log_softmax(-1), (q / 2).log_softmax(-1)
            sums[name] += 4 * (p.exp() * (p - q)).sum()
    assert (found["student-space"].over.count, found["teacher-space"].over.count) == (5, 3)
    for name, expected in sums.items():
        assert found[name].values.sum().item() == pytest.approx(expected.item(), abs=1e-12), name


def vars_of(batch):
    return {name: getattr(batch, name) for name in ("inputs", "labels", "rows", "byte_offsets")}


def test_the_students_head_learns_from_its_own_predictions_only(dskd, batch, model_view):
    student = model_view("student", 1, 4)
    teacher = model_view("teacher", 2, 4, head_gradient=False)
    terms = losses(dskd(), student, teacher, batch)
    weight = student._features.deferred.weight
    (slope,) = torch.autograd.grad(terms["projection"].mean(), weight, allow_unused=True)
    assert slope is None
    (slope,) = torch.autograd.grad(terms["student-space"].mean(), weight)
    assert slope.abs().sum() > 0


@pytest.mark.slow
def test_two_ranks_that_share_the_models_find_the_same():
    check_method(DSKD, ranks=2)
