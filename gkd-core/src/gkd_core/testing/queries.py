"""`check_queries`: what a method says about a step depends on nothing but the step."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gkd_core.contract.method_base import MethodBase
from gkd_core.contract.model_info import Models
from gkd_core.contract.step import Step

ROUNDS = 3
"""The number of calls of each query in every step, each time in another order."""


def check_queries(
    methods: Sequence[MethodBase], models: Sequence[Models], step: Step, name: str
) -> None:
    """Check that queries about a step that has begun have no side effects.

    `reads`, `passes`, `writes` and `lr_factors` of each object are called repeatedly and in random
    order.

    Args:
        methods: The objects of one method, or a combiner once for each teacher.
        models: The models of each.
        step: A step that they have begun, with their generator.
        name: Name of the method, for messages.

    Raises:
        AssertionError: An answer changes, or a query draws from the generator or changes the state.
    """
    pairs = [
        (number, query)
        for number, (method, seen) in enumerate(zip(methods, models, strict=True))
        for query in _queries(method, seen, step).items()
    ]
    before, states = step.generator.get_state(), [str(method.state_dict()) for method in methods]
    order = random.Random(0)
    answers: dict[tuple[int, str], Any] = {}
    for _ in range(ROUNDS):
        for number, (query, ask) in order.sample(pairs, len(pairs)):
            answer = ask()
            first = answers.setdefault((number, query), answer)
            assert answer == first, f"{name}: `{query}` changes when asked again: {first}, {answer}"
    hint = "do so in `begin_step`"
    same = torch.equal(before, step.generator.get_state())
    assert same, f"{name}: a query draws from `step.generator`; {hint}"
    after = [str(method.state_dict()) for method in methods]
    assert after == states, f"{name}: a query changes what `state_dict` returns; {hint}"


def _queries(method: MethodBase, models: Models, step: Step) -> Mapping[str, Callable[[], Any]]:
    """Return the queries of an object; their answers can be compared."""
    return {
        "reads": lambda: list(method.reads(models, step)),
        "passes": lambda: list(method.passes(models, step)),
        "writes": lambda: [str(operation) for operation in method.writes(models, step)],
        "lr_factors": lambda: dict(method.lr_factors(models, step)),
    }
