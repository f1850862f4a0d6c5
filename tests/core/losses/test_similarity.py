"""Unbiased CKA against the published formula, written down with whole kernel matrices."""

from __future__ import annotations

import pytest
import torch

from gkd_core.losses.similarity import unbiased_cka, unbiased_cka_table

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(40, 6, generator=GENERATOR, dtype=torch.float64) + 3
Y = X[:, :4] @ torch.randn(4, 9, generator=GENERATOR, dtype=torch.float64)
Y = Y + torch.randn(40, 9, generator=GENERATOR, dtype=torch.float64)


def hsic(k, l):  # noqa: E741 - the letters of the paper
    """HSIC_1 of Song et al. (2012), Eq. 5, term by term."""
    n, one = len(k), torch.ones(len(k), dtype=k.dtype)
    k, l = k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0)  # noqa: E741
    trace = torch.trace(k @ l)
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    last = 2 / (n - 2) * (one @ k @ l @ one)
    return (trace + middle - last) / (n * (n - 3))


def direct(x, y):
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()


def test_value_is_that_of_the_formula():
    torch.testing.assert_close(unbiased_cka(X, Y), direct(X, Y), rtol=1e-10, atol=0)
    torch.testing.assert_close(unbiased_cka(X[:4], Y[:4]), direct(X[:4], Y[:4]))
    assert 0.2 < unbiased_cka(X, Y) < 0.95


def test_value_survives_rotation_and_scaling_and_no_other_map():
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=GENERATOR, dtype=torch.float64)).Q
    moved = 5 * X @ rotation + 7
    torch.testing.assert_close(unbiased_cka(moved, Y), unbiased_cka(X, Y))
    stretched = X * torch.tensor([1, 9, 1, 1, 1, 1], dtype=torch.float64)
    assert abs(unbiased_cka(stretched, Y) - unbiased_cka(X, Y)) > 0.01


def test_equal_sides_have_1_and_unrelated_ones_about_0_however_wide():
    torch.testing.assert_close(unbiased_cka(X, X), torch.ones((), dtype=torch.float64))
    wide = [torch.randn(50, 400, generator=GENERATOR) for _ in range(2)]
    assert abs(unbiased_cka(*wide)) < 0.05  # the biased estimator gives about 0.9


def test_table_has_the_value_of_each_pair():
    found = unbiased_cka_table([X, Y[:, :2]], [Y, X, X[:, :1]])
    pairs = [[unbiased_cka(x, y) for y in (Y, X, X[:, :1])] for x in (X, Y[:, :2])]
    torch.testing.assert_close(found, torch.tensor(pairs), rtol=1e-9, atol=1e-12)
    assert unbiased_cka_table([X[:3]], [Y[:3]]).isnan().all()


@pytest.mark.parametrize("x", [X[:3], torch.ones(9, 2, dtype=torch.float64)])
def test_too_little_gives_nan(x):
    assert unbiased_cka(x, Y[: len(x)]).isnan()


def test_half_precision_is_widened_and_no_gradient_is_kept():
    x = X.bfloat16().requires_grad_()
    found = unbiased_cka(x, Y)
    torch.testing.assert_close(found, unbiased_cka(x.double(), Y), rtol=1e-3, atol=1e-3)
    assert not found.requires_grad
