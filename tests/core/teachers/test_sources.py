"""Teachers whose answers come from elsewhere: here from a file with a row for each row."""

import shutil
from pathlib import Path

import pytest
import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file

from gkd_core import digest
from gkd_core.analysis.explanation import explain
from gkd_core.api import (
    AnswerSource,
    ConfigError,
    DataError,
    GkdError,
    LinearLogits,
    Method,
    PluginError,
    Replace,
    RolloutEngine,
    Written,
    hookimpl,
)
from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.hooks.paths import LOGITS
from gkd_core.plugins import registry
from gkd_core.runs.fingerprint import Fingerprints
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step

CLASSIC = [name for name in registry().methods if registry().provider(name).name == "classic"]
READERS = [
    name
    for name in CLASSIC
    if name not in ("hard", "minilm", "minilmv2", "pkd", "dskd")
    and not registry().method(name).on_policy
]
"""The classic methods that read logits of a teacher and, unlike `dskd`, do not apply its head."""
KINDS = {"classification": ("teacher", []), "causal-lm": ("lm-decoder", ["task.kind=causal-lm"])}
KINDS["masked-lm"] = ("lm-teacher", ["task.kind=masked-lm"])


def _readers(kind):
    """Return those that are made for a kind of task, in another order for language models."""
    found = [name for name in READERS if kind in registry().method(name).kinds]
    return found if kind == "classification" else reversed(found)


class FromFile(AnswerSource):
    """Answers by row of the training data, written down for one epoch."""

    name = "file"

    class Config(AnswerSource.Config):
        """Options of `file`."""

        path: str = Field(description="A safetensors file with `PATH` -> `[rows, ...]`.")

    config: Config

    def check(self):
        if not Path(self.config.path).exists():
            raise DataError(f"teacher.source.path: there is no file {self.config.path}")

    def missing(self, capture):
        with safe_open(self.config.path, "pt") as file:
            known = sorted(file.keys())
        return None if str(capture) in known else f"the file has only {', '.join(known)}"

    def fingerprint(self):
        return digest.of_files([Path(self.config.path)])

    def answer(self, captures, batch, step):
        with safe_open(self.config.path, "pt") as file:
            return {one: self._rows(file.get_tensor(str(one)), batch) for one in captures}

    def _rows(self, tensor, batch):
        rows = tensor[batch.rows.cpu()]
        per_position = rows.dim() == 3
        return (rows[:, : batch.mask.shape[1]] if per_position else rows).to(batch.rows.device)


class Factored(FromFile):
    """Keeps the hidden states that the head of a language model gets, and the head."""

    name = "factored"

    def missing(self, capture):
        return None if capture == LOGITS else "there are only logits"

    def gives_head(self):
        return True

    def answer(self, captures, batch, step):
        with safe_open(self.config.path, "pt") as file:
            hidden = self._rows(file.get_tensor("hidden"), batch)
            return {LOGITS: LinearLogits(hidden, file.get_tensor("weight"), None)}


class Forgetful(FromFile):
    """Says that it has everything and gives nothing."""

    name = "forgetful"

    def missing(self, capture):
        return None

    def answer(self, captures, batch, step):
        return {}


class One(Forgetful):
    """Answers for the first row only, which would be broadcast to all."""

    name = "one"

    def answer(self, captures, batch, step):
        return {capture: torch.zeros(1, 2) for capture in captures}


class Later(Method):
    """Reads hidden states in the second half of a stage."""

    name = "later"
    paper = "A test"

    def reads(self, models, step):
        return ["teacher.hidden[1]|cls" if 2 * step.index >= step.total else "teacher.logits"]

    def loss(self, student, teacher, batch, step):
        return {}


class Doubles(Later):
    """Changes the teacher."""

    name = "doubles"

    def writes(self, models, step):
        return [Replace("teacher.hidden[1]", lambda tensor: 2 * tensor)]


class Silent(RolloutEngine):
    """Writes nothing."""

    name = "silent"

    def write(self, prompts, writer):
        return Written([[] for _ in prompts.rows])


@pytest.fixture
def plugin(registry_with):
    class Plugin:
        @staticmethod
        @hookimpl
        def gkd_register_methods():
            return [Later, Doubles]

        @staticmethod
        @hookimpl
        def gkd_register_rollouts():
            return [Silent]

        @staticmethod
        @hookimpl
        def gkd_register_teachers():
            return [FromFile, Factored, Forgetful, One]

    return registry_with(Plugin())


