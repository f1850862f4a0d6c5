"""Hidden states in a cache: methods that read a teacher's body learn without it."""

from __future__ import annotations

import pytest

from gkd_core.api import ConfigError, DataError
from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.hooks.paths import LOGITS, Capture
from gkd_core.runs import answer_cache
from gkd_core.teachers.answer_form import RowLogits, Size
from gkd_core.teachers.answer_shard import AnswerShard
from gkd_core.teachers.captured_states import CapturedStates
from gkd_core.training.assembly import build_stage

LM = ("task.kind=causal-lm", "task.packing=true", "task.max_length=16")
CASES = {
    "of-rows": (("method=pkd+soft+hard",), "teacher", {"hidden[2]|cls"}),
    "of-heads": (("method=minilmv2",), "teacher", {"query[4]", "key[4]", "value[4]"}),
    "of-packed-tokens": (("method=distilbert", *LM), "lm-decoder", {"hidden[4].normed"}),
    "of-pairs": (("method=tinybert",), "teacher", {"attention[2]", "attention[4]", "hidden[4]"}),
    "of-causal-pairs": (
        ("method=minilm", "task.kind=causal-lm"),
        "lm-decoder",
        {"attention[4]", "value[4]"},
    ),
}


def source(folder):
    return ("teacher.source=cache", f"teacher.source.path={folder}")


@pytest.mark.parametrize("case", CASES)
def test_methods_learn_from_stored_states_as_from_the_teacher(write, first_loss, monkeypatch, case):
    settings, teacher, names = CASES[case]
    live = first_loss(*settings, teacher=teacher)
    folders = {}
    for dtype, lost in (("fp32", 0.0), ("fp16", 1e-3), ("bf16", 1e-2)):
        folders[dtype], manifest = write(dtype, *settings, teacher=teacher)
        assert manifest.form == "states"
        assert names <= set(manifest.captures)
        assert all(part.error <= lost for part in manifest.parts)
    assert max(part.error for part in manifest.parts) > 1e-4, "bf16 loses something"
    for dtype, bound in (("fp32", 1e-5), ("bf16", 2e-2)):
        found = first_loss(*settings, *source(folders[dtype]), teacher=teacher)
        assert found == pytest.approx(live, rel=bound, abs=bound / 10)


def test_what_a_cache_does_not_hold_is_refused_by_name(write, prepare_run):
    settings, teacher, _ = CASES["of-rows"]
    folder, _ = write("fp16", *settings, teacher=teacher)
    with pytest.raises(ConfigError, match=r"reads teacher.key\[4\].*--method EXPRESSION"):
        prepare_run("method=minilmv2", *source(folder), teachers=(teacher,))
    prepare_run("method=soft", *source(folder), teachers=(teacher,))
    with pytest.raises(ConfigError, match=r"captures: \('hidden\[2\]\|cls.*of_logits: logits in"):
        write("fp16", "method=minilmv2", teacher=teacher)
    run = prepare_run(*settings, *source(folder), teachers=(teacher,))
    cached = run.last.teachers[0].source
    stage = build_stage(run.last, run.registry, folder, None)
    _, batches = next(iterate(stage.train, stage.collator, stage.sampler, 0, 1))
    with pytest.raises(DataError, match=r"teacher.hidden\[3\] is read, but they are"):
        cached.answer([LOGITS, Capture("hidden", 3)], batches[0], Step(0, 1, 0, "x", None))


