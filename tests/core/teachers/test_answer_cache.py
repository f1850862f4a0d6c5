"""`gkd cache` and `--teacher-cache`: the same losses without the teacher, or a refusal."""

from __future__ import annotations

import errno
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from gkd_core import digest
from gkd_core.api import ConfigError, DataError, MethodError
from gkd_core.runs import answer_cache
from gkd_core.teachers import answer_cache as stored
from gkd_core.teachers import answer_form, answer_shard
from gkd_core.teachers.answer_cache import AnswerCache
from gkd_core.teachers.answer_shard import AnswerShard

LM = ("method=soft", "task.kind=causal-lm")
CASES = {"hidden": (LM, "lm-decoder"), "logits": (("method=kd",), "teacher")}


def source(folder):
    return ("teacher.source=cache", f"teacher.source.path={folder}")


@pytest.mark.parametrize("form", CASES)
def test_a_cache_gives_the_losses_of_the_teacher(write, first_loss, form):
    settings, teacher = CASES[form]
    live = first_loss(*settings, teacher=teacher)
    for dtype, bound in (("fp32", 1e-6), ("fp16", 1e-4), ("bf16", 1e-3)):
        if form == "logits" and dtype != "fp32":
            continue
        folder, manifest = write(dtype, *settings, teacher=teacher, folder=dtype)
        assert manifest.form == form
        assert len(manifest.parts) == 3
        assert all(part.divergence < bound for part in manifest.parts)
        found = first_loss(*settings, *source(folder), teacher=teacher)
        assert found == pytest.approx(live, abs=bound * max(1, live["total"]))


ONE = ("soft.temperature=1",)
"""The temperature at which the likeliest words are stored."""


def test_the_likeliest_words_give_the_losses_of_their_distribution(write, first_loss):
    settings, teacher = (*LM, *ONE), "lm-decoder"
    live, losses = first_loss(*settings, teacher=teacher), []
    for k in (1, 8, 64, 10**6):
        folder, manifest = write("fp32", *settings, teacher=teacher, folder=f"{k}", **top(k))
        assert all(part.divergence < 1e-6 for part in manifest.parts)
        losses.append(first_loss(*settings, *source(folder), teacher=teacher)["total"])
    assert losses == sorted(losses)
    assert losses[0] < 0.9 * live["total"]
    assert losses[-1] == pytest.approx(live["total"], abs=1e-6)
    assert manifest.parts[0].tail == 0
    # At another temperature, all words are needed: those of the cache are softened already.
    two = (*LM, "soft.temperature=2")
    folder, _ = write("fp32", *two, teacher=teacher, folder="two", **top(10**6, 2.0))
    expected = first_loss(*two, teacher=teacher)
    found = first_loss(*two, *source(folder), teacher=teacher)
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_likeliest_words_are_those_of_scored_tokens(write, first_loss):
    settings = (*LM, *ONE, "task.packing=true", "task.max_length=16")
    expected = first_loss(*settings, teacher="lm-decoder")
    folder, manifest = write("fp32", *settings, teacher="lm-decoder", **top(10**6))
    everything, _ = write("fp32", *settings, teacher="lm-decoder", folder="hidden")
    found = first_loss(*settings, *source(folder), teacher="lm-decoder")
    assert found == pytest.approx(expected, abs=1e-6)
    tokens = sum(part.values for part in stored.CacheManifest.load(everything, "").parts)
    texts = sum(part.documents for part in manifest.parts)
    assert sum(part.values for part in manifest.parts) == tokens - texts, "the last has no target"


def top(k, temperature=1.0):
    return {"form": "top-k", "k": k, "temperature": temperature}


def test_ids_take_two_bytes_or_four(write, monkeypatch, first_loss):
    settings, teacher = (*LM, *ONE), "lm-decoder"
    folder, manifest = write("fp16", *settings, teacher=teacher, **top(8))
    (short, *_) = AnswerCache(folder, manifest).shards
    assert short.columns["ids"].dtype == torch.int16
    assert short.columns["log_probs"].shape == (short.size, 9)
    monkeypatch.setattr(answer_form, "SHORT", 8)
    other, manifest = write("fp16", *settings, teacher=teacher, folder="other", **top(8))
    assert AnswerCache(other, manifest).shards[0].columns["ids"].dtype == torch.int32
    monkeypatch.undo()
    one, two = (first_loss(*settings, *source(f), teacher=teacher) for f in (folder, other))
    assert one == two
    ids = torch.tensor([40000, 65535, 0])
    form = answer_form.LikeliestWords("fp32", 3, 1.0, 2**16)
    columns = {"ids": ids.to(torch.int16), "log_probs": torch.zeros(4)}
    assert form.logits(columns, {}).ids.equal(ids)


