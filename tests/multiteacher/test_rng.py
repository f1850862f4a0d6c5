"""Random numbers by step, teacher and row."""

import torch

from gkd_core.api import Step
from gkd_methods_multiteacher.rng import uniform


def _step(index, seed=3):
    return Step(index, 10, 0, "test", torch.Generator().manual_seed(seed))


def _drawn(rows, index=0, teacher=0, seed=3):
    return uniform(_step(index, seed), teacher, rows)


def test_numbers_are_even_over_the_unit_interval():
    drawn = _drawn(torch.arange(20000))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    parts = torch.histc(drawn.float(), 10, 0, 1) / len(drawn)
    assert (parts - 0.1).abs().max() < 0.01


def test_a_row_draws_the_same_wherever_it_stands():
    rows = torch.tensor([7, 0, 3])
    assert torch.equal(_drawn(torch.arange(9))[rows], _drawn(rows))


def test_steps_teachers_and_seeds_draw_independently():
    rows = torch.arange(4000)
    streams = [_drawn(rows), _drawn(rows, 1), _drawn(rows, 0, 1), _drawn(rows, 0, 0, 4)]
    correlations = torch.stack(streams).corrcoef().triu(1)
    assert correlations.abs().max() < 0.05


def test_drawing_moves_no_generator():
    step = _step(0)
    before = step.generator.get_state()
    uniform(step, 0, torch.arange(5))
    assert torch.equal(step.generator.get_state(), before)
