"""Heads of divided models, applied to vectors that a method makes itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gkd_core.api import Method, MethodError, ModelInfo, Models, Schedule, Step, kl
from gkd_core.hooks.extraction import Extractor
from gkd_core.models.sites import find_sites
from gkd_core.plugins import registry

WIDER = {"hidden_size": 48, "initializer_range": 0.3}
ROWS = torch.arange(4, 28).view(2, 12)


class Projected(Method):
    """The teacher's head on the student's states, projected to its width."""

    name = "projected"
    paper = "A test"
    applies = staticmethod(lambda teacher, hidden: teacher.head(hidden))

    def reads(self, models, step):
        site = "hidden[last].normed" if models.student.labels == 99 else "pooled"
        return [f"student.{site}", "student.logits", "teacher.logits"]

    def build_modules(self, models):
        return {"map": nn.Linear(models.student.hidden_size, models.teacher.hidden_size)}

    def loss(self, student, teacher, batch, step):
        hidden = student.pooled if teacher.prediction.dim() == 2 else student.hidden.normed
        found = self.applies(teacher, self.modules["map"](hidden))
        own = student.head(2 * hidden)
        return {
            "projected": kl(found, teacher.prediction, batch.targets),
            "own": kl(own, student.prediction, batch.targets),
        }


class Natural(Projected):
    """The same as one would write it without `View.head`."""

    applies = staticmethod(lambda teacher, hidden: replace(teacher.prediction, hidden=hidden))


def batch(kind, rank=0):
    from gkd_core.api import Batch

    tokens = ROWS + rank
    labels = tokens.roll(-1, 1) if kind == "causal-lm" else torch.tensor([0, 1])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return Batch(inputs, labels, torch.arange(2))


def extractor(path, kind, group):
    from gkd_core.parallel.sharding import shard_model

    model = registry().kind(kind).auto.from_pretrained(path).eval().double()
    model = model if group is None else shard_model(model, group)
    return Extractor(model, find_sites(model))


def norm(method, paths, kind, groups, rows=None):
    """The norm of the gradient of the student and the projection, and the losses."""
    from gkd_core.distributed.shards import Division
    from gkd_core.distributed.teacher_batches import TeacherBatches
    from gkd_core.objective.objective import Objective
    from gkd_core.objective.passes import run_passes
    from gkd_core.objective.step_plan import ActiveMethod

    student, teacher = (extractor(*pair) for pair in zip(paths, (kind, kind), groups, strict=True))
    teacher.model.requires_grad_(False)
    labels = 99 if kind == "causal-lm" else 2
    models = Models(
        ModelInfo.read("student", student.model.config, labels),
        ModelInfo.read("teacher", teacher.model.config, labels),
    )
    generator = torch.Generator().manual_seed(0)
    member = ActiveMethod(method.name, Schedule.parse(1), (method(),), (models,), generator)
    objective = Objective([member])
    objective.build_modules(0)
    objective.modules.double()
    step, rows = Step(0, 1, 0, "test", generator), rows or TeacherBatches([batch(kind)])
    plan, own = objective.plan(step), rows.batches[rows.own]
    captured = run_passes(plan, student, [teacher], own, step, rows)
    terms = objective.terms(captured, own, step, plan)
    sum(term.mean() for term in terms.values()).backward()
    trained = [*student.model.parameters(), *objective.modules.parameters()]
    values = [term.mean().item() for term in terms.values()]
    return [Division([student.model]).gradient_norm(trained, torch.device("cpu")).item(), *values]


def compare(paths, kind):
    """What one process finds, and what two do that share student and teacher as the key says."""
    pair = dist.group.WORLD
    found = {"alone": norm(Projected, paths, kind, (None, None))}
    for name, groups in {"both": (pair, pair), "student": (pair, None)}.items():
        found[name] = norm(Projected, paths, kind, groups)
    if kind == "causal-lm":
        found["natural"] = norm(Natural, paths, kind, (pair, pair))
    return found


@pytest.mark.parametrize(("family", "kind"), [("llama", "causal-lm"), ("bert", "classification")])
def test_gradients_through_a_head_are_those_of_one_process(on_ranks, checkpoint, family, kind):
    paths = checkpoint(family, kind), checkpoint(family, kind, **WIDER)
    for found in on_ranks(2, compare, paths, kind):
        for name, numbers in found.items():
            assert numbers == pytest.approx(found["alone"], rel=1e-9), name
        assert found["alone"][0] > 0.01


def own_rows(paths, kind):
    """Two ranks with other rows each share the teacher only."""
    from gkd_core.distributed.teacher_batches import TeacherBatches

    batches, rank = [batch(kind, rank) for rank in range(2)], dist.get_rank()
    rows = TeacherBatches(batches, rank)
    alone = norm(Projected, paths, kind, (None, None), TeacherBatches([batches[rank]]))
    return alone, norm(Projected, paths, kind, (None, dist.group.WORLD), rows)


@pytest.mark.parametrize("width", [48, 16])
def test_ranks_with_rows_of_their_own_share_a_head(on_ranks, checkpoint, width):
    """Of a wide head, the logits of 24 rows are gathered; a narrow one is gathered itself."""
    wider = WIDER | {"hidden_size": width}
    paths = checkpoint("llama", "causal-lm"), checkpoint("llama", "causal-lm", **wider)
    first, second = on_ranks(2, own_rows, paths, "causal-lm")
    for alone, shared in (first, second):
        assert shared == pytest.approx(alone, rel=1e-9)
    assert first[0] != second[0]


def test_a_head_that_is_no_linear_layer_is_refused(view_of):
    view = view_of("teacher", {"logits": torch.zeros(1, 2)}, 2)
    with pytest.raises(MethodError, match="test applies the head of teacher, but the logits"):
        view.head(torch.zeros(1, 32))
    blind = view_of("teacher", {"hidden[1]": torch.zeros(1, 2, 32)}, 2)
    with pytest.raises(MethodError, match=r"did not request teacher\.logits"):
        blind.head(torch.zeros(1, 32))
