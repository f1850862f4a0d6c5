"""One optimizer step: accumulation, the teacher's rest, precision, checkpointing, device waits."""

from __future__ import annotations

import gc
import json
import sys

import pytest
import torch
from torch import Tensor, nn

from gkd_core.contract.step import Step
from gkd_core.errors import MethodError
from gkd_core.optim.engine import count_items
from gkd_core.plugins import registry
from gkd_core.training.assembly import build_stage
from gkd_core.training.loop import iterate
from gkd_core.training.step import train_step

WAITING = [
    "item",
    "tolist",
    "__float__",
    "__int__",
    "__bool__",
    "__index__",
    "cpu",
    "numpy",
    "nonzero",
]
"""What a tensor on an accelerator can only answer after all that was queued before it."""


@pytest.fixture
def build(prepare_run, tmp_path):
    """Build the last stage of a run, in fp64 unless asked otherwise and without dropout."""

    def _build(*settings, dtype=torch.float64, dropout=0.0, **options):
        run = prepare_run(*settings, **options)
        stage = build_stage(run.last, run.registry, tmp_path / "stage", None)
        models = [stage.student.model, stage.objective.modules]
        for model in (*models, *(teacher.model for teacher in stage.teachers)):
            model.to(dtype)
        for module in stage.student.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        stage.student.model.train()
        return stage

    return _build


@pytest.fixture
def decoder(world, tmp_path, build_model):
    """A Llama in the world's vocabulary, as a folder."""
    from transformers import AutoTokenizer

    model = build_model("llama", "causal-lm", pad_token_id=0, num_hidden_layers=4)
    tokenizer = AutoTokenizer.from_pretrained(world / "teacher")
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


def _gradients(stage):
    """Return the gradients of the first step and its result, leaving the weights alone."""
    batches, step = _first(stage)
    kept = {}

    def keep(index):
        kept.update((n, p.grad) for n, p in stage.student.model.named_parameters())
        return torch.zeros(())

    stage.engine.step = keep
    return kept, train_step(stage, batches, step)


def _first(stage):
    epoch, batches = next(iterate(stage.train, stage.collator, stage.sampler, 0, 1))
    return batches, Step(0, stage.total_steps, epoch, stage.name, torch.default_generator)


def _weights_after(stage, steps):
    parts = iterate(stage.train, stage.collator, stage.sampler, 0, steps)
    for index, (epoch, batches) in enumerate(parts):
        step = Step(index, stage.total_steps, epoch, stage.name, torch.default_generator)
        train_step(stage, batches, step)
    return dict(stage.student.model.named_parameters())


def _assert_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(
                found[name], value, msg=lambda m, n=name: f"{n}: {m}", **tolerance
            )


def _task(name, world, decoder):
    """Return settings of a kind of task, and how its teacher is named."""
    corpus = f"task.train={world / 'corpus.txt'}"
    plain = (corpus, corpus.replace("train", "validation"), corpus.replace("train", "test"))
    if name == "classification":
        return ("method=pkd+soft+hard",), ("teacher",)
    if name == "masked-lm":
        return (*plain, "task.kind=masked-lm", "method=pkd+soft+hard"), ("lm-teacher",)
    return (*plain, "task.kind=causal-lm", "method=pkd+soft+hard"), (str(decoder),)


@pytest.mark.parametrize("kind", ["classification", "masked-lm", "causal-lm"])
def test_accumulation_changes_neither_gradient_nor_losses(build, world, decoder, kind):
    settings, teachers = _task(kind, world, decoder)
    settings = (*settings, "training.length_bucketing=false")
    found = {
        parts: _gradients(build(*settings, f"training.accumulation={parts}", teachers=teachers))
        for parts in (1, 2, 4)
    }
    whole, result = found[1]
    assert any(g is not None and g.abs().max() > 0 for g in whole.values())
    for parts in (2, 4):
        gradients, other = found[parts]
        _assert_close(gradients, whole, rtol=1e-9, atol=1e-12)
        for name, loss in result.losses.items():
            torch.testing.assert_close(
                other.losses[name].double(), loss.double(), rtol=1e-6, atol=1e-9
            )
        assert other.samples == 16


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_micro_batches_of_a_language_model_differ_in_tokens(build, world, decoder, kind):
    settings, teachers = _task(kind, world, decoder)
    stage = build(
        *settings, "training.accumulation=4", "training.length_bucketing=false", teachers=teachers
    )
    batches, _ = _first(stage)
    assert len({batch.targets.count for batch in batches}) > 1
    assert count_items(batches)["target"] == sum(b.targets.count for b in batches)


