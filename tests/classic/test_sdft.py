"""Self-distillation: the student learns from itself with the answer in the prompt."""

from __future__ import annotations

import json
import math

import pytest
import torch

from gkd_core.api import Batch
from gkd_core.plugins import registry
from gkd_core.training.assembly import build_stage
from gkd_core.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from gkd_methods_classic.sdft import SDFT

P = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
FORWARD = math.log(2) / 4
"""KL(P || Q) = 0.5 log 2 + 0 - 0.25 log 2; that of (Q || P) is the same."""

IGNORE = -100


def _batch(labels, views=()):
    labels = torch.tensor(labels)
    mask = torch.ones_like(labels)
    inputs = {"input_ids": mask, "attention_mask": mask}
    return Batch(inputs, labels, torch.arange(len(labels)), views=dict(views))


@pytest.fixture
def terms(term_of):
    """The value at each position of a student of which every token is Q."""

    def _terms(known, labels, theirs, beta=1.0):
        view = _batch(theirs)
        batch = _batch(labels, {"teacher": view})
        student = Q.log().expand(*batch.labels.shape, 3)
        method = SDFT(SDFT.Config(beta=beta))
        return term_of(method, batch, student, known.log())["sdft"]

    return _terms


def test_a_token_is_compared_where_the_teacher_predicts_it(terms):
    """The answer has two tokens: at 0 and 1 for the student, at 2 and 3 for the teacher."""
    other = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    known = torch.stack([other, other, P, Q, other])[None]
    term = terms(known, [[1, 2, IGNORE]], [[IGNORE, IGNORE, 1, 2, IGNORE]])
    expected = (0.25 * math.log(0.5) + 0.5 * math.log(2), 0)
    torch.testing.assert_close(
        term.values[0, :2], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert term.mean().item() == pytest.approx(FORWARD / 2)


@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_what_the_teacher_predicts_elsewhere_does_not_matter(terms, beta):
    labels, theirs = [[IGNORE, 1]], [[IGNORE, IGNORE, 1, IGNORE]]
    known = P.expand(1, 4, 3).clone()
    value = terms(known, labels, theirs, beta).mean()
    known[0, [0, 1, 3]] = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64)
    assert terms(known, labels, theirs, beta).mean() == value > 0


def test_beta_names_the_divergence(terms):
    labels = [[1]]
    known = P.expand(1, 1, 3)
    assert terms(known, labels, labels, 0).mean().item() == pytest.approx(FORWARD)
    mixture = (P + Q) / 2
    js = sum(0.5 * (own * (own / mixture).log()).sum() for own in (P, Q)).item()
    assert terms(known, labels, labels, 0.5).mean().item() == pytest.approx(js)


TEMPLATE = "teacher.prompt={prompt} is {answer} :"