@pytest.fixture
def prepare(prepare_run, plugin, tmp_path):
    """Prepare a run whose teacher answers from a file, or a live one for None."""

    def _prepare(source, *settings, teacher="teacher"):
        extra = []
        if source is not None:
            extra = [f"teacher.source={source}", f"teacher.source.path={tmp_path / 'answers'}"]
        return prepare_run(*settings, *extra, teachers=(teacher,), registry=plugin)

    return _prepare


def build(run, folder):
    return build_stage(run.specs[0], run.registry, folder, None)


def write(stage, path):
    """Write what the methods of a stage read of its live teacher, for every row."""
    plan = stage.spec.first_step
    captures = plan.passes[0].captures("teacher", 0)
    batch = stage.collator.collate(stage.train, range(len(stage.train)), epoch=0)
    with torch.no_grad():
        features = stage.teachers[0].run(captures, batch.inputs)
    save_file({str(one): features[one].contiguous() for one in captures}, path)


def losses_of(stage, steps=2):
    rows = (stage.train, stage.collator, stage.sampler, 0, steps)
    return [
        train_step(stage, batches, Step(index, steps, 0, stage.name, torch.Generator())).read()
        for index, (_, batches) in enumerate(iterate(*rows))
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.exhaustive] if number > 1 else [])
        for kind in KINDS
        for number, name in enumerate(_readers(kind))
    ],
)
def test_methods_get_the_same_numbers_from_a_file(prepare, tmp_path, name, kind):
    teacher, settings = KINDS[kind]
    settings = [f"method={name}", *settings]
    live = build(prepare(None, *settings, teacher=teacher), tmp_path / "live")
    write(live, tmp_path / "answers")
    expected = losses_of(live)
    found = losses_of(build(prepare("file", *settings, teacher=teacher), tmp_path / "file"))
    assert [list(losses) for losses in found] == [list(losses) for losses in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_logits_may_come_in_a_factored_form(prepare, tmp_path):
    settings = ["method=soft", "task.kind=causal-lm"]
    live = build(prepare(None, *settings, teacher="lm-decoder"), tmp_path / "live")
    batch = live.collator.collate(live.train, range(len(live.train)), epoch=0)
    with torch.no_grad():
        deferred = live.teachers[0].run(frozenset([LOGITS]), batch.inputs).prediction
    parts = {"hidden": deferred.hidden, "weight": deferred.weight}
    save_file({name: part.clone() for name, part in parts.items()}, tmp_path / "answers")
    expected = losses_of(live)
    found = losses_of(build(prepare("factored", *settings, teacher="lm-decoder"), tmp_path / "f"))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_run_reads_no_weights_of_such_a_teacher(prepare, world, tmp_path):
    live = build(prepare(None, "method=kd"), tmp_path / "live")
    write(live, tmp_path / "answers")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(world / "teacher", elsewhere)
    (elsewhere / "model.safetensors").unlink()
    run = prepare("file", "method=kd", f"student.model={world / 'teacher'}", teacher=elsewhere)
    assert "elsewhere: answers from file" in explain(run.outline)
    run.execute()
    assert "kd.soft" in (run.directory / "metrics.jsonl").read_text()


def test_a_student_may_start_from_the_weights_of_such_a_teacher(prepare, tmp_path):
    live = build(prepare(None, "method=kd"), tmp_path / "live")
    write(live, tmp_path / "answers")
    stage = build(prepare("file", "method=kd"), tmp_path / "file")
    weights = live.student.model.state_dict()
    assert all(w.equal(weights[n]) for n, w in stage.student.model.state_dict().items())


def test_an_answer_that_is_not_finite_is_named_with_its_row(prepare, tmp_path):
    logits = torch.zeros(96, 2)
    logits[7, 1] = float("nan")
    save_file({"logits": logits}, tmp_path / "answers")
    with pytest.raises(GkdError) as raised:
        prepare("file", "method=soft", "training.precision=fp16").execute()
    found = "the output of the source 'file' is the first that contains nan (training rows 7,"
    assert f"In the teacher 'teacher', {found}" in str(raised.value)
    assert "Correct what the source answers" in str(raised.value)


def test_the_fingerprint_changes_with_the_answers(prepare, tmp_path):
    found = []
    for value in (1.0, 1.0, 2.0):
        save_file({"logits": torch.full((96, 2), value)}, tmp_path / "answers")
        run = prepare("file", "method=soft")
        found.append(str(Fingerprints(run.registry).of(run.specs[0])))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["method=minilm"],
            r"minilm reads teacher.attention\[4\].*'teacher' come from 'file' "
            r"\(teacher.source\): the file has only logits",
        ),
        (["method=distilbert"], r"distilbert reads teacher.hidden\[4\].normed.*only logits"),
        (["method=sid"], r"sid reads teacher.attention\[2\].*only logits"),
        (
            ["method=diito", "diito.alpha_cos=0"],
            r"diito reads teacher.hidden\[\d\] in the pass 'source'",
        ),
        (["method=doubles"], r"doubles changes teacher.hidden\[1\], but .*no forward pass is made"),
        (["method=theseus"], "theseus runs blocks of the teacher, .* no model is loaded"),
    ],
)
def test_what_a_source_cannot_give_is_refused_before_the_run(prepare, tmp_path, settings, message):
    save_file({"logits": torch.zeros(96, 2)}, tmp_path / "answers")
    with pytest.raises(ConfigError, match=message):
        prepare("file", *settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "rollout.student=0.5",
            "rollout has models write text, .*only the text of the training rows",
        ),
        ("rollout.teacher=0.5", "rollout.teacher makes the teacher write, .*no model that could"),
        (
            "rollout.engine=generate rollout.student=0.5 rollout.mixture=0.2",
            "rollout.mixture makes the teacher write, .*no model that could",
        ),
    ],
)
def test_a_file_knows_no_text_that_models_write(prepare, tmp_path, setting, message):
    save_file({"logits": torch.zeros(96, 32, 29)}, tmp_path / "answers")
    settings = ["rollout.engine=silent", "rollout.prompt_tokens=4", "rollout.max_new_tokens=6"]
    settings += ["method=soft", "task.kind=causal-lm"]
    with pytest.raises(ConfigError, match=message):
        prepare("file", *settings, *setting.split(), teacher="lm-decoder")


