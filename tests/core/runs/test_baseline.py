"""The baseline of a run on the user's rows: trained where it is cheap, else offered."""

import json

import pytest
import tomli_w

from gkd_core.config.render import to_toml
from gkd_core.runs.default_method import as_begun_before, as_built
from gkd_core.runs.fingerprint import Fingerprints
from gkd_core.runs.training_cost import forward_cost, training_cost


@pytest.fixture
def prepare(world):
    """Prepare a run of which only the rows are given."""
    from gkd_core.config.resolve import resolve
    from gkd_core.plugins import registry
    from gkd_core.runs.run import prepare_run as specs_of

    def _prepare(*settings, layers=2, files=()):
        given = [f"task.train={world / 'train.jsonl'}", f"student.layers={layers}", *settings]
        resolved = resolve(
            registry(),
            files=files,
            settings=given,
            flags={"teachers": ([{"model": str(world / "teacher")}], "--teacher")},
        )
        return resolved, specs_of(resolved, registry())

    return _prepare


@pytest.fixture
def prepare_stages(prepare, tmp_path):
    """Prepare a run of some stages."""

    def _prepare(*stages):
        file = tmp_path / "stages.toml"
        file.write_text(tomli_w.dumps({"baseline": True, "stages": stages}))
        return prepare(files=[file])[1]

    return _prepare


def names(specs):
    return [spec.name for spec in specs]


def test_the_baseline_is_trained_if_it_adds_at_most_half(prepare):
    _, specs = prepare("method=soft", layers=1)
    assert names(specs) == ["baseline", "distil"]
    baseline, last = specs
    assert training_cost(baseline) / training_cost(last) == pytest.approx(3 / 7, rel=0.01)
    assert forward_cost(last.teachers[0].info) == 4 * forward_cost(last.student)
    assert names(prepare("method=soft", "baseline=false", layers=1)[1]) == ["distil"]


def test_labels_alone_are_learned_as_the_run_itself_learns_them(prepare_stages):
    refined = {"name": "refine", "method": "soft", "training": {"lr": 1e-6, "epochs": 1}}
    learned = {"name": "learn", "method": "hard", "training": {"lr": 1e-3, "epochs": 5}}
    baseline, *_ = prepare_stages(learned, refined)
    assert (baseline.name, baseline.config.training.lr, baseline.config.training.epochs) == (
        "baseline",
        1e-3,
        5,
    )
    assert baseline.follows is None
    baseline, *_ = prepare_stages({**learned, "method": "kd"}, refined)
    assert baseline.config.training.lr == 1e-6


def test_otherwise_one_line_says_how_to_train_it(prepare):
    _, (last,) = prepare()
    assert last.notes[-1] == (
        "the same student on labels alone would add about 60% to the cost of the run; train it "
        "with --baseline to see what distillation gains"
    )
    assert names(prepare("baseline=true")[1]) == ["baseline", "distil"]


def test_a_run_that_goes_on_does_not_decide_again(prepare):
    for settings, layers, wanted in (((), 1, True), ((), 2, False), (("baseline=true",), 2, True)):
        resolved, specs = prepare("method=soft", *settings, layers=layers)
        assert as_built(resolved, specs).config.baseline is wanted
    resolved, _ = prepare("method=soft", layers=1)
    assert as_begun_before(resolved).config.baseline is False


def test_labels_alone_have_no_baseline(prepare):
    _, (only,) = prepare("method=hard", layers=1)
    assert not any("--baseline" in note for note in only.notes)


def test_without_a_method_labels_are_learned_where_there_are_some(prepare, tmp_path, world):
    resolved, (*_, last) = prepare()
    assert (str(last.expression), resolved.config.method) == ("soft+hard", "soft")
    assert last.origin("method") == "default for rows with labels"
    built = as_built(resolved, [last])
    assert built.config.method == built.stages[0].config.method == "soft+hard"
    assert 'method = "soft+hard"' in to_toml(built)

    rows = map(json.loads, (world / "train.jsonl").read_text().splitlines())
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    _, (*_, last) = prepare(f"task.train={file}")
    assert str(last.expression) == "soft"
    _, (*_, last) = prepare("method=soft")
    assert str(last.expression) == "soft"


def test_the_flag_for_the_values_of_the_paper_leaves_a_fingerprint_as_it_is(prepare):
    from gkd_core.plugins import registry

    _, (*_, one) = prepare("method=soft")
    _, (*_, other) = prepare("method=soft", "paper_values=true")
    assert Fingerprints(registry()).of(one) == Fingerprints(registry()).of(other)