def test_what_the_likeliest_words_do_not_determine_is_refused(write, prepare_run):
    folder, _ = write("fp16", *LM, *ONE, teacher="lm-decoder", **top(4))
    for settings, reason in (
        (("method=soft", "soft.temperature=4"), "by a temperature of 4, .*at temperature 1, .*Set"),
        (("method=soft", *ONE, "soft.divergence=adaptive-kl"), "soft needs teacher.logits as a"),
        (("method=dpkd",), "dpkd needs teacher.logits as a whole, .*do not determine them"),
    ):
        kind = ("task.kind=causal-lm", *settings)
        with pytest.raises(ConfigError, match=reason):
            prepare_run(*kind, *source(folder), teachers=("lm-decoder",))
    with pytest.raises(ConfigError, match="other answers: k: 4 in the cache, 5 here"):
        write("fp16", *LM, *ONE, teacher="lm-decoder", **top(5))


@pytest.mark.parametrize("method", ["kd", "pd"])
def test_methods_that_compare_distributions_learn_from_the_likeliest_words(
    write, first_loss, method
):
    settings = (f"method={method}", "task.kind=causal-lm", "kd.temperature=1")
    settings = settings if method == "kd" else settings[:2]
    folder, _ = write("fp32", *settings, teacher="lm-decoder", **top(10**6))
    expected = first_loss(*settings, teacher="lm-decoder")
    found = first_loss(*settings, *source(folder), teacher="lm-decoder")
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_mixture_has_the_losses_of_the_teacher(write, first_loss, world, tmp_path):
    lines = (world / "train.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("a", lines[:40]), ("b", lines[40:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    mixed, alone = (
        (*LM, f"task.train={','.join(f'{tmp_path}/{each}' for each in sources)}")
        for sources in (("a.jsonl:0.7", "b.jsonl:0.3"), ("b.jsonl:0.2", "a.jsonl:0.8"))
    )
    live = first_loss(*mixed)
    folder, _ = write("fp32", *mixed, teacher="lm-decoder")
    assert first_loss(*mixed, *source(folder)) == pytest.approx(live, abs=1e-6)
    more = first_loss(*alone)
    assert first_loss(*alone, *source(folder)) == pytest.approx(more, abs=1e-6), "fewer of b"


def test_one_of_several_teachers_has_a_cache(write, prepare_run):
    teachers = ("teacher", "decoder")
    folder, _ = write("fp32", "method=soft", teacher="decoder")
    settings = ("method=soft", "training.steps=1", "training.log_every=1")
    of_second = (setting.replace("teacher", "teachers.1", 1) for setting in source(folder))
    found = []
    for name, own in (("live", ()), ("cached", of_second)):
        run = prepare_run(*settings, *own, teachers=teachers, directory=name)
        run.execute()
        lines = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
        found.append(next(line["loss/total"] for line in lines if "loss/total" in line))
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert [each.source is None for each in run.last.teachers] == [True, False]
    of_first = (setting.replace("teacher", "teachers.0", 1) for setting in source(folder))
    with pytest.raises(ConfigError, match="not of the teacher 'teacher' of this run: weights: "):
        prepare_run(*settings, *of_first, teachers=teachers)


def test_texts_are_found_in_packed_rows(write, first_loss):
    settings = (*LM, "task.packing=true", "task.max_length=16")
    live = first_loss(*settings, teacher="lm-decoder")
    folder, manifest = write("fp32", *settings, teacher="lm-decoder")
    assert sum(part.documents for part in manifest.parts) > 96, "more than there are blocks"
    found = first_loss(*settings, *source(folder), teacher="lm-decoder")
    assert found == pytest.approx(live, abs=1e-6 * live["total"])