def test_what_is_read_only_later_is_refused_too(prepare, tmp_path):
    save_file({"logits": torch.zeros(96, 2)}, tmp_path / "answers")
    with pytest.raises(ConfigError, match=r"later reads teacher.hidden\[1\]\|cls.*only logits"):
        prepare("file", "method=later")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["teacher.source=fiel"], "unknown source of answers 'fiel'. Did you mean 'file'?"),
        (["teacher.source=file"], "`teachers.0.source.path` is missing"),
        (["teacher.source=file", "teacher.source.path=3"], "teacher.source.path must be a string"),
        (["teacher.source=file", "teacher.source.paht=x"], "'?paht"),
        (["teacher.source=file", "teacher.source.path=nowhere"], "there is no file nowhere"),
    ],
)
def test_wrong_options_are_refused(prepare_run, plugin, settings, message):
    with pytest.raises((ConfigError, DataError), match=message):
        prepare_run("method=soft", *settings, registry=plugin)


def test_a_source_needs_the_shape_of_the_teacher(prepare_run, plugin):
    with pytest.raises(ConfigError, match=r"teacher.model is not set, whose shape and tokenizer"):
        prepare_run("teacher.source=file", "teacher.source.path=x", teachers=(), registry=plugin)


def test_a_source_that_leaves_out_what_it_promised_is_named(prepare, tmp_path):
    save_file({"logits": torch.zeros(96, 2)}, tmp_path / "answers")
    stage = build(prepare("forgetful", "method=soft"), tmp_path / "stage")
    with pytest.raises(PluginError, match="'forgetful' returned no logits of the teacher"):
        losses_of(stage, 1)


def test_answers_for_another_number_of_rows_are_refused(prepare, tmp_path):
    save_file({"logits": torch.zeros(96, 2)}, tmp_path / "answers")
    stage = build(prepare("one", "method=soft"), tmp_path / "stage")
    with pytest.raises(PluginError, match=r"One\.answer returned logits of shape \(1, 2\) for 16"):
        losses_of(stage, 1)


def test_a_class_without_a_name_is_refused():
    with pytest.raises(PluginError, match="`name` must be lower-case words joined by '-'"):

        class Nameless(AnswerSource):
            """Has no name."""


def test_a_method_that_applies_the_head_is_refused_where_there_is_none(prepare, tmp_path):
    (tmp_path / "answers").touch()
    given = ("method=dskd", "task.kind=causal-lm")
    with pytest.raises(ConfigError, match="dskd applies the head of the teacher, but the answers"):
        prepare("forgetful", *given, teacher="lm-decoder")
    with pytest.raises(ConfigError, match="there are only logits"):
        prepare("factored", *given, teacher="lm-decoder")
