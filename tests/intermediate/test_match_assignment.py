"""Layers paired by what they cost."""

from collections import defaultdict
from itertools import combinations

import pytest
import torch

from gkd_methods_intermediate.matching.assignment import monotone, transport

SHAPES = [(1, 1), (2, 2), (2, 4), (3, 5), (6, 12), (4, 3)]


def costs(students, teachers, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(students, teachers, generator=generator, dtype=torch.float64)


def total(flow, costs):
    return sum(weight * costs[s - 1, t - 1].item() for (s, t), weight in flow.items())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_flow_out_of_and_into_the_blocks_is_uniform(shape):
    leaves, arrives = defaultdict(float), defaultdict(float)
    for (s, t), weight in transport(costs(*shape)).items():
        assert weight > 0
        leaves[s] += weight
        arrives[t] += weight
    assert leaves == pytest.approx(dict.fromkeys(range(1, shape[0] + 1), 1 / shape[0]))
    assert arrives == pytest.approx(dict.fromkeys(range(1, shape[1] + 1), 1 / shape[1]))


@pytest.mark.parametrize("seed", range(5))
def test_the_flow_is_the_cheapest(seed):
    cost = costs(2, 4, seed)
    # Each student block carries to two of the four teacher blocks.
    every = []
    for own in combinations((1, 2, 3, 4), 2):
        others = {1, 2, 3, 4} - set(own)
        every.append({(1, t): 0.25 for t in own} | {(2, t): 0.25 for t in others})
    assert total(transport(cost), cost) == pytest.approx(min(total(flow, cost) for flow in every))


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_the_size_of_the_costs_does_not_matter(scale):
    cost = costs(3, 6)
    assert transport(scale * cost) == pytest.approx(transport(cost))


def test_costs_of_zero_and_costs_that_are_no_numbers_still_give_a_flow():
    assert sum(transport(torch.zeros(2, 3)).values()) == pytest.approx(1)
    broken = costs(2, 3)
    broken[0, 0] = torch.nan
    assert transport(broken) == pytest.approx({(s, t): 1 / 6 for s in (1, 2) for t in (1, 2, 3)})
    assert set(monotone(broken)) == {(1, 2), (2, 3)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (2, 5), (3, 6), (4, 7)])
def test_the_ordered_pairing_is_the_cheapest(shape, seed):
    cost = costs(*shape, seed)
    students, teachers = shape
    every = [
        dict.fromkeys(enumerate(chosen, start=1), 1.0)
        for chosen in combinations(range(1, teachers + 1), students)
    ]
    found = monotone(cost)
    assert found in every
    assert total(found, cost) == pytest.approx(min(total(flow, cost) for flow in every))