@pytest.mark.parametrize(
    ("settings", "form", "reason"),
    [
        (("method=soft",), "states", "soft reads nothing else. Name the method"),
        (("method=pkd+soft",), "logits", r"holds logits only, and pkd\+soft reads hidden\[2\]"),
        (("method=hard",), None, "hard reads nothing of the teacher"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(
    write, tmp_path, settings, form, reason
):
    with pytest.raises(ConfigError, match=reason):
        write("fp16", *settings, teacher="teacher", form=form)
    assert not (tmp_path / "fp16").exists()


def test_the_size_is_said_before_anything_is_written(write, tmp_path):
    settings, teacher, _ = CASES["of-rows"]
    said = []

    def say(text):
        assert not (tmp_path / "fp32").exists()
        said.append(text)

    folder, manifest = write("fp32", *settings, teacher=teacher, say=say)
    width = 4 * (32 * len(manifest.captures) + 2)
    assert said[0].startswith(f"states (hidden[2]|cls, logits) in fp32: {width} bytes per row, ")
    stored = sum(own.nbytes for part in manifest.parts for own in _columns(folder / part.name))
    assert stored == 96 * width


@pytest.mark.parametrize("case", ["of-pairs", "of-causal-pairs"])
def test_the_size_of_maps_is_that_of_the_pairs_of_each_text(write, case):
    settings, teacher, _ = CASES[case]
    said = []
    folder, manifest = write("fp16", *settings, teacher=teacher, say=said.append)
    shards = [AnswerShard.load(folder / part.name) for part in manifest.parts]
    stored = sum(own.nbytes for shard in shards for own in shard.columns.values())
    pairs = sum(int(shard.starts.diff().square().sum()) for shard in shards)
    maps = [name for name in manifest.captures if name.startswith("attention")]
    assert f"and {2 * 4 * len(maps)} bytes per pair of tokens, about" in said[0]
    assert f"about {stored / 2**20:,.1f} MiB for" in said[0]
    assert said[0].endswith(f"tokens and {pairs:,} pairs")


def test_a_shard_of_maps_takes_no_more_than_its_bytes(write, first_loss, monkeypatch):
    settings, teacher, _ = CASES["of-causal-pairs"]
    folder, manifest = write("fp32", *settings, teacher=teacher, folder="any")
    before = sizes(folder, manifest)
    most = sum(before) // 8
    monkeypatch.setattr(answer_cache, "SHARD_BYTES", most)
    folder, manifest = write("fp32", *settings, teacher=teacher)
    after = sizes(folder, manifest)
    assert sum(after) == sum(before)
    assert len(before) == 3
    assert len(after) >= 8
    assert most / 2 < max(after) <= most < max(before)
    live = first_loss(*settings, teacher=teacher)
    found = first_loss(*settings, *source(folder), teacher=teacher)
    assert found == pytest.approx(live, rel=1e-5)


def test_a_shard_has_at_least_a_row_and_goes_on_as_it_was_divided(write, monkeypatch):
    settings, teacher, _ = CASES["of-causal-pairs"]
    settings = (*settings, "task.rows=8")
    monkeypatch.setattr(answer_cache, "SHARD_BYTES", 1)
    whole, manifest = write("fp32", *settings, teacher=teacher, folder="whole")
    assert [part.documents for part in manifest.parts] == [1] * 8
    with monkeypatch.context() as dying:
        dying.setattr(AnswerShard, "save", saves(3))
        with pytest.raises(KeyboardInterrupt):
            write("fp32", *settings, teacher=teacher, folder="killed")
    monkeypatch.setattr(answer_cache, "SHARD_BYTES", 10**9)
    killed, _ = write("fp32", *settings, teacher=teacher, folder="killed")
    assert files(killed) == files(whole)


def saves(count):
    """Return what saves some shards and then dies."""
    stock, left = AnswerShard.save, iter(range(count))

    def save(self, *arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return stock(self, *arguments)

    return save


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sizes(folder, manifest):
    """Return the bytes of the answers in each shard."""
    return [sum(own.nbytes for own in _columns(folder / part.name)) for part in manifest.parts]


def _columns(path):
    return AnswerShard.load(path).columns.values()


def test_sizes_are_those_of_tokens_and_rows(prepare_run):
    info = prepare_run("method=soft", teachers=("teacher",)).last.teachers[0].info
    names = ("hidden[2]", "hidden[1]|mean", "key[1]", "attention[1]", "probs[2]")
    form = CapturedStates("fp16", names, RowLogits("fp16"))
    own, labels = 2 * info.hidden_size, 2 * info.labels
    assert form.size(info) == Size(2 * own, own + labels, 2 * 2 * info.heads)
