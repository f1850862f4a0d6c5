"""What methods and combiners return is refused where it is wrong, with the place in their code."""

import itertools
import json
import re
from types import SimpleNamespace

import pytest
import torch

from gkd_core.api import Method, TeacherCombiner, Term, hookimpl
from gkd_core.errors import GkdError
from gkd_core.losses import mse

GIVEN: dict[str, object] = {}
"""What the method and the combiner return, by what is called; a function is called."""


NUMBERS, FOLDERS = itertools.count(), itertools.count()


def given(name, usual, *arguments):
    answer = GIVEN.get(name, usual)
    return answer(*arguments) if callable(answer) else answer


class Odd(Method):
    """Returns what a test wants."""

    name = "odd"
    paper = "Nobody, 2026"

    def reads(self, models, step):
        return given("reads", ["student.hidden[last]", "teacher.hidden[last]"])

    def passes(self, models, step):
        return given("passes", [])

    def writes(self, models, step):
        return given("writes", [])

    def lr_factors(self, models, step):
        return given("lr_factors", {})

    def items(self, batch):
        return given("items", {})

    def state_dict(self):
        return given("state_dict", {})

    def fingerprint(self):
        return given("fingerprint", "")

    def on_stage_start(self, stage):
        return given("on_stage_start", None)

    def loss(self, student, teacher, batch, step):
        values = mse(student.hidden[-1], teacher.hidden[-1], batch.tokens)
        return given("loss", lambda _: {"odd": values}, values)


class Weighs(TeacherCombiner):
    """Weighs teachers as a test wants."""

    name = "weighs"
    paper = "Nobody, 2026"

    def weight(self, number, student, teacher, batch, step):
        return given("weight", 0.5)

    def normalize(self, weights):
        return given("normalize", weights, weights)

    def term_scale(self, reads, student, batch, step):
        return given("term_scale", 1.0)


@pytest.fixture
def run_odd(prepare_run, registry_with):
    """Train two steps with what the method returns: `run_odd(reads=None)`."""

    @hookimpl
    def gkd_register_methods():
        return [Odd]

    @hookimpl
    def gkd_register_combiners():
        return [Weighs]

    plugin = SimpleNamespace(
        gkd_register_methods=gkd_register_methods, gkd_register_combiners=gkd_register_combiners
    )

    def _run(method="odd", teachers=("teacher",), **answers):
        GIVEN.clear()
        GIVEN.update(answers)
        steps = ("training.steps=2", "training.evaluate_every=2", f"method={method}")
        directory = f"run-{next(FOLDERS)}"
        known = registry_with(plugin)
        run = prepare_run(*steps, registry=known, teachers=teachers, directory=directory)
        run.execute()
        return (run.directory / "metrics.jsonl").read_text()

    yield _run
    GIVEN.clear()


LETTERS = "return a list of paths, such as ['student.hidden[last]']"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"reads": None}, f"Odd.reads returned None; {LETTERS}"),
        ({"reads": "student.logits"}, f"Odd.reads returned 'student.logits'; {LETTERS}"),
        ({"reads": [3]}, f"Odd.reads returned 3 among others; {LETTERS}"),
        ({"passes": None}, "Odd.passes returned None; return a list of `Pass`"),
        ({"writes": ["x"]}, "Odd.writes returned 'x' among others; return a list of operations"),
        ({"lr_factors": None}, "Odd.lr_factors returned None; return a mapping of parts"),
        ({"lr_factors": {1: "half"}}, "Odd.lr_factors returned 'half' as 1; return a mapping"),
        ({"items": [1]}, "Odd.items returned a list; return a mapping of names to bool tensors"),
        ({"items": {"a": 3}}, "Odd.items returned 3 as 'a'; return a mapping"),
        ({"state_dict": None}, "Odd.state_dict returned None; return a mapping of names to"),
        ({"fingerprint": 3}, "Odd.fingerprint returned 3; return a string, such as a hash"),
        ({"on_stage_start": True}, "Odd.on_stage_start returned True; return why the stage"),
        ({"loss": None}, "Odd.loss returned None; return a mapping of names to losses"),
        ({"loss": lambda values: values}, "Odd.loss returned a Term; return a mapping"),
        ({"loss": {"odd": 1.0}}, "Odd.loss returned 1.0 as 'odd'; return a mapping"),
        (
            {"loss": {}},
            "no loss to train on in step 1 of stage 'distil': odd returned none. Return one",
        ),
        (
            {"loss": lambda values: {"odd": Term(values.values.detach(), values.over)}},
            "the loss of odd in step 1 of stage 'distil' depends on no weight that is trained",
        ),
        (
            {"loss": lambda values: {"odd": values * torch.ones(3, 1, 1)}},
            "odd returned the loss 'odd' with values of shape (3, 16, ",
        ),
    ],
)
def test_what_a_method_may_not_return_is_refused(run_odd, answers, message):
    with pytest.raises(GkdError, match=re.escape(message)):
        run_odd(**answers)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"weight": "0.5"}, "Weighs.weight returned '0.5'; return a number, or a tensor with one"),
        ({"weight": torch.ones(16, 1)}, "Weighs.weight returned a tensor of shape (16, 1); return"),
        ({"term_scale": None}, "Weighs.term_scale returned None; return a number"),
        ({"normalize": [1]}, "Weighs.normalize returned 1; return 2 weights, one for each teacher"),
        ({"normalize": None}, "Weighs.normalize returned None; return 2 weights"),
        ({"normalize": ["1", 0]}, "Weighs.normalize returned '1'; return a number, or a tensor"),
        (
            {"loss": lambda values: {f"odd-{next(NUMBERS)}": values}},
            "odd returned the losses 'odd-0' for one teacher and 'odd-1' for another",
        ),
    ],
)
def test_what_a_combiner_may_not_return_is_refused(run_odd, answers, message):
    with pytest.raises(GkdError, match=re.escape(message)):
        run_odd(method="weighs(odd)", teachers=("teacher", "decoder"), **answers)


def test_a_combiner_can_normalize_the_weights_over_the_teachers(run_odd):
    def share(weights):
        return [weight / sum(weights) for weight in weights]

    setting = {"method": "weighs(odd)", "teachers": ("teacher", "decoder")}
    names = ("loss/odd", "loss/total", "gradient_norm")
    halves, shared = (
        [{name: line.get(name) for name in names} for line in map(json.loads, log.splitlines())]
        for log in (run_odd(**setting), run_odd(**setting, weight=7.0, normalize=share))
    )
    assert any(line["loss/total"] for line in halves)
    assert halves == shared
