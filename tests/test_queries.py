"""What installed methods and combiners say about a step has no side effects, in any order."""

from __future__ import annotations

import pytest
import torch

from gkd_core.api import Method, MethodError
from gkd_core.plugins import registry
from gkd_core.testing import check_method, tiny_batch
from gkd_core.testing.check_combiner import CombinerTrial
from gkd_core.testing.check_method import MethodTrial
from gkd_core.testing.trial import KINDS, check_step_queries

OPTIONS = {
    "autodisc": [{"scales": [1.0]}],
    "diito": [{}, {"alignment": "late", "positions": "random"}],
    "rail-kd": [{}, {"draw_every": 1}],
    "sid": [{}, {"threshold": 10.0}, {"budget": 1}],
    "theseus": [{"rate": 0.5}],
}
METHODS = [(name, options) for name in registry().methods for options in OPTIONS.get(name, [{}])]


def check(trial, kinds):
    """Check the kinds of task that are named and not rejected; at least one is."""
    done = []
    for kind in [kind for kind in KINDS if kind in kinds]:
        try:
            made = trial(kind)
        except MethodError:
            continue
        check_step_queries(made, tiny_batch(kind))
        done.append(kind)
    assert done


@pytest.mark.parametrize(("name", "options"), METHODS, ids=lambda value: str(value))
def test_queries_of_a_method_have_no_side_effects(name, options):
    method = registry().method(name)
    check(lambda kind: MethodTrial(method, options, kind), method.kinds)


@pytest.mark.parametrize("name", registry().combiners)
def test_queries_of_a_combiner_have_no_side_effects(name):
    combiner = registry().combiner(name)
    check(lambda kind: CombinerTrial(combiner, {}, kind), combiner.kinds)


class Impure(Method):
    """Compares the logits; a subclass does something in a query."""

    name = "impure"
    paper = "A test"
    count = 0

    def reads(self, models, step):
        return ["student.logits", "teacher.logits"]

    def loss(self, student, teacher, batch, step):
        difference = student.logits - teacher.logits
        return {"impure": difference.square().flatten(1).mean(1)}

    def state_dict(self):
        return {"count": self.count}


class Draws(Impure):
    """Draws the layer that it reads."""

    name = "drawing"

    def reads(self, models, step):
        layer = int(torch.randint(1, 3, (), generator=step.generator))
        return [*super().reads(models, step), f"teacher.hidden[{layer}]"]


class Silent(Impure):
    """Draws, though it says the same each time."""

    name = "silent"

    def passes(self, models, step):
        torch.rand((), generator=step.generator)
        return []


class Counts(Impure):
    """Counts how often it is asked."""

    name = "counting"

    def lr_factors(self, models, step):
        self.count += 1
        return {}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Draws, "drawing on classification in step 0: `reads` changes when asked again"),
        (Silent, "a query draws from `step.generator`; do so in `begin_step`"),
        (Counts, "a query changes what `state_dict` returns; do so in `begin_step`"),
    ],
)
def test_a_method_whose_queries_do_something_fails_the_check(method, message):
    with pytest.raises(AssertionError, match=message):
        check_method(method, kinds=["classification"])