@pytest.fixture
def told(tmp_path):
    path = tmp_path / "told.jsonl"
    words = ("movie", "plot", "cast", "film", "end", "start")
    rows = [
        {"prompt": f"the {word} was", "response": f"{word} and good", "hint": f"a {word}"}
        for word in words
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def given(world, told):
    settings = {
        "task.train": told,
        "task.validation": told,
        "task.kind": "causal-lm",
        "task.max_length": 24,
        "student.layers": "all",
        "training.steps": 2,
        "training.batch_size": 4,
        "teacher.model": world / "lm-decoder",
        "rollout.max_new_tokens": 5,
        "rollout.prompt_tokens": 4,
    }
    return [f"{name}={value}" for name, value in settings.items()]


@pytest.fixture
def stage(given, tmp_path):
    """A stage that trains by the recipe."""
    from gkd_core.config.resolve import resolve
    from gkd_core.runs.run import prepare_run

    def _stage(folder, *settings, recipe="sdft"):
        resolved = resolve(registry(), recipe=recipe, settings=[*given, *settings])
        (spec,) = (one for one in prepare_run(resolved, registry()) if one.name != "baseline")
        return build_stage(spec, registry(), tmp_path / folder, None)

    return _stage


def _batches(stage):
    from gkd_core.training.loop import _step, _steps

    _, batches = next(_steps(stage, Progress()))
    step = _step(stage, 0)
    return stage.rollout(batches, step), step


def test_the_teacher_reads_the_same_answers_behind_prompts_of_its_own(stage):
    stage = stage("one", TEMPLATE)
    (batch, *_), _ = _batches(stage)
    view, tokenizer = batch.view("teacher"), stage.spec.tokenizer
    assert batch.written_by("student").all()
    for row in range(len(batch)):
        own, theirs = batch.labels[row], view.labels[row]
        assert torch.equal(own[own != IGNORE], theirs[theirs != IGNORE])
        ids = view.inputs["input_ids"][row]
        prompt = ids[view.mask[row] & ~view.tokens.mask[row]]
        number, told = int(batch.rows[row]), stage.spec.data.train
        shown = f"{told.text[number]} is {told.target[number]} :"
        assert prompt.tolist() == tokenizer(shown)["input_ids"]
        following = ids.roll(-1)[theirs != IGNORE]
        assert torch.equal(following, theirs[theirs != IGNORE])


def test_privileged_context_is_read_by_the_teacher_alone(stage):
    template = "teacher.prompt={prompt} with {context} is"
    stage = stage("one", template, "task.context=hint")
    (batch, *_), _ = _batches(stage)
    view, tokenizer = batch.view("teacher"), stage.spec.tokenizer
    told = stage.spec.data.train
    assert told.context == [text.replace("the", "a").removesuffix(" was") for text in told.text]
    for row, number in enumerate(batch.rows.tolist()):
        shown = view.inputs["input_ids"][row][view.mask[row] & ~view.tokens.mask[row]]
        prompt = f"{told.text[number]} with {told.context[number]} is"
        assert shown.tolist() == tokenizer(prompt)["input_ids"]
        own = batch.inputs["input_ids"][row][batch.prompt_mask[row]]
        assert own.tolist() == tokenizer(told.text[number])["input_ids"]


def test_rows_may_have_context_in_the_place_of_answers(stage, tmp_path):
    rows = [{"prompt": f"the {word} was", "hint": f"a {word}"} for word in ("movie", "plot")]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = "teacher.prompt={prompt} with {context} is"
    stage = stage("one", template, "task.context=hint", f"task.train={path}")
    assert stage.spec.data.train.target is None
    (batch, *_), _ = _batches(stage)
    assert batch.view("teacher").targets.count == batch.targets.count > 0


def test_without_another_prompt_and_equal_weights_there_is_nothing_to_learn(stage):
    from gkd_core.training.step import train_step

    stage = stage("one", "teacher.prompt={prompt}")
    batches, step = _batches(stage)
    stage.student.model.eval()
    result = train_step(stage, batches, step)
    assert result.read()["sdft"] == pytest.approx(0, abs=1e-6)


def test_the_teacher_follows_the_student_and_is_in_the_checkpoint(stage):
    from gkd_core.training.step import train_step

    first = stage("one", TEMPLATE, "teacher.follow=0.25")
    teacher, student = first.live(0).model, first.student.model
    before = [weight.detach().clone() for weight in teacher.parameters()]
    batches, step = _batches(first)
    train_step(first, batches, step)
    triples = list(zip(before, teacher.parameters(), student.parameters(), strict=True))
    assert not all(torch.equal(then, now) for then, now, _ in triples)
    for then, now, learned in triples:
        torch.testing.assert_close(now, 0.75 * then + 0.25 * learned, rtol=0, atol=1e-7)
    save_checkpoint(first, Progress(step=1))
    second = stage("one", TEMPLATE, "teacher.follow=0.25")
    load_checkpoint(second, print)
    pairs = zip(teacher.parameters(), second.live(0).model.parameters(), strict=True)
    assert all(torch.equal(own, found) for own, found in pairs)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method=soft"], "soft compares teacher and student position by position"),
        (["student.layers=1"], "weights can only follow those of a student of the same shape"),
        (["task.text=prompt"], "have no prompts with an answer each"),
        (["parallel.zero=3"], "sharded by parallel.zero = 3"),
        (["student.lora.rank=2"], "has no adapters that could follow"),
        (["teacher.keep=memory"], "cannot be kept"),
        (["teacher.prompt={prompt} {context}"], "has {context}, but the rows of .* have none"),
        (["task.context=hint"], "has no {context}, so that no model reads task.context"),
        (["task.context=hints"], "has no column 'hints'"),
        (["rollout.mixture=0.2"], "not drawn with a teacher that reads another prompt"),
    ],
)
def test_what_does_not_go_with_it_is_refused(stage, settings, said):
    from gkd_core.errors import GkdError

    with pytest.raises(GkdError, match=said):
        stage("one", TEMPLATE, *settings)


@pytest.mark.parametrize(
    ("template", "said"),
    [("{question}", "question"), ("none", "no names"), ("{prompt} {", "braces")],
)
def test_a_template_without_the_prompt_is_refused(stage, template, said):
    from gkd_core.errors import ConfigError

    with pytest.raises(ConfigError, match=said):
        stage("one", f"teacher.prompt={template}")


def test_the_command_runs_the_recipe_and_a_resumed_run_ends_bit_equal(
    invoke, given, told, world, tmp_path, fail_at
):
    shown = [part for one in given if "teacher.model" not in one for part in ("--set", one)]
    shown += ["--set", "training.checkpoint_every=1", "--set", "output.reuse=false"]
    run = ["run", "--recipe", "sdft", "--teacher", world / "lm-decoder", *shown]
    done = invoke(*run, "--output", "whole")
    assert done.code == 0, done.err
    config = (tmp_path / "whole/config.toml").read_text()
    assert "follow = 0.05" in config
    assert "an example of an answer" in config
    fail_at(2, KeyboardInterrupt())
    assert invoke(*run, "--output", "parts").code == 75
    done = invoke("run", "--resume", "--output", "parts")
    assert done.code == 0, done.err
    whole, parts = (
        (tmp_path / name / "student/model.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert whole == parts
