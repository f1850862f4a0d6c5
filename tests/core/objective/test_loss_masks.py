"""Logits at tokens that are not learned, such as those of a prompt, are in no method's loss."""

from dataclasses import replace

import pytest
import torch

from gkd_core.contract.batch import ROW_SOURCES
from gkd_core.errors import MethodError
from gkd_core.plugins import registry
from gkd_core.rollouts.rows import split_prompts
from gkd_core.testing.check_method import MethodTrial
from gkd_core.testing.tiny import tiny_batch

LATE = {"sid": 2, "theseus": 0}
"""Step in which a method that waits has the loss of its logits."""

METHODS = sorted(
    name
    for name, method in registry().methods.items()
    if "causal-lm" in method.kinds and name != "autodisc"  # which needs a run
)


def trial_of(name):
    try:
        return MethodTrial(registry().method(name), {}, "causal-lm", LATE.get(name, 0))
    except MethodError as error:
        pytest.skip(str(error))


def reads_logits(trial):
    (requests,) = trial.objective.plan(trial.step(trial.first_step)).requests.values()
    reads = [*requests[0].reads.student.values(), *requests[0].reads.teacher.values()]
    return any(capture.site == "logits" for found in reads for capture in found)


@pytest.mark.parametrize("name", METHODS)
def test_logits_of_a_prompt_do_not_matter(name):
    trial = trial_of(name)
    if not reads_logits(trial):
        pytest.skip("it reads no logits")
    batch = tiny_batch("causal-lm")
    written = torch.full_like(batch.rows, ROW_SOURCES.index("student"))
    batch = split_prompts(replace(batch, loss_mask=None, sources=written), 4)
    free = ~(batch.targets.mask | batch.tokens.mask)
    losses = []
    for change in (0.0, 7.0):
        handles = [
            one.model.base_model.norm.register_forward_hook(
                lambda norm, args, out, change=change: out + change * free[..., None]
            )
            for one in (trial.student, *trial.teachers)
        ]
        trial.objective = trial.build()
        losses.append(trial.loss(batch, trial.counts(batch)).item())
        for handle in handles:
            handle.remove()
    assert free[:, 0].all()
    assert losses[0] != 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
