"""What a step with three teachers takes of a GPU, and that the way to it changes no number."""

import gc
import json

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from gkd_core.api import Step
from gkd_core.config.resolve import resolve
from gkd_core.hooks import feature_offload
from gkd_core.planning.shapes import ShapeSpecBuilder
from gkd_core.planning.simulation import simulate
from gkd_core.plugins import registry
from gkd_core.runs.run import build_specs, prepare_run
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step

LAYERS = {"large": 6, "middle": 5, "small": 4}
METHODS = {"soft+pkd+kd": 0, "minilmv2": 3 * 3, "tinybert": 3 * (1 + 3 * 3)}
"""With how many tensors `[B, S, D]` are captured of the teachers."""
SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256}


@pytest.fixture
def resolved(world, tmp_path):
    """Settings of a run with some of the teachers, of which there is a folder: `resolved(...)`."""

    def _resolved(names, *settings):
        models = [{"name": name, "model": str(tmp_path / name)} for name in names]
        data = [f"task.train={world / 'train.jsonl'}", "student.layers=3", "training.batch_size=8"]
        flags = {"teachers": (models, "--teacher")}
        return resolve(registry(), settings=[*data, "baseline=false", *settings], flags=flags)

    return _resolved


@pytest.fixture
def estimate(resolved, tmp_path):
    """Simulate a step on a GPU: `estimate(method, teacher, ...)`."""
    shape = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], **SHAPE}
    shape["vocab_size"] = 100
    for name, layers in LAYERS.items():
        (tmp_path / name).mkdir()
        config = json.dumps(shape | {"num_hidden_layers": layers})
        (tmp_path / name / "config.json").write_text(config)

    def _estimate(method, *names):
        settings = resolved(names, f"method={method}", "task.max_length=32")
        builder = ShapeSpecBuilder(registry(), [s.config.task for s in settings.stages])
        (spec,) = build_specs(settings, builder).values()
        return simulate(spec, registry())

    return _estimate


@pytest.fixture
def stage(resolved, world, tmp_path):
    """Build the stage of a run with some of the teachers: `stage(teachers, "method=soft", ...)`."""

    def _stage(names, *settings):
        for name in names:
            if not (tmp_path / name).exists():
                tokenizer = AutoTokenizer.from_pretrained(world / "teacher")
                config = BertConfig(
                    vocab_size=len(tokenizer), num_hidden_layers=LAYERS[name], num_labels=2, **SHAPE
                )
                BertForSequenceClassification(config).save_pretrained(tmp_path / name)
                tokenizer.save_pretrained(tmp_path / name)
        (spec,) = prepare_run(resolved(names, *settings), registry())
        return build_stage(spec, registry(), tmp_path / "stage", None)

    return _stage


def _train(stage):
    """Return losses, gradient norms and weights of two steps."""
    torch.manual_seed(0)
    batch = stage.collator.collate(stage.train, list(range(8)), 0)
    done = []
    for index in range(2):
        step = Step(index, 2, 0, "distil", torch.default_generator)
        result = train_step(stage, [batch], step)
        done.append((result.losses, result.gradient_norm))
    return done, stage.student.model.state_dict(), stage.objective.modules.state_dict()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("method", "waits"),
    [
        pytest.param(*case, marks=[] if case[0] == "tinybert" else [pytest.mark.exhaustive])
        for case in METHODS.items()
    ],
)
def test_three_teachers_take_no_more_than_the_largest_and_the_weights_of_the_others(
    estimate, method, waits
):
    alone, three = estimate(method, "large"), estimate(method, *LAYERS)
    others = three.memory["teacher weights"] - alone.memory["teacher weights"]
    assert three.peak <= alone.peak + others
    assert alone.host == 0
    assert three.host >= waits * 8 * 32 * 64 * 4


@pytest.mark.parametrize(
    "method",
    [
        *("soft+pkd", "mt-bert(tinybert+soft)"),
        *(
            pytest.param(method, marks=pytest.mark.exhaustive)
            for method in ("minilmv2+hard", "uncertainty(minilm+kd)", "tmkd(kd)")
        ),
    ],
)
def test_waiting_changes_no_bit(stage, monkeypatch, method):
    _assert_equal(monkeypatch, lambda: stage(LAYERS, f"method={method}", "task.max_length=32"))


@pytest.mark.exhaustive
def test_waiting_for_logits_that_are_not_computed_yet_changes_no_bit(world, tmp_path, monkeypatch):
    models = [{"name": name, "model": str(world / "lm-decoder")} for name in ("one", "two")]
    data = [f"task.train={world / 'corpus.txt'}", "student.layers=1", "task.max_length=32"]
    flags = {"teachers": (models, "--teacher")}

    def build():
        resolved = resolve(registry(), settings=[*data, "method=soft+tinybert"], flags=flags)
        (spec,) = prepare_run(resolved, registry())
        return build_stage(spec, registry(), tmp_path / "stage", None)

    _assert_equal(monkeypatch, build)


def _assert_equal(monkeypatch, build):
    """Train with a CPU as the device whose tensors wait, which it never is by itself."""
    monkeypatch.setattr(feature_offload, "LEAST", 0)
    plain, parked = build(), build()
    assert plain.feature_offload is None
    parked.feature_offload = feature_offload.FeatureOffload(torch.device("cpu"))
    torch.testing.assert_close(_train(parked), _train(plain), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_three_teachers_take_no_more_of_a_gpu(stage, method):
    peaks, weights = [], []
    for names in (["large"], LAYERS):
        built = stage(names, f"method={method}", "task.max_length=32", "parallel.device=cuda")
        _train(built)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        _train(built)
        peaks.append(torch.cuda.max_memory_allocated())
        kept = (w for t in built.teachers for w in t.model.parameters())
        weights.append(sum(w.numel() * w.element_size() for w in kept))
        del built
        gc.collect()
    # Allocations are rounded up to 512 bytes.
    assert peaks[1] - peaks[0] <= weights[1] - weights[0] + 2**18
