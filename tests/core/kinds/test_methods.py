"""Each method on each kind of task: its properties hold, or it is refused before the run."""

from __future__ import annotations

import pytest

from gkd_core.plugins import registry
from gkd_core.testing import check_method

NEW = (
    "span-classification",
    "multi-label",
    "token-classification",
    "multiple-choice",
    "span-extraction",
    "embedding",
    "similarity",
)
OF_CLASSES = {"dpkd", "mft"}
"""Methods that compare the probabilities of classes, which a regression has none of."""
OLD = {"classification", "span-classification", "regression", "masked-lm", "causal-lm"}
PAIRS = [
    (name, kind)
    for name, method in registry().methods.items()
    for kind in NEW
    if kind in method.kinds
]


def _cases():
    """Yield every pair; `make test` tries every kind with one method, and one with many."""
    for name, kind in PAIRS:
        chosen = name == "soft" or kind == "multi-label"
        marks = [] if chosen else [pytest.mark.exhaustive]
        if (name, kind) != ("autodisc", "span-classification"):  # it searches before its first step
            yield pytest.param(name, kind, marks=marks)


@pytest.mark.parametrize(("name", "kind"), list(_cases()))
def test_a_method_works_on_the_kinds_that_it_names(name, kind):
    check_method(registry().method(name), {}, [kind])


def test_soft_and_a_loss_of_hidden_states_work_on_every_kind():
    for kind in NEW:
        assert set(PAIRS).issuperset({("soft", kind), ("minilm", kind)})


@pytest.mark.parametrize("name", registry().methods)
def test_methods_name_only_kinds_that_there_are(name):
    method = registry().method(name)
    assert registry().kinds.keys() >= set(method.kinds)
    of_answers = method.on_policy or method.aligns or method.other_prompts
    needed = {"causal-lm"} if of_answers else OLD
    if name in OF_CLASSES:
        needed = needed - {"regression"}
    assert set(method.kinds).issuperset(needed)