@pytest.mark.parametrize("form", [None, pytest.param("top-k", marks=pytest.mark.exhaustive)])
def test_a_cache_that_was_interrupted_ends_with_the_same_bytes(write, tmp_path, monkeypatch, form):
    settings, teacher = CASES["hidden"]
    whole, _ = write("fp16", *settings, teacher=teacher, folder="whole", form=form)
    stock = answer_cache.write_file
    for done in range(5 if form is None else 4):  # a head is one file more
        left = iter(range(done))

        def dies(path, content, left=left):
            if next(left, None) is None:
                path.with_name(f"{path.name}.1.tmp").write_bytes(b"half")
                raise KeyboardInterrupt
            stock(path, content)

        with monkeypatch.context() as dying:
            for module in (answer_cache, stored, answer_shard):
                dying.setattr(module, "write_file", dies)
            with pytest.raises(KeyboardInterrupt):
                write("fp16", *settings, teacher=teacher, folder=f"killed-{done}", form=form)
        write("fp16", *settings, teacher=teacher, folder=f"killed-{done}", form=form)
        assert files(tmp_path / f"killed-{done}") == files(whole)


def test_a_cache_that_a_disk_has_no_room_for_is_refused_before_it_is_begun(
    write, tmp_path, monkeypatch
):
    settings, teacher = CASES["hidden"]
    whole, manifest = write("fp16", *settings, teacher=teacher, folder="whole")
    shards = [AnswerShard.load(whole / part.name) for part in manifest.parts]
    sizes = [sum(own.nbytes for own in shard.columns.values()) for shard in shards]
    disk = partial(free, monkeypatch)
    disk(sum(sizes) - 1)
    with pytest.raises(ConfigError, match=r"--output .*: about .*KiB are to be written to .*free"):
        write("fp16", *settings, teacher=teacher, folder="full")
    assert not (tmp_path / "full").exists()
    disk(sum(sizes))
    write("fp16", *settings, teacher=teacher, folder="full")
    (whole / manifest.parts[1].name).unlink()
    disk(sizes[1])
    write("fp16", *settings, teacher=teacher, folder="whole")
    assert files(whole) == files(tmp_path / "full"), "what is there needs no room"


def free(monkeypatch, count):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=count))


def test_a_disk_that_fills_up_leaves_no_wrong_cache(write, tmp_path, monkeypatch, prepare_run):
    settings, teacher = CASES["hidden"]
    whole, _ = write("fp16", *settings, teacher=teacher, folder="whole")
    stock = Path.write_bytes

    def fills(path, content):
        stock(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for name in ("shard-000001", "manifest", "head"):
        folder = tmp_path / f"full at {name}"
        with monkeypatch.context() as full:
            full.setattr(
                Path,
                "write_bytes",
                lambda path, content, name=name: (fills if name in path.name else stock)(
                    path, content
                ),
            )
            with pytest.raises(OSError, match="No space left"):
                write("fp16", *settings, teacher=teacher, folder=folder.name)
        there, expected = files(folder), files(whole)
        assert all(there[own] == expected[own] for own in there if own.startswith("shard"))
        with pytest.raises(ConfigError, match=r"not finished|holds no answers"):
            prepare_run(*settings, *source(folder), teachers=(teacher,))
        write("fp16", *settings, teacher=teacher, folder=folder.name)
        assert files(folder) == files(whole)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_cache_serves_only_what_it_is_about(write, prepare_run, tmp_path):
    settings, teacher = CASES["hidden"]
    folder, _ = write("fp16", *settings, teacher=teacher)
    manifest = stored.CacheManifest.load(folder, "")
    for name, value in (("weights", "0"), ("tokenizer", "1"), ("vocabulary", 7)):
        replace(manifest, belongs=replace(manifest.belongs, **{name: value})).save(folder)
        with pytest.raises(ConfigError, match=rf"{name}: {value} in the cache, \w+ here"):
            prepare_run(*settings, *source(folder), teachers=(teacher,))
        with pytest.raises(ConfigError, match=f"holds other answers: {name}"):
            write("fp16", *settings, teacher=teacher)
    replace(manifest, shards=4).save(folder)
    with pytest.raises(ConfigError, match=r"is not finished.*3 of 4 shards are there, 1 left"):
        prepare_run(*settings, *source(folder), teachers=(teacher,))
    with pytest.raises(ConfigError, match=r"--teacher-cache.*holds no answers of a teacher"):
        prepare_run(*settings, *source(tmp_path / "nothing"), teachers=(teacher,))


def test_answers_of_the_same_weights_in_another_configuration_are_others(
    write, prepare_run, world, tmp_path
):
    settings, teacher = CASES["hidden"]
    folder, _ = write("fp16", *settings, teacher=teacher)
    twin = tmp_path / "twin"
    shutil.copytree(world / teacher, twin)
    path = twin / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"transformers_version": "5.0.0"}))
    prepare_run(*settings, *source(folder), teachers=(str(twin),))
    path.write_text(json.dumps(content | {"rope_parameters": {"rope_theta": 50.0}}))
    with pytest.raises(ConfigError, match=r"not of the teacher .*: config: \w+ in the cache, \w+"):
        prepare_run(*settings, *source(folder), teachers=(str(twin),))


