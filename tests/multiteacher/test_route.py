"""`route`: each row has the teacher that its source names."""

import json

import pytest
import torch

from gkd_core.api import Batch, DataInfo, ModelInfo, Models
from gkd_core.errors import MethodError
from gkd_methods_multiteacher.route import Route

SHAPE = (2, 4, 1, 1, 4, 16, 100, 2, 64)


def route(sources, **mapped):
    student = ModelInfo("student", "bert", *SHAPE)
    data = DataInfo(8, (), tuple(sources))
    models = [
        Models(student, ModelInfo(name, "bert", *SHAPE), "classification", data)
        for name in ("code", "math")
    ]
    return Route(Route.Config(teachers=mapped), models)


@pytest.mark.parametrize(
    ("sources", "mapped", "said"),
    [
        ((), {}, "which these rows do not have. Name the column"),
        (("code", "law"), {}, "rows are from the source 'law', which is not the name of a teacher"),
        (("code", "law"), {"law": "judge"}, "'law', which is not the name of a teacher"),
        (("code", "math"), {"law": "code"}, "names the source 'law', but the rows are from code"),
        (("code", "law"), {"law": "none"}, "no row to the teacher 'math'"),
    ],
)
def test_what_leads_nowhere_is_refused(sources, mapped, said):
    with pytest.raises(MethodError, match=said):
        route(sources, **mapped).check()


def test_a_row_learns_from_the_teacher_of_its_source_alone():
    combiner = route(("code", "sums", "law"), sums="math", law="none")
    combiner.check()
    sources = torch.tensor([0, 1, 2, -1, 1])
    mask = torch.ones(5, 1, dtype=torch.long)
    batch = Batch({"attention_mask": mask}, None, torch.arange(5), data_sources=sources)
    code, math = (combiner.weight(number, None, None, batch, None) for number in (0, 1))
    assert code.tolist() == [1, 0, 0, 0, 0]
    assert math.tolist() == [0, 1, 0, 0, 1]


@pytest.fixture
def parts(world, tmp_path):
    """Files of 12 rows for `large`, 4 for `small`, and of all with the column `teacher`."""
    lines = (world / "train.jsonl").read_text().splitlines()[:16]
    rows = [json.loads(line) | {"teacher": "small"} for line in lines[:4]]
    rows += [json.loads(line) | {"teacher": "large"} for line in lines[4:]]
    for name, own in (("all", rows), ("small", rows[:4]), ("large", rows[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return tmp_path


def test_a_routed_run_has_the_losses_of_its_parts(invoke, parts, calm):
    """Also where the source is the file of a mixture, and where a source has no teacher."""
    fixed = ["training.steps=1", "training.batch_size=16", "training.log_every=1"]
    fixed += [f"task.validation={parts / 'all.jsonl'}", "task.max_length=32", "output.reuse=false"]
    count = 0

    def loss(method, data, names, *options):
        nonlocal count
        count += 1
        named = [text for name in names for text in ("--teacher", f"{name}={calm / name}")]
        own = [text for one in (*fixed, *options) for text in ("--set", one)]
        output = parts / f"run-{count}"
        given = ["--method", method, "--student", calm / "large", "--data", data, "--no-baseline"]
        done = invoke("run", *given, *named, *own, "--output", output)
        assert done.code == 0, done.err
        lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        return next(line["loss/total"] for line in lines if "loss/total" in line)

    small, large = (loss("soft", parts / f"{n}.jsonl", [n]) for n in ("small", "large"))
    both = ("large", "small")
    routed = loss("route(soft)", parts / "all.jsonl", both, "task.source=teacher")
    assert routed == pytest.approx((4 * small + 12 * large) / 16, rel=1e-4)
    mixture = f"{parts / 'large.jsonl'}:3,{parts / 'small.jsonl'}:1"
    assert loss("route(soft)", mixture, both) == pytest.approx(routed, rel=1e-4)
    alone = ["task.source=teacher", "route.teachers.small=none"]
    found = loss("route(soft)", parts / "all.jsonl", ["large"], *alone)
    assert found == pytest.approx(12 * large / 16, rel=1e-4)
