"""`gkd plan` of teachers with another tokenizer, or whose answers come from elsewhere."""

from __future__ import annotations

import pytest

from gkd_core.api import AnswerSource, hookimpl
from gkd_core.config.resolve import resolve
from gkd_core.planning.shapes import ShapeSpecBuilder
from gkd_core.planning.simulation import simulate
from gkd_core.runs.run import build_specs


class Anything(AnswerSource):
    """Has all tensors."""

    name = "anything"

    def missing(self, capture):
        return None

    def fingerprint(self):
        return ""

    def answer(self, captures, batch, step):
        return {}


@pytest.fixture
def plan(registry_with, tongues, world):
    """Simulate a stage: `plan("bert", "roberta", "method=soft")`."""

    class Plugin:
        @staticmethod
        @hookimpl
        def gkd_register_teachers():
            return [Anything]

    def _plan(teacher, student, *settings):
        registry = registry_with(Plugin())
        given = [f"teacher.model={tongues / teacher}", f"student.model={tongues / student}"]
        kind = "task.kind=masked-lm" if "masked" in teacher else "task.kind=classification"
        data = "corpus.txt" if "masked" in teacher else "train.jsonl"
        given += [f"task.train={world / data}", kind, "task.max_length=16"]
        resolved = resolve(registry, settings=[*given, "training.batch_size=4", *settings])
        tasks = [stage.config.task for stage in resolved.stages]
        (spec,) = build_specs(resolved, ShapeSpecBuilder(registry, tasks)).values()
        return simulate(spec, registry)

    return _plan


@pytest.mark.parametrize("head", ["", "masked-"])
def test_teacher_with_another_tokenizer(plan, head):
    method = "method=rail-kd" if head else "method=pkd+kd"
    estimate = plan(f"{head}bert", f"{head}roberta", method)
    assert estimate.parameters.keys() == {"teacher", "student"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["kd", "minilm"])
def test_teacher_without_a_model_takes_no_weights(plan, method):
    live = plan("roberta", "roberta", f"method={method}")
    found = plan("roberta", "roberta", f"method={method}", "teacher.source=anything")
    assert found.parameters.keys() == {"student"}
    assert "teacher weights" in live.memory
    assert "teacher weights" not in found.memory
    assert found.memory["student weights"] == live.memory["student weights"]