def test_a_cache_of_other_rows_is_refused_at_the_first_that_it_lacks(write, first_loss):
    settings, teacher = CASES["hidden"]
    folder, _ = write("fp16", *settings, teacher=teacher)
    with pytest.raises(DataError, match=r"no answer about a text of \d+ tokens.*task.max_length"):
        first_loss(*settings, "task.max_length=8", *source(folder), teacher=teacher)


def test_of_two_forms_that_are_begun_at_once_one_is_refused(write, monkeypatch):
    settings, teacher = CASES["logits"]
    folder, _ = write("fp32", *settings, teacher=teacher, folder="one")
    before = files(folder)
    monkeypatch.setattr(answer_cache, "_there", lambda folder: None)
    with pytest.raises(ConfigError, match="holds other answers: dtype: fp32 in the cache, fp16"):
        write("fp16", *settings, teacher=teacher, folder="one")
    write("fp32", *settings, teacher=teacher, folder="one")
    assert files(folder) == before


@pytest.mark.parametrize("packing", ["false", "true"])
def test_a_run_whose_rows_are_not_all_stored_ends_before_its_first_step(
    write, prepare_run, packing
):
    settings, teacher = (*CASES["hidden"][0], f"task.packing={packing}"), CASES["hidden"][1]
    folder, _ = write("fp16", *settings, "task.rows=40", teacher=teacher)
    run = prepare_run(*settings, *source(folder), teachers=(teacher,))
    with pytest.raises(DataError, match=r"has no answers about \d+ of \d+ texts of the training"):
        run.execute()
    metrics = run.directory / "metrics.jsonl"
    assert not metrics.exists() or "loss/total" not in metrics.read_text()


def test_rows_of_a_later_stage_are_missed_before_an_earlier_one_is_trained(write, prepare_run):
    settings, teacher = CASES["hidden"]
    folder, _ = write("fp16", *settings, "task.rows=40", teacher=teacher)
    stages = "stages=[{name='few',task={rows=40}},{name='all',task={rows=96}}]"
    run = prepare_run(stages, *settings, *source(folder), teachers=(teacher,))
    with pytest.raises(DataError, match=r"no answers about 56 of 96 texts"):
        run.execute()
    assert not run.results, "no stage is trained"


def test_a_file_that_a_later_stage_needs_is_missed_before_an_earlier_one_is_trained(
    write, prepare_run
):
    settings, teacher = CASES["hidden"]
    folder, manifest = write("fp16", *settings, teacher=teacher)
    stages = "stages=[{name='words',task={rows=40}},{name='states'}]"
    own = (f"stages.states.{setting}" for setting in source(folder))
    lost = folder / manifest.parts[2].name
    lost.unlink()
    run = prepare_run(stages, *settings, *own, teachers=(teacher,))
    with pytest.raises(DataError, match=rf"{lost.name} cannot be read: No such file"):
        run.execute()
    assert not run.results, "no stage is trained"


