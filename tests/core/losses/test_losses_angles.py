"""Angle-wise relations, against the formula written out for every triple."""

import itertools
import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from gkd_core.contract.batch import Items
from gkd_core.losses import angles, chunked, windows

MASK = torch.tensor([[True] * 6, [True, False, True, True, False, True]])
OVER = Items.where("token", MASK)
WEIGHTS = torch.rand(2, 6, dtype=torch.float64)


def points(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def cosine(x, i, j, k):
    a, b = x[i] - x[j], x[k] - x[j]
    return a @ b / (a.norm() * b.norm())


def plain(student, teacher, mask, delta):
    """Return the loss of every vertex, triple by triple."""
    values = torch.zeros(mask.shape, dtype=torch.float64)
    for group, j in itertools.product(*map(range, mask.shape)):
        others = [i for i in mask[group].nonzero().flatten().tolist() if i != j]
        if not mask[group, j]:
            continue
        losses = []
        for i, k in itertools.permutations(others, 2):
            difference = abs(cosine(student[group], i, j, k) - cosine(teacher[group], i, j, k))
            near = difference.clamp(max=delta)
            losses.append(near * (difference - near / 2))
        values[group, j] = torch.stack(losses).mean() if losses else 0.0
    return values


@pytest.mark.parametrize("delta", [0.3, 2.0])
@pytest.mark.parametrize("elements", [2**21, 100, 1])
def test_value_and_gradient_are_those_of_the_formula(delta, elements, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", elements)
    student, teacher = points(2, 6, 4).requires_grad_(), points(2, 6, 3, seed=1)
    term = angles(student, teacher, OVER, delta)
    expected = plain(student, teacher, MASK, delta)
    torch.testing.assert_close(term.values, expected)
    torch.testing.assert_close(
        torch.autograd.grad(term.mean(), student),
        torch.autograd.grad(expected.sum() / OVER.count, student),
    )


@pytest.mark.parametrize("weights", [WEIGHTS, None], ids=["weighted", "mean"])
def test_gradients_are_exact(weights):
    teacher = points(2, 6, 3, seed=1)

    def loss(student):
        term = angles(student, teacher, OVER, 0.5)
        return term.mean() if weights is None else (term.values * weights).sum()

    assert torch.autograd.gradcheck(loss, points(2, 6, 4).requires_grad_())


def test_a_right_isosceles_triangle_has_the_golden_cosines():
    student = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    # Cosines on a line with the first point in the middle: -1, 1 and 1.
    teacher = torch.tensor([[[0.0], [1.0], [-1.0]]], dtype=torch.float64)
    over = Items.where("token", torch.ones(1, 3, dtype=torch.bool))
    seen = torch.tensor([[0.0, math.sqrt(0.5), math.sqrt(0.5)]], dtype=torch.float64)
    expected = (seen - torch.tensor([[-1.0, 1.0, 1.0]])).square() / 2
    torch.testing.assert_close(angles(student, teacher, over, delta=2).values, expected)


def test_rotation_translation_and_scale_change_nothing():
    student, teacher = points(2, 6, 4), points(2, 6, 3, seed=1)
    turn = torch.linalg.qr(points(4, 4, seed=2)).Q
    moved = 3 * student @ turn + points(4, seed=3)
    torch.testing.assert_close(
        angles(moved, teacher, OVER).values, angles(student, teacher, OVER).values
    )
    assert angles(moved, student, OVER).values.abs().max() < 1e-12


def test_equal_points_have_no_direction_and_a_finite_gradient():
    student = points(2, 6, 4)
    student[0, 1] = student[0, 0]
    student.requires_grad_()
    angles(student, points(2, 6, 3, seed=1), OVER).mean().backward()
    assert student.grad.isfinite().all()
    same = student.detach()
    assert angles(same, same, OVER).values.abs().max() == 0


def test_what_padded_points_are_does_not_matter():
    teacher, results = points(2, 6, 3, seed=1), []
    for filling in (0.0, math.nan):
        student = points(2, 6, 4).masked_fill(~MASK[..., None], filling).requires_grad_()
        term = angles(student, teacher, OVER)
        (gradient,) = torch.autograd.grad(term.mean(), student)
        assert (gradient[~MASK] == 0).all()
        results.append((term.values, gradient))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_points_give_zero(count):
    mask = torch.arange(6)[None] < count
    student = points(1, 6, 4).requires_grad_()
    term = angles(student, points(1, 6, 3), Items.where("token", mask))
    term.mean().backward()
    assert term.mean().item() == 0
    assert (student.grad == 0).all()


def test_samples_are_one_group():
    over = Items.where("sample", MASK[1])
    student, teacher = points(6, 4), points(6, 3, seed=1)
    term = angles(student[None], teacher[None], over)
    assert term.values.shape == over.mask.shape
    torch.testing.assert_close(term.values, plain(student[None], teacher[None], MASK[1:], 1.0)[0])


def test_only_points_and_the_gradient_are_kept():
    student, sizes = points(2, 6, 2).requires_grad_(), []
    with saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        angles(student, points(2, 6, 3), OVER)
    assert sizes == [2 * 6 * 2, 2 * 6 * 2, 2 * 6 * 3]  # gradient, student, teacher


def test_half_precision_is_computed_in_fp32():
    student, teacher = points(2, 6, 4).bfloat16(), points(2, 6, 3, seed=1).bfloat16()
    values = angles(student, teacher, OVER).values
    assert values.dtype == torch.float32
    torch.testing.assert_close(
        values, angles(student.double(), teacher.double(), OVER).values.float()
    )


def test_other_numbers_of_points_are_refused():
    with pytest.raises(ValueError, match="differ in number"):
        angles(points(2, 6, 4), points(2, 5, 4), OVER)
    with pytest.raises(ValueError, match="not one per sample"):
        angles(points(2, 6, 4), points(2, 6, 4), Items.where("sample", MASK[0]))


AROUND = torch.tensor(
    [[[1, 2, 3, 3], [0, 5, -1, 2], [2, 0, 4, 1], [-1] * 4, [0, 1, 2, 3], [4, 3, 0, 5]]]
)


def distinct(around, mask, group, j):
    """The points a vertex sees, apart from itself and what does not count."""
    seen = around[group if len(around) > 1 else 0, j].tolist()
    return [i for i in seen if i >= 0 and i != j and mask[group, i]]


def plain_around(student, teacher, mask, around):
    """Return half the mean squared difference over the pairs of points that are seen."""
    values = torch.zeros(mask.shape, dtype=torch.float64)
    for group, j in itertools.product(*map(range, mask.shape)):
        seen = distinct(around, mask, group, j) if mask[group, j] else []
        pairs = [(seen[a], seen[b]) for a, b in itertools.permutations(range(len(seen)), 2)]
        losses = [
            (cosine(student[group], i, j, k) - cosine(teacher[group], i, j, k)).square() / 2
            for i, k in pairs
        ]
        values[group, j] = torch.stack(losses).mean() if losses else 0.0
    return values


@pytest.mark.parametrize("around", [AROUND, torch.cat([AROUND, AROUND.flip(1)])], ids=len)
@pytest.mark.parametrize("elements", [2**21, 100, 1])
def test_a_vertex_sees_the_points_that_it_is_given(around, elements, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", elements)
    student, teacher = points(2, 6, 4).requires_grad_(), points(2, 6, 3, seed=1)
    term = angles(student, teacher, OVER, 2.0, around)
    expected = plain_around(student, teacher, MASK, around)
    torch.testing.assert_close(term.values, expected)
    torch.testing.assert_close(
        torch.autograd.grad((term.values * WEIGHTS).sum(), student),
        torch.autograd.grad((expected * WEIGHTS).sum(), student),
    )


def test_a_window_holds_the_neighbours_on_both_sides():
    expected = [[-1, -1, 0, 1, 2], [-1, 0, 1, 2, 3], [0, 1, 2, 3, -1], [1, 2, 3, -1, -1]]
    assert windows(4, 5, torch.device("cpu")).tolist() == [expected]
    whole = angles(points(2, 6, 4), points(2, 6, 3, seed=1), OVER).values
    wide = windows(6, 11, torch.device("cpu"))
    found = angles(points(2, 6, 4), points(2, 6, 3, seed=1), OVER, around=wide).values
    torch.testing.assert_close(found, whole)


def test_points_around_of_another_number_are_refused():
    with pytest.raises(ValueError, match="does not list the neighbors"):
        angles(points(2, 6, 4), points(2, 6, 4), OVER, around=AROUND[:, :5])
