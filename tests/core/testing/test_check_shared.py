"""Methods and combiners are checked with models that two processes share."""

from __future__ import annotations

import pytest

from gkd_core.distributed.ranks import rank
from gkd_core.testing import check_combiner, check_method
from gkd_methods_classic.minilm import MiniLM
from gkd_methods_classic.soft import Soft
from gkd_methods_multiteacher.average import Average


class Local(Soft):
    """Weighs its loss by something that only one rank knows."""

    name = "local"

    def loss(self, student, teacher, batch, step):
        terms = super().loss(student, teacher, batch, step)
        return {name: (1 + rank()) * term for name, term in terms.items()}


def test_methods_and_combiners_pass_on_two_ranks():
    check_method(Soft, ranks=2)
    check_method(MiniLM, kinds=["causal-lm"], ranks=2)
    check_combiner(Average, kinds=["classification"], ranks=2)


def test_a_method_that_differs_between_ranks_is_named():
    check_method(Local)
    with pytest.raises(AssertionError, match=r"local on .*: on 2 ranks that share .* differs"):
        check_method(Local, ranks=2)