def test_a_stage_that_reads_what_a_cache_lacks_is_named_and_may_run_the_teacher(write, prepare_run):
    settings, teacher = CASES["hidden"]
    folder, _ = write("fp16", *settings, teacher=teacher)
    both = (*settings, "stages=[{name='a',method='soft'},{name='b',method='distilbert'}]")
    reason = r"distilbert reads .*stages.b.teacher.source.* \(stages.NAME.teacher.source\) to run"
    with pytest.raises(ConfigError, match=reason):
        prepare_run(*both, *source(folder), teachers=(teacher,))
    own = (f"stages.a.{setting}" for setting in source(folder))
    run = prepare_run(*both, *own, "training.steps=1", teachers=(teacher,))
    assert [spec.teachers[0].source is None for spec in run.specs] == [False, True]


def test_probes_leave_out_logits_of_which_there_are_the_likeliest_words(write, prepare_run):
    folder, _ = write("fp16", *LM, *ONE, teacher="lm-decoder", **top(4))
    settings = (*LM, *ONE, *source(folder))
    with pytest.raises(MethodError, match=r"names logits, .* there are the likeliest words only"):
        prepare_run(*settings, "probe.features=['logits']", teachers=("lm-decoder",))
    run = prepare_run(*settings, "probe.features=['all']", teachers=("lm-decoder",))
    assert not any(choice.pairs for choice in run.last.probed)


def test_a_run_may_use_a_part_of_the_rows_that_are_stored(write, prepare_run):
    settings, teacher = CASES["hidden"]
    folder, _ = write("fp16", *settings, teacher=teacher)
    few = (*settings, *source(folder), "task.rows=30", "training.steps=1")
    run = prepare_run(*few, teachers=(teacher,))
    run.execute()
    assert run.results["distil"].steps == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: [], "its format is None, not"),
        (lambda content: signed(content, format=3), "its format is 3, not"),
        (lambda content: content | {"dtype": "fp32"}, "it has changed since it was written"),
        (lambda content: content | {"digest": "0"}, "it has changed since it was written"),
        (lambda content: content | {"more": 1}, "it has changed since it was written"),
        (lambda content: signed(content, form="heads"), "form"),
        (lambda content: signed(content, dtype="fp8"), "dtype"),
        (lambda content: signed(content, shards="many"), "shards"),
        (lambda content: signed(content, parts=3), "not iterable"),
        (lambda content: signed(content, parts=[{"name": 1}]), "missing"),
        (lambda content: signed(content, more=1), "unexpected keyword"),
    ],
)
def test_a_manifest_that_is_damaged_is_named_with_the_reason(write, prepare_run, change, reason):
    settings, teacher = CASES["logits"]
    folder, _ = write("fp16", *settings, teacher=teacher)
    path = folder / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    said = rf"manifest.json cannot be read: (.|\n)*{reason}(.|\n)*Write it again, into another"
    for attempt in (
        lambda: prepare_run(*settings, *source(folder), teachers=(teacher,)),
        lambda: write("fp16", *settings, teacher=teacher),
    ):
        with pytest.raises(ConfigError, match=said):
            attempt()


def signed(content, **changes):
    """Return a manifest with changes by somebody who knows of its digest."""
    changed = {name: value for name, value in (content | changes).items() if name != "digest"}
    return changed | {"digest": digest.of_value(changed)}


def test_no_bit_of_a_manifest_may_change(write):
    settings, teacher = CASES["logits"]
    folder, manifest = write("fp16", *settings, teacher=teacher)
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ConfigError, match=r"manifest.json cannot be read: .*Write it again"):
            stored.CacheManifest.load(folder, "")
    path.write_bytes(whole)
    assert stored.CacheManifest.load(folder, "") == manifest


def test_a_shard_that_is_missing_short_or_another_is_named(write, first_loss):
    settings, teacher = CASES["hidden"]
    folder, manifest = write("fp16", *settings, teacher=teacher)
    first, second = (folder / part.name for part in manifest.parts[:2])
    whole = first.read_bytes()
    for damage in (
        first.unlink,
        lambda: first.write_bytes(whole[:-100]),
        lambda: first.write_bytes(second.read_bytes()),
    ):
        damage()
        with pytest.raises(DataError, match=rf"{first.name} cannot be read: .*gkd cache command"):
            first_loss(*settings, *source(folder), teacher=teacher)
    write("fp16", *settings, teacher=teacher)
    assert first.read_bytes() == whole


