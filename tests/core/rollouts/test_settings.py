"""The `rollout` table: what is refused, explained and kept."""

from __future__ import annotations

import json

import pytest
from pydantic import Field

from gkd_core.analysis.explanation import explain
from gkd_core.api import RolloutEngine, Written, hookimpl
from gkd_core.config.render import to_toml
from gkd_core.errors import ConfigError, PluginError
from gkd_core.runs.outline import outline_run

GREEDY = ("rollout.engine=greedy", "rollout.prompt_tokens=4", "rollout.max_new_tokens=6")


@pytest.fixture
def prepare(prepare_run, registry_with, world, plugin):
    """Prepare a run on text with a `rollout` table."""

    def _prepare(*settings, engine="greedy", teachers=("lm-decoder",), **options):
        corpus = f"task.train={world / 'corpus.txt'}"
        plain = [corpus, corpus.replace("train", "validation"), corpus.replace("train", "test")]
        given = ("task.kind=causal-lm", "method=soft", *settings)
        registry = registry_with(plugin(engine))
        return prepare_run(*plain, *given, teachers=teachers, registry=registry, **options)

    return _prepare


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("rollout.engine=gredy",), "unknown rollout engine 'gredy'. Did you mean 'greedy'?"),
        (("rollout.student=0.5",), "rollout.engine"),
        ((*GREEDY, "rollout.student=1.5"), "rollout.student: must stay from 0 to 1, got 1.5"),
        ((*GREEDY, "rollout.student=linear(0 -> 2)"), "must stay from 0 to 1, got linear(0 -> 2"),
        (
            (*GREEDY, "rollout.student=0.7", "rollout.teacher=0.4"),
            "`student` and `teacher` are shares of the same rows, but add up to 1.1 at the start",
        ),
        (
            (*GREEDY, "rollout.mixture=0.2"),
            "`mixture` = 0.2 has the teacher take part in the student's text, but the student "
            "writes none",
        ),
        ((*GREEDY, "rollout.student=1", "rollout.mixture=1"), "at least 0 and less than 1, got 1"),
        (
            (*GREEDY, "rollout.student=1", "rollout.mixture=0.2"),
            "rollout.mixture (--set) has the teacher take part in each token of the student, but "
            "the engine 'greedy' writes with one model. Use rollout.engine = 'generate'",
        ),
        ((*GREEDY, "rollout.max_new_token=3"), "setting. Did you mean 'rollout.max_new_tokens'?"),
        ((*GREEDY, "rollout.temperature=1"), "`rollout.temperature` (--set)"),
        (
            (*GREEDY, "rollout.max_new_tokens=29"),
            "rollout.prompt_tokens (--set) and rollout.max_new_tokens (--set) give rows of up to "
            "33 tokens, but the longest allowed is 32",
        ),
        (
            (*GREEDY, "task.kind=masked-lm"),
            "rollout lets models write text, but task.kind is masked-lm (--set). Use causal-lm",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(prepare, settings, message):
    teachers = ("lm-teacher",) if "task.kind=masked-lm" in settings else ("lm-decoder",)
    with pytest.raises(ConfigError) as refusal:
        prepare(*settings, teachers=teachers)
    assert message in str(refusal.value)


OWN_TEXT = ("rollout.engine=generate", *GREEDY[1:], "rollout.student=1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("rollout.temperature=0.7",),
            "opd estimates from text that is drawn from the student's own distribution, and "
            "rollout.temperature = 0.7 (--set) would draw it from another. Set "
            "rollout.temperature=1",
        ),
        (
            ("rollout.top_k=9", "rollout.top_p=0.9"),
            "rollout.top_k = 9 (--set) and rollout.top_p = 0.9 (--set) would draw it from another. "
            "Set rollout.top_k=0 and rollout.top_p=1",
        ),
        (
            ("method=minillm", "rollout.mixture=0.2", "rollout.temperature=0"),
            "minillm estimates from text",
        ),
    ],
)
def test_methods_that_estimate_from_tokens_want_the_students_own(prepare, settings, message):
    with pytest.raises(ConfigError) as refusal:
        prepare(*OWN_TEXT, "method=opd", *settings)
    assert message in str(refusal.value)
    prepare(*OWN_TEXT, "method=soft", "rollout.temperature=0.7")


def test_a_teacher_shared_by_more_processes_than_the_student_may_not_write(prepare):
    wide = ("parallel.nproc=2", "teachers.lm-decoder.tensor=2")
    with pytest.raises(ConfigError, match="'lm-decoder' write, but 2 processes share it and 1 the"):
        prepare(*GREEDY, "rollout.teacher=0.5", *wide)
    with pytest.raises(
        ConfigError, match=r"rollout.mixture \(--set\) lets the teacher 'lm-decoder'"
    ):
        prepare(*GREEDY, "rollout.student=1", "rollout.mixture=0.5", *wide)
    prepare(*GREEDY, "rollout.student=0.5", *wide)


def test_options_of_an_engine_stand_in_the_same_table(prepare):
    table = ("rollout.engine=sampling", *GREEDY[1:], "rollout.temperature=0.5")
    run = prepare(*table, engine="sampling")
    assert run.resolved.config.rollout.options == {"temperature": 0.5, "cooling": 1.0}
    lines = to_toml(run.resolved).splitlines()
    assert "temperature = 0.5  # --set" in lines
    assert "cooling = 1.0  # default" in lines
    with pytest.raises(ConfigError, match=r"rollout\.temperature"):
        prepare(*table, "rollout.temperature=-1", engine="sampling")


