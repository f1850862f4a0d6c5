"""Text that models write during training, in one process."""

from __future__ import annotations

import pytest
import torch

from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step

PROMPT, NEW = 4, 6
TABLE = [
    "rollout.engine=greedy",
    f"rollout.prompt_tokens={PROMPT}",
    f"rollout.max_new_tokens={NEW}",
]


@pytest.fixture
def build(prepare_run, registry_with, world, plugin, tmp_path):
    """Build a stage of a causal language model in fp64."""

    def _build(*settings, method="soft", name="stage", engine="greedy", table=TABLE):
        corpus = f"task.train={world / 'corpus.txt'}"
        plain = [corpus, corpus.replace("train", "validation"), corpus.replace("train", "test")]
        run = prepare_run(
            *plain,
            "task.kind=causal-lm",
            f"method={method}",
            *table,
            *settings,
            teachers=("lm-decoder",),
            registry=registry_with(plugin(engine)),
        )
        stage = build_stage(run.last, run.registry, tmp_path / name, None)
        models = [stage.student.model, *(teacher.model for teacher in stage.teachers)]
        for module in (*models, stage.objective.modules):
            module.double()
        stage.student.model.train()
        return stage

    return _build


def _step(stage, index=0):
    return Step(index, stage.total_steps, 0, stage.name, torch.default_generator)


def _batches(stage):
    return next(iterate(stage.train, stage.collator, stage.sampler, 0, stage.total_steps))[1]


def _texts(batches):
    """Return the tokens of each row, by its number."""
    return {
        int(row): ids[own].tolist()
        for batch in batches
        for row, ids, own in zip(batch.rows, batch.inputs["input_ids"], batch.mask, strict=True)
    }


def _generated(model, prompt):
    """Return what transformers' own greedy decoding writes."""
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return found[0].tolist()


@pytest.mark.parametrize("source", ["student", "teacher"])
def test_rows_are_continued_as_the_model_itself_would(build, source):
    stage = build(f"rollout.{source}=1")
    before = _texts(_batches(stage))
    found = _texts(stage.rollout(_batches(stage), _step(stage)))
    model = (stage.student if source == "student" else stage.teachers[0]).model.eval()
    assert found.keys() == before.keys()
    for row, text in found.items():
        assert text == _generated(model, before[row][:PROMPT])


def test_losses_are_those_of_the_written_tokens(build):
    stage = build("rollout.student=1", "soft.temperature=1")
    rows = len(_texts(_batches(stage)))
    kept = {}
    stage.engine.step = lambda index: torch.zeros(())
    stock = stage.objective.terms

    def terms(captured, batch, *others):
        kept["batch"] = batch
        return stock(captured, batch, *others)

    stage.objective.terms = terms
    result = train_step(stage, _batches(stage), _step(stage))
    batch = kept["batch"]
    assert batch.targets.count == batch.tokens.count == rows * NEW
    assert batch.written_by("student").all()
    model, teacher = stage.student.model, stage.teachers[0].model
    with torch.no_grad():
        learned = model(**batch.inputs).logits.log_softmax(-1)[batch.targets.mask]
        known = teacher(**batch.inputs).logits.log_softmax(-1)[batch.targets.mask]
    expected = (known.exp() * (known - learned)).sum(-1).mean()
    torch.testing.assert_close(result.losses["soft"].double(), expected, rtol=1e-6, atol=0)


def test_without_a_table_a_step_is_what_it_was(build):
    stage = build(table=())
    batches = _batches(stage)
    assert stage.rollout(batches, _step(stage)) is batches
    assert all(batch.loss_mask is None for batch in batches)


def test_shares_follow_a_schedule(build):
    stage = build("rollout.student=step(0 -> 1, over=50%)", "training.steps=4")
    shares = [
        torch.cat(
            [b.written_by("student") for b in stage.rollout(_batches(stage), _step(stage, i))]
        )
        for i in range(4)
    ]
    assert [share.double().mean().item() for share in shares] == [0, 0, 1, 1]


def test_each_row_draws_its_source(build):
    stage = build("rollout.student=0.5", "rollout.teacher=0.25", "training.batch_size=96")
    counts = {"data": 0, "student": 0, "teacher": 0}
    for index in range(6):
        for batch in stage.rollout(_batches(stage), _step(stage, index)):
            for source in counts:
                counts[source] += int(batch.written_by(source).sum())
    total = sum(counts.values())
    assert total == 6 * 96
    for source, share in (("data", 0.25), ("student", 0.5), ("teacher", 0.25)):
        assert abs(counts[source] / total - share) < 4 * (share * (1 - share) / total) ** 0.5


def test_accumulation_changes_no_text(build):
    found = [
        _texts(
            (stage := build("rollout.student=0.5", setting)).rollout(_batches(stage), _step(stage))
        )
        for setting in ("training.accumulation=1", "training.accumulation=4")
    ]
    assert found[0] == found[1]


def test_writing_leaves_training_as_it_was(build):
    stage = build("rollout.student=1", method="pkd+minilm+soft")
    state = torch.get_rng_state()
    batches = _batches(stage)
    ids = batches[0].inputs["input_ids"].clone()
    stage.rollout(batches, _step(stage))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in stage.student.model.modules())
    assert all(weight.grad is None for weight in stage.student.model.parameters())
    assert torch.equal(batches[0].inputs["input_ids"], ids)


@pytest.mark.parametrize("engine", ["greedy", "sampling"])
def test_an_engine_uses_the_precision_of_training(build, engine):
    table = [f"rollout.engine={engine}", *TABLE[1:], "training.precision=bf16"]
    stage = build("rollout.student=1", engine=engine, table=table)
    seen = set()
    block = stage.student.sites.blocks[0]
    block.register_forward_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
    found = _texts(stage.rollout(_batches(stage), _step(stage)))
    assert seen == {True}
    assert all(len(text) == PROMPT + NEW for text in found.values())


def test_gradient_checkpointing_does_not_keep_a_student_from_writing(build):
    plain = build("rollout.student=1")
    expected = _texts(plain.rollout(_batches(plain), _step(plain)))
    stage = build("rollout.student=1", "training.gradient_checkpointing=true", name="other")
    assert _texts(stage.rollout(_batches(stage), _step(stage))) == expected
    assert train_step(stage, _batches(stage), _step(stage)).gradient_norm.isfinite()


def test_a_sampled_text_is_another_in_each_step_and_the_same_in_the_same(build):
    table = ["rollout.engine=sampling", *TABLE[1:]]
    stage = build("rollout.student=1", engine="sampling", table=table)
    first, again, second = (
        _texts(stage.rollout(_batches(stage), _step(stage, index))) for index in (0, 0, 1)
    )
    assert first == again
    assert all(first[row] != second[row] for row in first)


METHODS = ["soft", "hard", "pkd", "minilm", "diito", "lrc-bert"]
OTHERS = [
    *("kd", "pd", "minilmv2", "distilbert", "glmd", "annealing-kd", "tinybert", "sid", "rail-kd"),
    *("alp-kd", "ckd", "mgskd", "theseus", "mobilebert", "continuation-kd"),
]


@pytest.mark.parametrize(
    "method", [*METHODS, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in OTHERS)]
)
def test_methods_learn_from_what_is_written(build, method):
    stage = build("rollout.student=0.5", "rollout.teacher=0.3", method=method)
    result = train_step(stage, _batches(stage), _step(stage))
    assert all(loss.isfinite() for loss in result.losses.values())
    assert result.gradient_norm.isfinite()