def test_files_of_another_cache_are_named(write, first_loss, world, tmp_path):
    settings, teacher = CASES["hidden"]
    folder, manifest = write("fp16", *settings, teacher=teacher)
    twin = str(doubled(world / teacher, tmp_path / "twin"))
    other, of_other = write("fp16", *settings, teacher=twin, folder="other")
    own, foreign = folder / manifest.parts[1].name, other / of_other.parts[1].name
    whole = own.read_bytes()
    own.write_bytes(foreign.read_bytes())
    with pytest.raises(DataError, match=rf"{own.name} cannot be read: it is not the one that man"):
        first_loss(*settings, *source(folder), teacher=teacher)
    own.write_bytes(whole)
    before = files(folder)
    for path in (foreign, other / of_other.head):
        place = folder / path.name
        place.write_bytes(path.read_bytes())
        for begin in (manifest, replace(manifest, parts=(), head=None)):
            begin.save(folder)
            with pytest.raises(ConfigError, match=rf"--output: .*{path.name} is of another cache"):
                write("fp16", *settings, teacher=teacher)
        place.unlink()
    write("fp16", *settings, teacher=teacher)
    assert files(folder) == before


def doubled(model, folder):
    """Return a copy of a model with other weights."""
    shutil.copytree(model, folder)
    path = folder / "model.safetensors"
    save_file({name: 2 * own for name, own in load_file(path).items()}, path, {"format": "pt"})
    return folder


FLIPPED = (
    (("keys",), "its index is not as it was written"),
    (("starts",), "its index is not as it was written"),
    (("checksums",), r"(its index|the answer about its text \d+) is not as it was written"),
    (("values", "log_probs", "ids"), r"the answer about its text \d+ is not as it was written"),
)
"""Tensors of a shard, and what is said if one of their bits is another."""


@pytest.mark.parametrize(
    "case", ["hidden", "logits", pytest.param("top-k", marks=pytest.mark.exhaustive)]
)
def test_a_bit_that_is_flipped_is_named_and_not_learned_from(write, first_loss, case):
    settings, teacher = CASES.get(case, ((*LM, *ONE), "lm-decoder"))
    form = top(4) if case == "top-k" else {}
    folder, manifest = write("fp16", *settings, teacher=teacher, **form)
    before = files(folder)
    for names, reason in FLIPPED:
        for path in (folder / part.name for part in manifest.parts):
            path.write_bytes(flipped(before[path.name], names))
        with pytest.raises(DataError, match=rf"shard-.* cannot be read: {reason}. Write it again"):
            first_loss(*settings, *source(folder), teacher=teacher)
    write("fp16", *settings, teacher=teacher, **form)
    assert files(folder) == before


