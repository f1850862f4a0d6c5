"""A teacher on a server: a small one on the loopback interface that answers with a real model."""

from __future__ import annotations

import re

import pytest
import torch
from tests.serving import KEY, serving

from gkd_core.api import ConfigError, DataError
from gkd_core.teachers import server as client
from gkd_core.teachers.server_ways import PromptLogProbs

FIRST = (None, None)
"""No faults while it is found out how to ask the server."""

LM = ("method=soft", "task.kind=causal-lm", "soft.temperature=1")


@pytest.fixture
def server(world, monkeypatch):
    """Serve `lm-decoder`, which wants an API key."""
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    with serving(world / "lm-decoder", monkeypatch) as served:
        yield served


def source(server, **options):
    given = {"name": "server", "url": server.url, **options}
    return [f"teacher.source.{name}={value}" for name, value in given.items()]


@pytest.mark.parametrize(
    "rows", [(), ("task.packing=true", "task.max_length=16")], ids=["padded", "packed"]
)
def test_a_served_teacher_gives_the_losses_of_a_live_one(server, first_loss, rows):
    live = first_loss(*LM, *rows)
    served = first_loss(*LM, *rows, *source(server, k=10**6))
    assert served == pytest.approx(live, abs=1e-5)
    few = first_loss(*LM, *rows, *source(server, k=3))
    assert 0 < few["total"] < live["total"]


def test_a_server_is_compared_with_the_model_on_this_machine(server, first_loss, world):
    own = first_loss(*LM, *source(server, k=5, live=world / "lm-decoder", live_limit=1e-6))
    assert own == first_loss(*LM, *source(server, k=5))
    with torch.no_grad():
        server.model.lm_head.weight[5] += 0.5
    with pytest.raises(DataError, match=r"does not answer as .*lm-decoder does .*KL of 0\.\d+ per"):
        first_loss(*LM, *source(server, k=5, live=world / "lm-decoder", revision="another"))


def test_nothing_is_asked_twice(server, first_loss):
    once = first_loss(*LM, *source(server))
    count, contacts = len(server.texts), len(server.prompts)
    assert count == len({tuple(text) for text in server.texts}) > 0
    assert contacts == count + 2, "how to ask, and whether it gives so many words"
    assert first_loss(*LM, *source(server)) == once
    assert len(server.prompts) == contacts, "another process finds what was answered"
    first_loss(*LM, *source(server, revision="second"))
    assert len(server.texts) == 2 * count, "other weights were not asked"


def test_requests_without_an_answer_are_repeated(server, first_loss):
    server.faults = [*FIRST, 503, "dies", 429]
    expected = first_loss(*LM, *source(server))
    assert not server.faults
    server.faults = [*FIRST, *["dies"] * 8]
    with pytest.raises(DataError, match=r"does not answer, in 8 attempts .*kept"):
        first_loss(*LM, *source(server, revision="first"))
    assert first_loss(*LM, *source(server, revision="first")) == expected


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("page", "status 200, text/html instead of JSON"),
        ("moved", "302, a redirect to https://els"),
    ],
)
def test_whoever_is_no_server_is_asked_once(server, fault, reason):
    teacher = client.TeacherServer(server.url, KEY, "KEY", 10, 3)
    server.faults = [fault, None]
    with pytest.raises(ConfigError, match=rf"{reason}.*teacher\.source\.url"):
        teacher.write("the-teacher", [5, 6], {"temperature": 0, "max_tokens": 2})
    assert server.faults == [None]


def test_an_answer_that_is_garbled_is_asked_for_again(server):
    teacher = client.TeacherServer(server.url, KEY, "KEY", 10, 3)
    server.faults = ["garbled", "garbled"]
    found = teacher.write("the-teacher", [5, 6], {"temperature": 0, "max_tokens": 2})
    assert len(found.tokens) == 2
    server.faults = ["garbled"] * 3
    with pytest.raises(DataError, match="does not answer, in 3 attempts"):
        teacher.write("the-teacher", [5, 6], {"temperature": 0, "max_tokens": 2})


