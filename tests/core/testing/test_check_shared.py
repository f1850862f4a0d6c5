"""Methods and combiners are checked with models that two processes share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from gkd_core.api import Step, skew_kl
from gkd_core.distributed.ranks import rank
from gkd_core.testing import check_combiner, check_method, tiny_batch
from gkd_methods_classic.minilm import MiniLM
from gkd_methods_classic.soft import Soft
from gkd_methods_multiteacher.average import Average

PLUGINS = Path(__file__).parents[2] / "plugins"


def _load(name):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PLUGINS / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class Local(Soft):
    """Weighs its loss by something that only one rank knows."""

    name = "local"

    def loss(self, student, teacher, batch, step):
        terms = super().loss(student, teacher, batch, step)
        return {name: (1 + rank()) * term for name, term in terms.items()}


def test_methods_and_combiners_pass_on_two_ranks():
    check_method(Soft, {}, ["classification"], ranks=2)
    check_method(MiniLM, {}, ["causal-lm"], ranks=2)
    check_combiner(Average, {}, ["classification"], ranks=2)


@pytest.mark.exhaustive
def test_a_method_passes_on_two_ranks_on_every_kind():
    check_method(Soft, ranks=2)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("skewed", ["causal-lm"]),
        ("projected_head", ["causal-lm"]),
        pytest.param("skewed", None, marks=pytest.mark.exhaustive),
        pytest.param("projected_head", None, marks=pytest.mark.exhaustive),
    ],
)
def test_plugins_in_one_file_pass_on_two_ranks(name, kinds):
    (method,) = _load(name).gkd_register_methods()
    check_method(method, {}, kinds, ranks=2)


def test_the_skewed_divergence_of_a_plugin_is_the_built_in_one(view_of):
    batch, generator = tiny_batch("classification"), torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    views = view_of("student", {"logits": student}, 2), view_of("teacher", {"logits": teacher}, 4)
    term = _load("skewed").Skewed().loss(*views, batch, Step(0, 1, 0, "test", generator))["skewed"]
    expected = skew_kl(student, teacher, batch.targets, alpha=0.1)
    torch.testing.assert_close(term.values, expected.values, rtol=0, atol=1e-12)


def test_a_method_that_differs_between_ranks_is_named():
    check_method(Local, {}, ["classification"])
    with pytest.raises(AssertionError, match=r"local on .*: on 2 ranks that share .* differs"):
        check_method(Local, {}, ["classification"], ranks=2)