def test_accumulation_changes_no_weight_after_several_steps(build):
    found = [
        _weights_after(build("method=pkd+soft+hard", f"training.accumulation={parts}"), 4)
        for parts in (1, 2, 4)
    ]
    for other in found[1:]:
        _assert_close(other, found[0], rtol=1e-7, atol=1e-9)


def test_fp32_accumulation_agrees_to_rounding(build):
    settings = ("method=pkd+soft+hard", "training.lr=1e-4")
    whole, parts = (
        _gradients(build(*settings, f"training.accumulation={n}", dtype=torch.float32))[0]
        for n in (1, 4)
    )
    _assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_teacher_stays_as_it_is(build):
    stage = build("method=pkd+soft+hard")
    (teacher,) = (extractor.model for extractor in stage.teachers)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    start = [p.detach().clone() for p in stage.student.model.parameters()]
    _weights_after(stage, 3)
    assert not teacher.training
    assert stage.student.model.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[n], value) for n, value in teacher.state_dict().items())
    assert any(
        not torch.equal(a, b) for a, b in zip(start, stage.student.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_gradient(build, dropout):
    found = []
    for switch in ("false", "true"):
        stage = build(
            "method=pkd+soft", f"training.gradient_checkpointing={switch}", dropout=dropout
        )
        assert stage.student.model.is_gradient_checkpointing == (switch == "true")
        torch.manual_seed(5)
        found.append(_gradients(stage)[0])
    _assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_bf16_trains_with_fp32_weights_and_losses(build):
    stage = build("method=pkd+soft+hard", "training.precision=bf16", dtype=torch.float32)
    seen = []
    hook = stage.student.model.get_submodule("bert.encoder.layer.0.intermediate.dense")
    hook.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    batches, step = _first(stage)
    first = train_step(stage, batches, step)
    assert seen == [torch.bfloat16]
    assert {loss.dtype for loss in first.losses.values()} == {torch.float32}
    assert {p.dtype for p in stage.student.model.parameters()} == {torch.float32}
    for _ in range(5):
        last = train_step(stage, batches, step)
    assert last.losses["total"] < first.losses["total"]


def test_bf16_losses_are_near_those_of_fp32(build):
    exact, rough = (
        _gradients(build("method=soft+hard", f"training.precision={p}", dtype=torch.float32))[1]
        for p in ("fp32", "bf16")
    )
    for name, value in exact.losses.items():
        assert rough.losses[name] == pytest.approx(float(value), rel=0.05, abs=0.02)


def test_step_waits_for_the_device_only_when_its_result_is_read(build, monkeypatch):
    stage = build("method=pkd+soft+hard", "training.accumulation=2", dtype=torch.float32)
    batches, step = _first(stage)
    for batch in batches:
        batch.counts()  # found on the CPU, before the batch is moved
    waits = []
    for name in WAITING:
        stock = getattr(Tensor, name)

        def counted(self, *args, _stock=stock, _name=name):
            # transformers looks once per pass whether anything is padded.
            if "transformers" not in sys._getframe(1).f_code.co_filename:
                waits.append(_name)
            return _stock(self, *args)

        monkeypatch.setattr(Tensor, name, counted)
    result = train_step(stage, batches, step)
    assert waits == []
    result.read()
    assert waits == ["tolist"]


def test_loss_of_a_wrong_shape_is_refused(build, monkeypatch):
    stage = build("method=soft")
    method = registry().method("soft")
    monkeypatch.setattr(method, "loss", lambda *a: {"soft": torch.zeros(3, 7)})
    batches, step = _first(stage)
    with pytest.raises(MethodError, match=r"soft returned the loss 'soft' with shape \(3, 7\)"):
        train_step(stage, batches, step)


def test_log_entries_are_plain_numbers(build):
    result = _gradients(build("method=pkd+soft+hard"))[1]
    losses = result.read()
    assert list(losses) == ["total", "hard", "pkd", "soft"]
    assert json.loads(json.dumps(losses)) == losses
    assert losses["total"] == pytest.approx(losses["hard"] + losses["pkd"] + losses["soft"])


def test_what_a_step_captured_is_gone_after_it(build):
    """Tensors in reference cycles would take memory until Python looks for such cycles."""
    stage = build("method=pkd+minilm+soft", dtype=torch.float32)
    found = _first(stage)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        train_step(stage, *found)
        gc.collect()
        held = [tuple(item.shape) for item in gc.garbage if isinstance(item, Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert held == []