def test_a_stage_may_have_shares_of_its_own(prepare):
    stages = """
    [[stages]]
    name = "read"
    rollout.student = 0
    [[stages]]
    name = "write"
    rollout.student = 0.5
    """
    run = prepare(*GREEDY, file=stages)
    assert [str(spec.config.rollout.student) for spec in run.specs] == ["0", "0.5"]


def test_the_baseline_learns_from_the_data_alone(prepare):
    baseline, distil = prepare(*GREEDY, "rollout.student=1", "baseline=true").specs
    assert (baseline.name, distil.name) == ("baseline", "distil")
    assert baseline.config.rollout is None
    assert distil.config.rollout.student.start == 1


def test_a_teacher_that_only_writes_is_loaded(prepare, world):
    given = (*GREEDY, "method=hard", f"student.model={world / 'lm-decoder'}")
    for share, names in ((0.5, ("lm-decoder",)), (0, ())):
        spec = prepare(*given, f"rollout.teacher={share}").last
        assert spec.taught_by == names


def test_the_explanation_says_who_writes_which_share_and_why(prepare):
    run = prepare(*GREEDY, "rollout.student=linear(0 -> 0.5)", "rollout.teacher=0.25")
    lines = [line.strip() for line in explain(outline_run(run.specs), width=200).splitlines()]
    assert (
        "rollout    greedy writes linear(0 -> 0.5, over=100%) of the rows by the student and 0.25 "
        "of the rows by the teacher"
    ) in lines
    assert "rollout.prompt_tokens = 4  (--set)" in lines
    outline = json.loads(json.dumps(outline_run(run.specs).to_json()))["stages"][0]["rollout"]
    assert outline["student"] == "linear(0 -> 0.5, over=100%)"
    assert outline["options"]["max_new_tokens"] == {"value": 6, "origin": "--set"}


def test_the_explanation_says_that_the_teacher_takes_part(prepare):
    table = ("rollout.engine=generate", *GREEDY[1:], "rollout.student=1", "rollout.mixture=0.2")
    shown = explain(outline_run(prepare(*table).specs), width=200)
    assert "generate writes 1 of the rows by the student (with 0.2 of the teacher)" in shown


def test_a_teacher_that_only_takes_part_is_loaded(prepare, world):
    table = ("rollout.engine=generate", *GREEDY[1:], "rollout.student=1", "method=hard")
    own = (*table, f"student.model={world / 'lm-decoder'}")
    assert prepare(*own).last.taught_by == ()
    assert prepare(*own, "rollout.mixture=0.2").last.taught_by == ("lm-decoder",)


def test_without_a_table_nothing_is_explained(prepare):
    outline = outline_run(prepare().specs)
    assert outline.stages[0].rollout is None
    assert "rollout" not in explain(outline)


def test_an_engine_is_constructed_before_the_run(prepare_run, registry_with, world):
    class Absent(RolloutEngine):
        name = "absent"

        def __init__(self, config=None):
            raise ConfigError("its server is not there")

        def write(self, prompts, writer):
            return Written([[] for _ in prompts.rows])

    class Plugin:
        @hookimpl
        def gkd_register_rollouts(self):
            return [Absent]

    settings = (f"task.train={world / 'corpus.txt'}", "task.kind=causal-lm", "method=soft")
    table = ("rollout.engine=absent", *GREEDY[1:])
    with pytest.raises(ConfigError, match="its server is not there"):
        prepare_run(*settings, *table, teachers=("lm-decoder",), registry=registry_with(Plugin()))


def test_two_engines_of_one_name_are_refused(registry_with, plugin):
    class Plugin:
        @hookimpl
        def gkd_register_rollouts(self):
            (greedy,) = plugin("greedy").gkd_register_rollouts()
            return [greedy, type("Second", (greedy,), {})]

    registry = registry_with(Plugin())
    with pytest.warns(UserWarning, match=r"rollout engine 'greedy' of plugin 'test' .*has two"):
        assert "greedy" not in registry.rollout_engines
    with pytest.raises(ConfigError, match=r"rollout engine 'greedy' of plugin 'test' .*has two"):
        registry.rollout_engine_class("greedy")


def test_a_class_that_breaks_the_contract_is_refused():
    with pytest.raises(PluginError, match="`name` must be lower-case words"):
        type("Bad", (RolloutEngine,), {"name": "Bad Name"})

    class Taken(RolloutEngine.Config):
        teacher: float = Field(1.0, description="A share.")

    with pytest.raises(PluginError, match="`teacher` is a setting of every rollout"):
        type("Bad", (RolloutEngine,), {"name": "bad", "Config": Taken})

    class Bare(RolloutEngine.Config):
        top: float = 1.0

    with pytest.raises(PluginError, match="`top` needs a default and a description"):
        type("Bad", (RolloutEngine,), {"name": "bad", "Config": Bare})


def test_a_plan_leaves_out_what_models_write(invoke, world, plugin, registry_with, monkeypatch):
    for place in ("gkd_core.plugins", "gkd_core.runs.resolved"):
        monkeypatch.setattr(f"{place}.registry", lambda: registry_with(plugin("greedy")))
    given = [argument for setting in GREEDY for argument in ("--set", setting)]
    done = invoke(
        *("plan", "--json", "--teacher", world / "lm-decoder", "--student-layers", 2),
        *("--method", "soft", "--data", world / "corpus.txt", "--set", "task.kind=causal-lm"),
        *("--set", "task.max_length=32", *given, "--set", "rollout.student=1"),
    )
    assert done.code == 0, done.err
    assert "Warning: rollout makes models write text; the plan covers training on it" in done.err
    assert json.loads(done.out)[0]["peak"] > 0
