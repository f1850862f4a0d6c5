"""Teachers with another tokenizer than the student's: what they read, and who is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gkd_core.api import Method, RolloutEngine, TeacherCombiner, Written, hookimpl, kl
from gkd_core.contract.batch import IGNORE
from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.errors import ConfigError, MethodError, PluginError
from gkd_core.plugins import registry
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step

WHOLE_ROWS = {"alp-kd", "hard", "pkd", "rail-kd", "universal-kd"}
"""Methods that compare a vector per row, and those that read no teacher."""

PREDICTIONS = {"annealing-kd", "continuation-kd", "dpkd", "glmd", "kd", "mft", "pd", "soft"}
"""Methods that compare the logits, which belong to a row in classification."""

METHODS = sorted(
    name
    for name, method in registry().methods.items()
    if not (method.on_policy or method.aligns or method.other_prompts)
)

ELSEWHERE = {"theseus": "the student's architecture is roberta"}
"""Why methods that compare no tokens are refused for these models."""

DIFFERENT = r"teacher.model = .*bert' and student.model = .*roberta' have different tokenizers: one"


@pytest.fixture
def prepare(prepare_run, tongues):
    """`prepare("bert", "roberta", "method=soft")`: a run of this teacher and this student."""

    def _prepare(teacher, student, *settings, **keywords):
        models = [f"student.model={tongues / student}", f"teachers.0.model={tongues / teacher}"]
        return prepare_run(*models, "task.max_length=64", *settings, teachers=(), **keywords)

    return _prepare


@pytest.fixture
def build(prepare, tmp_path):
    """Prepare a run and build its stage."""

    def _build(*arguments, **keywords):
        run = prepare(*arguments, **keywords)
        return build_stage(run.specs[0], run.registry, tmp_path / "stage", None)

    return _build


@pytest.fixture
def corpus(world):
    """Settings of masked language modeling."""
    text = world / "corpus.txt"
    names = ("train", "validation", "test")
    return [f"task.{name}={text}" for name in names]


def steps_of(stage, steps=1):
    """The micro-batches of the first steps."""
    rows = (stage.train, stage.collator, stage.sampler)
    return [batches for _, batches in iterate(*rows, 0, steps, stage.readings)]


def texts_of(stage, batch):
    return [stage.spec.data.train.text[row] for row in batch.rows.tolist()]


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_compare_tokens_are_refused_in_classification(prepare, name):
    if name in WHOLE_ROWS | PREDICTIONS:
        assert prepare("bert", "roberta", f"method={name}").specs
    elif name in ELSEWHERE:
        with pytest.raises(MethodError, match=ELSEWHERE[name]):
            prepare("bert", "roberta", f"method={name}")
    else:
        with pytest.raises(ConfigError, match=f"^{name} (compares|makes).*{DIFFERENT}"):
            prepare("bert", "roberta", f"method={name}")


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_compare_predictions_are_refused_in_language_modeling(prepare, corpus, name):
    arguments = ("masked-bert", "masked-roberta", f"method={name}", "task.kind=masked-lm", *corpus)
    if name in ELSEWHERE:
        with pytest.raises(MethodError, match=ELSEWHERE[name]):
            prepare(*arguments)
    elif name in WHOLE_ROWS - {"universal-kd"}:
        assert prepare(*arguments).specs
    else:
        with pytest.raises(ConfigError, match=f"^{name} (compares|makes).*{DIFFERENT}"):
            prepare(*arguments)


@pytest.mark.parametrize("kind", ["classification", "masked-lm"])
@pytest.mark.parametrize("name", sorted(registry().combiners))
def test_combiners_are_judged_by_what_they_read(prepare, corpus, tongues, name, kind):
    head = "masked-" if kind == "masked-lm" else ""
    teachers = [f"teachers.1.model={tongues / f'{head}roberta'}", "teachers.1.name=second"]
    settings = [f"method={name}(pkd)", *teachers, *([f"task.kind={kind}", *corpus] if head else [])]
    if name == "route" and not head:
        settings += ["task.source=label", "route.teachers.neg=teacher", "route.teachers.pos=second"]
    arguments = (f"{head}bert", f"{head}roberta", *settings)
    if head and name == "route":
        with pytest.raises(MethodError, match="by the source of a row, which these rows do not"):
            prepare(*arguments)
    elif head and name == "tmkd":
        with pytest.raises(MethodError, match="a language model does not have"):
            prepare(*arguments)
    elif head and name in ("mt-bert", "rl-kd"):
        with pytest.raises(ConfigError, match=f"^{name} compares"):
            prepare(*arguments)
    else:
        assert prepare(*arguments).specs


@pytest.mark.parametrize("name", sorted(WHOLE_ROWS | PREDICTIONS))
def test_the_others_train(build, name):
    stage = build("bert", "roberta", f"method={name}")
    for index, batches in enumerate(steps_of(stage, 2)):
        losses = train_step(stage, batches, Step(index, 2, 0, "distil", torch.Generator())).read()
        assert all(math.isfinite(loss) for loss in losses.values())


def test_teacher_reads_its_own_tokens(build, tongues):
    stage = build("bert", "roberta", "method=soft", "soft.temperature=1")
    (batch,) = steps_of(stage)[0]
    stage.student.model.eval()
    losses = train_step(stage, [batch], Step(0, 1, 0, "distil", torch.Generator())).read()
    logits = {}
    for name in ("bert", "roberta"):
        model = AutoModelForSequenceClassification.from_pretrained(tongues / name).eval()
        tokenizer = AutoTokenizer.from_pretrained(tongues / name)
        rows = tokenizer(texts_of(stage, batch), padding=True, return_tensors="pt")
        with torch.no_grad():
            logits[name] = model(**rows).logits
    expected = kl(logits["roberta"], logits["bert"], batch.samples, 1.0).mean()
    assert losses["soft"] == pytest.approx(float(expected), rel=1e-5)


def test_a_view_is_what_the_tokenizer_of_the_teacher_gives(build, tongues):
    stage = build("bert", "roberta", "method=soft")
    (batch,) = steps_of(stage)[0]
    view = batch.view("teacher")
    rows = AutoTokenizer.from_pretrained(tongues / "bert")(texts_of(stage, batch), padding=True)
    assert view.inputs["input_ids"].tolist() == rows["input_ids"]
    assert view.inputs["attention_mask"].tolist() == rows["attention_mask"]
    assert view.rows.equal(batch.rows)
    assert view.labels.equal(batch.labels)
    assert view.tokens.count == sum(map(sum, rows["attention_mask"]))
    assert batch.view("student") is batch


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_byte_offsets_say_where_a_token_is_in_the_text(build, side, tongues):
    stage = build("bert", "roberta", "method=soft")
    (batch,) = steps_of(stage)[0]
    view = batch.view(side)
    tokenizer = AutoTokenizer.from_pretrained(
        tongues / ("bert" if side == "teacher" else "roberta")
    )
    for row, text in enumerate(texts_of(stage, batch)):
        found = zip(view.inputs["input_ids"][row], view.byte_offsets[row].tolist(), strict=True)
        for token, (start, end) in found:
            special = token in tokenizer.all_special_ids and token != tokenizer.unk_token_id
            assert (start == -1) == (end == -1) == special
            if not special:
                part = text.encode()[start:end].decode()
                assert tokenizer.decode([token]).replace("##", "").strip() == part.strip()


def test_teachers_that_share_a_tokenizer_share_the_encoding(build, tongues):
    others = [f"teachers.{n}.model={tongues / m}" for n, m in ((1, "bert"), (2, "roberta"))]
    names = ["teachers.1.name=second", "teachers.2.name=third"]
    stage = build("bert", "roberta", "method=soft", *others, *names)
    (reading,) = stage.readings
    assert reading.models == ("teacher", "second")
    (batch,) = steps_of(stage)[0]
    assert batch.view("teacher") is batch.view("second")
    assert batch.view("third") is batch
    moved = batch.to(torch.device("cpu"))
    assert moved.view("teacher") is moved.view("second")
    assert moved.view("third") is moved


def test_batches_of_one_tokenizer_carry_no_views(build):
    stage = build("roberta", "roberta", "method=soft")
    (batch,) = steps_of(stage)[0]
    assert not stage.readings
    assert not batch.views
    assert batch.byte_offsets is None


class Aligns(Method):
    """Reads all states of both models."""

    name = "aligns"
    paper = "A test"
    aligns = True

    def reads(self, models, step):
        return ["student.hidden[last]", "teacher.hidden[last]", "student.logits", "teacher.logits"]

    def loss(self, student, teacher, batch, step):
        theirs = batch.view(teacher.model.name)
        assert teacher.hidden[-1].shape[:2] == theirs.mask.shape
        assert student.hidden[-1].shape[:2] == batch.mask.shape
        assert batch.byte_offsets.shape == (*batch.mask.shape, 2)
        return {"aligns": student.hidden[-1].square().mean()}


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
            return [Aligns]

        @staticmethod
        @hookimpl
        def gkd_register_rollouts():
            return [Silent]

    return registry_with(Plugin())


@pytest.mark.parametrize("teacher", ["bert", "roberta"])
def test_a_method_that_aligns_reads_tokens_of_both(build, plugin, teacher):
    stage = build(teacher, "roberta", "method=aligns", registry=plugin)
    (batches,) = steps_of(stage)
    assert train_step(stage, batches, Step(0, 1, 0, "distil", torch.Generator()))


def test_masked_language_models_hide_the_same_text_from_both(build, corpus, plugin):
    settings = ["method=aligns", "task.kind=masked-lm", *corpus]
    stage = build("masked-bert", "masked-roberta", *settings, registry=plugin)
    (batch,) = steps_of(stage)[0]
    view = batch.view("teacher")
    assert train_step(stage, [batch], Step(0, 1, 0, "distil", torch.Generator()))
    for row in range(len(batch)):
        spans = batch.byte_offsets[row][batch.labels[row] != IGNORE].tolist()
        for (start, end), label in zip(
            view.byte_offsets[row].tolist(), view.labels[row].tolist(), strict=True
        ):
            overlaps = any(max(start, a) < min(end, b) for a, b in spans)
            assert (label != IGNORE) == overlaps


def test_blocks_of_a_long_text_are_the_same_text_for_both(build, tmp_path, plugin):
    text = "a very long film and it was good so the plot is fine " * 12
    (tmp_path / "long.txt").write_text(f"{text}\nnaïve café 漢字 it was\n")
    names = ("train", "validation", "test")
    settings = [f"task.{name}={tmp_path / 'long.txt'}" for name in names]
    settings += ["task.kind=causal-lm", "method=aligns", "training.batch_size=2"]
    stage = build("causal-bert", "causal-roberta", *settings, registry=plugin)
    (reading,) = stage.readings
    assert len(reading.encoded) == len(stage.train) > 2
    assert "".join(stage.train.blocks[:-1]) == text.strip()
    for row, block in enumerate(stage.train.blocks):
        for encoded in (stage.train, reading.encoded):
            offsets = encoded.row(row)["byte_offsets"]
            inside = offsets[offsets[:, 0] >= 0]
            assert inside.max() == len(block.rstrip().encode())
            assert (inside[1:, 0] >= inside[:-1, 0]).all()
    for batches in steps_of(stage, 2):
        assert train_step(stage, batches, Step(0, 1, 0, "distil", torch.Generator()))


@pytest.mark.parametrize(
    ("teacher", "method", "message"),
    [
        ("causal-bert", "pkd", "rollout has text written in the student's tokens, but teacher"),
        ("causal-roberta", "aligns", "aligns aligns tokens by their place in the text"),
    ],
)
def test_text_that_models_write_is_in_the_tokens_of_the_student(
    prepare, corpus, plugin, teacher, method, message
):
    settings = [f"method={method}", "task.kind=causal-lm", "rollout.student=0.5", *corpus]
    table = ["rollout.engine=silent", "rollout.prompt_tokens=4", "rollout.max_new_tokens=6"]
    with pytest.raises(ConfigError, match=message):
        prepare(teacher, "causal-roberta", *settings, *table, registry=plugin)


def test_contradicting_declarations_are_refused():
    with pytest.raises(PluginError, match="`same_tokenizer` and `aligns` contradict each other"):

        class Both(TeacherCombiner):
            """Declares both."""

            name = "both"
            paper = "A test"
            same_tokenizer = aligns = True


def run(invoke, teacher, student, *arguments):
    """Train from the command line for two steps; return what is printed, and the rows compared."""
    named = ["--teacher", teacher, "--student", student, "--method", "pkd+hard", "--no-baseline"]
    brief = ["--set", "task.max_length=64", "--set", "training.steps=2", "--output", "run"]
    done = invoke("run", *named, *brief, *arguments)
    assert done.code == 0, done.err
    return done.out, json.loads(Path("run/results.json").read_text())["rows"]


def test_a_run_compares_each_model_on_its_own_tokens(invoke, world, tongues):
    data = ["--data", world / "train.jsonl", "--set", f"task.test={world / 'test.jsonl'}"]
    out, (teacher, student) = run(invoke, tongues / "bert", tongues / "roberta", *data)
    assert "teacher: another tokenizer" in out
    model = AutoModelForSequenceClassification.from_pretrained(tongues / "bert").eval()
    tokenizer = AutoTokenizer.from_pretrained(tongues / "bert")
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = [model.config.id2label[i] for i in model(**inputs).logits.argmax(-1).tolist()]
    hits = [name == row["label"] for name, row in zip(found, rows, strict=True)]
    assert teacher["metrics"]["accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert student["agreement"] is not None


def test_perplexities_of_different_tokens_are_not_compared(invoke, corpus, tongues):
    settings = [part for text in corpus for part in ("--set", text)]
    models = tongues / "masked-bert", tongues / "masked-roberta"
    _, (teacher, student) = run(invoke, *models, *settings)
    assert teacher["metrics"]["perplexity"] > 1
    assert (teacher["kept"], student["kept"]) == (None, None)