def spoiled():
    """Answers that are about something else, with the reason for which they are not used."""

    def shifts(choices):
        choices[0]["prompt_logprobs"].insert(1, choices[0]["prompt_logprobs"].pop())

    def at(change):
        return lambda choices: change(choices[0]["prompt_logprobs"])

    yield lambda choices: choices.pop(), r"about \d+ texts instead of \d+"
    yield lambda choices: choices[0].pop("prompt_logprobs"), "no `prompt_logprobs`"
    yield at(list.pop), r"\d+ positions for a text of \d+ tokens"
    yield at(lambda answer: answer.__setitem__(0, answer[1])), "predicts the first token"
    yield at(lambda answer: answer.__setitem__(1, {})), "is not where it should be"
    yield at(lambda answer: answer.__setitem__(1, None)), "a position holds 'None'"
    yield at(lambda answer: answer[1].update({f" {w}": e for w, e in answer[1].items()})), "twice"
    yield shifts, "is not where it should be"
    yield at(lambda answer: spoil(answer[1], float("nan"))), "nan or above 0"


def spoil(position, value):
    for entry in position.values():
        entry["logprob"] = value


def test_a_wrong_answer_is_not_used(server):
    teacher = client.TeacherServer(server.url, KEY, "KEY", 10, 1)
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    expected = teacher.likeliest("the-teacher", prompts, 2, PromptLogProbs())
    assert [len(own) for own in expected] == [3, 2]
    for spoil, reason in spoiled():
        server.faults = [spoil]
        with pytest.raises(DataError, match=reason):
            teacher.likeliest("the-teacher", prompts, 2, PromptLogProbs())
        assert teacher.likeliest("the-teacher", prompts, 2, PromptLogProbs()) == expected


def test_words_that_are_likelier_than_possible_are_neither_used_nor_kept(server, first_loss):
    server.faults = [*FIRST, lambda choices: spoil(choices[0]["prompt_logprobs"][1], 0.0)]
    with pytest.raises(DataError, match="likelier than possible"):
        first_loss(*LM, *source(server))
    expected = first_loss(*LM, *source(server, revision="other"))
    assert first_loss(*LM, *source(server)) == expected


def test_what_a_server_refuses_is_said(server, first_loss, monkeypatch):
    server.most = 20
    with pytest.raises(ConfigError, match=r"the most is 20.*--max-logprobs.*teacher.source.k"):
        first_loss(*LM, *source(server, k=64))
    monkeypatch.setenv("GKD_TEACHER_API_KEY", "wrong")
    with pytest.raises(ConfigError, match=r"status 401.*GKD_TEACHER_API_KEY") as refused:
        first_loss(*LM, *source(server))
    assert "wrong" not in str(refused.value)
    assert "Bearer" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("teacher.source.url=the-teacher",), "teacher.source.url is 'the-teacher'"),
        (("teacher.source.url=http://me:secret@host",), "has a user name or a password"),
        (("soft.temperature=4",), "by a temperature of 4"),
        (("task.kind=masked-lm",), "the task is masked-lm.*predicts the next word"),
    ],
)
def test_what_no_server_can_do_is_refused_before_the_run(server, prepare_run, settings, reason):
    kind = "lm-teacher" if "masked-lm" in settings[0] else "lm-decoder"
    with pytest.raises(ConfigError, match=reason):
        prepare_run(*LM, *source(server), *settings, teachers=(kind,))
    assert not server.texts


@pytest.mark.exhaustive
@pytest.mark.parametrize("gives", ["prompt_logprobs", "echo"])
def test_the_command_line_takes_an_address_as_a_teacher(server, invoke, world, tmp_path, gives):
    server.gives = (gives,)
    run = (
        *("run", "--teacher", server.url, "--student", world / "lm-decoder", "--no-baseline"),
        *("--data", world / "train.jsonl", "--method", "soft", "--set", "soft.temperature=1"),
        *("--set", "task.kind=causal-lm", "--set", "task.max_length=32"),
        *("--set", "output.reuse=false", "--set", "training.epochs=2"),
    )
    done = invoke(*run, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    prompts = [tuple(text) for text in server.texts]
    assert len(prompts) == len(set(prompts)) > 0
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    # Without a student, nothing says which tokens the teacher reads.
    alone = [word for word in run if word not in ("--student", world / "lm-decoder")]
    done = invoke(*alone, "--output", tmp_path / "other")
    assert re.search(r"teacher\.tokenizer and the student by --student", done.err), done.err
    told = ("--set", f"teacher.tokenizer={world / 'lm-decoder'}", "--student-layers", 1)
    done = invoke(*alone, *told, "--set", "training.steps=1", "--output", tmp_path / "told")
    assert done.code == 0, done.err