def flipped(content, names):
    """Return a safetensors file in which each row of the first such tensor has another bit."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    name = next(name for name in names if name in header)
    begin, end = header[name]["data_offsets"]
    width = (end - begin) // header[name]["shape"][0]
    changed, first = (
        bytearray(content),
        len(content)
        - max(own["data_offsets"][1] for key, own in header.items() if key != "__metadata__"),
    )
    for place in range(first + begin, first + end, width):
        changed[place] ^= 4
    return bytes(changed)


def test_a_head_that_is_damaged_or_missing_is_named_and_written_again(write, first_loss):
    settings, teacher = CASES["hidden"]
    folder, manifest = write("fp16", *settings, teacher=teacher)
    head, whole = folder / manifest.head, files(folder)
    for damage in (lambda: head.write_bytes(flipped(whole[head.name], ["weight"])), head.unlink):
        damage()
        with pytest.raises(DataError, match=rf"{head.name} cannot be read: it is missing, or not"):
            first_loss(*settings, *source(folder), teacher=teacher)
        write("fp16", *settings, teacher=teacher)
        assert files(folder) == whole


def test_a_cache_of_other_learned_words_is_refused_before_the_first_step(
    write, prepare_run, world, tmp_path
):
    teacher = str(without_end(world / "lm-decoder", tmp_path / "teacher"))
    settings = (*LM, *ONE, *answered(world, tmp_path, 2))
    words, _ = write("fp16", *settings, teacher=teacher, **top(4))
    states, _ = write("fp16", *settings, teacher=teacher, folder="states")
    others = (*LM, *ONE, "training.steps=1", *answered(world, tmp_path, 3))
    run = prepare_run(*others, *source(words), teachers=(teacher,))
    reason = "no answers about 96 of 96 .* the same tokens, .*learned, 192 instead of the 288 of"
    with pytest.raises(DataError, match=reason):
        run.execute()
    with pytest.raises(ConfigError, match="holds other answers: learned: "):
        write("fp16", *others, teacher=teacher, **top(4))
    prepare_run(*others, *source(states), teachers=(teacher,)).execute()


def without_end(model, folder):
    """Return a copy of a model whose tokenizer adds no special tokens."""
    shutil.copytree(model, folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    return folder


def answered(world, folder, count):
    """Return the settings of the rows whose last words are the answer to the others."""
    made = []
    for name in ("train", "validation", "test"):
        lines = (world / f"{name}.jsonl").read_text().splitlines()
        words = [json.loads(line)["text"].split() for line in lines]
        rows = [
            {"prompt": " ".join(own[:-count]), "response": " ".join(own[-count:])} for own in words
        ]
        path = folder / f"{name}-{count}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        made.append(f"task.{name}={path}")
    return made


def test_a_finished_cache_is_only_read(write, prepare_run):
    settings, teacher = CASES["hidden"]
    folder, _ = write("fp16", *settings, teacher=teacher)
    before = [(path, path.stat()) for path in (folder, *folder.iterdir())]
    run = prepare_run(*settings, *source(folder), "training.steps=1", teachers=(teacher,))
    run.execute()
    write("fp16", *settings, teacher=teacher)
    for path, was in before:
        now = path.stat()
        assert (now.st_mtime_ns, now.st_ino) == (was.st_mtime_ns, was.st_ino), path


def test_a_place_that_is_no_folder_for_a_cache_is_refused(write, prepare_run, tmp_path):
    settings, teacher = CASES["logits"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"--output: .*/file is a file"):
        write("fp16", *settings, teacher=teacher, folder="file")
    with pytest.raises(ConfigError, match=r"--output: .*/file/below cannot be written: Not a"):
        write("fp16", *settings, teacher=teacher, folder="file/below")
    with pytest.raises(ConfigError, match=r"cannot be read: .*Not a directory"):
        prepare_run(*settings, *source(tmp_path / "file"), teachers=(teacher,))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "teacher", "reason"),
    [(("method=soft", "task.kind=masked-lm"), "lm-teacher", "masks other tokens in each epoch")],
)
def test_what_no_cache_can_hold_is_said(write, settings, teacher, reason):
    with pytest.raises(ConfigError, match=reason):
        write("fp16", *settings, teacher=teacher)


@pytest.mark.parametrize(("form", "other"), [("hidden", "logits"), ("logits", "top-k")])
def test_a_form_that_is_not_for_the_kind_is_refused(write, form, other):
    settings, teacher = CASES[form]
    with pytest.raises(ConfigError, match=f"--form: {other} is not for .*Use .*{form}"):
        write("fp16", *settings, teacher=teacher, form=other)


def test_the_command_line_writes_and_uses_a_cache(invoke, world, few):
    rows = ("--data", world / "train.jsonl", "--teacher", world / "lm-decoder")
    kind = ("--set", "task.kind=causal-lm", "--set", "task.max_length=32")
    done = invoke("cache", *rows, *kind, "--output", "answers")
    assert done.code == 0, done.err
    assert re.search(r"hidden of \d+ texts, fp16, \d+ bytes per token; KL .*e-\d+ nats", done.out)
    words = ("--form", "top-k", "--k", 4)
    done = invoke("cache", *rows, *kind, *words, "--output", "words")
    assert re.search(
        r"top-k of .* 2\d bytes .*; words beyond the 4 likeliest have \d+\.\d%", done.out
    )
    done = invoke("cache", *rows, *kind, *words[2:], "--output", "words")
    assert "--k is an option of --form top-k" in done.err
    short = ("--student-layers", 1, "--set", "training.steps=1", "--no-baseline")
    run = invoke(
        *("run", *rows, *kind, *short, "--method", "soft", "--set", "output.reuse=false"),
        *("--teacher-cache", "answers", "--output", "run"),
    )
    assert run.code == 0, run.err
