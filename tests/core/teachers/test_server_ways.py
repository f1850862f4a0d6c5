"""How a server is asked for likely words: `prompt_logprobs`, or `echo` and `logprobs`."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.serving import KEY, serving
from transformers import AutoTokenizer

from gkd_core.api import ConfigError, DataError
from gkd_core.teachers import server as client
from gkd_core.teachers.server_ways import Echo, PromptLogProbs
from gkd_core.teachers.tokens_by_text import tokens_by_text

LM = ("method=soft", "task.kind=causal-lm", "soft.temperature=1")
PROMPTS = [[5, 6, 7, 8], [9, 10, 11]]


@pytest.fixture
def server(world, monkeypatch):
    """Serve `lm-decoder` by a server that knows `echo` and `logprobs` only."""
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    with serving(world / "lm-decoder", monkeypatch) as served:
        served.gives = ("echo",)
        yield served


@pytest.fixture
def teacher(server):
    return client.TeacherServer(server.url, KEY, "KEY", 10, 1)


@pytest.fixture
def ways(world):
    return PromptLogProbs(), Echo(AutoTokenizer.from_pretrained(world / "lm-decoder"))


def source(server, **options):
    given = {"name": "server", "url": server.url, **options}
    return [f"teacher.source.{name}={value}" for name, value in given.items()]


@pytest.mark.parametrize("names_ids", [True, False], ids=["ids", "texts"])
def test_a_teacher_that_is_echoed_gives_the_losses_of_a_live_one(server, first_loss, names_ids):
    server.names_ids = names_ids
    live = first_loss(*LM)
    assert first_loss(*LM, *source(server, k=10**6)) == pytest.approx(live, abs=1e-5)
    few = first_loss(*LM, *source(server, k=3))
    server.gives = ("prompt_logprobs",)
    count = len(server.prompts)
    other = first_loss(*LM, *source(server, k=3, revision="other"))
    assert other == pytest.approx(few, abs=1e-7)
    assert len(server.prompts) > count


def test_both_ways_give_the_same_words(server, teacher, ways):
    server.gives = ("prompt_logprobs", "echo")
    expected = teacher.likeliest("the-teacher", PROMPTS, 2, ways[0])
    for names_ids in (True, False):
        server.names_ids = names_ids
        echoed = teacher.likeliest("the-teacher", PROMPTS, 2, ways[1])
        for own, others in zip(echoed, expected, strict=True):
            for (words, log_probs), (theirs, known) in zip(own, others, strict=True):
                assert words == theirs
                assert log_probs == pytest.approx(known, abs=1e-5)


def test_nothing_that_was_echoed_is_asked_twice(server, first_loss, prepare_run):
    once = first_loss(*LM, *source(server))
    contacts, texts = len(server.prompts), {tuple(text) for text in server.texts}
    assert contacts == len(texts) + 3, "both ways are tried, and the number of words"
    server.gives = ("prompt_logprobs", "echo")
    assert first_loss(*LM, *source(server)) == once
    assert len(server.prompts) == contacts, "another process finds what was answered, and how"
    notes = prepare_run(*LM, *source(server), teachers=("lm-decoder",)).last.notes
    said = f"{server.url} is asked for the likeliest words of 'lm-decoder' by `echo` and `logprobs`"
    assert notes.count(said) == 1


def test_a_server_that_gives_both_is_asked_as_vllm(server, prepare_run):
    server.gives = ("echo", "prompt_logprobs")
    notes = prepare_run(*LM, *source(server), teachers=("lm-decoder",)).last.notes
    assert any(note.endswith("by `prompt_logprobs`") for note in notes), notes
    assert len(server.prompts) == 2


def test_answers_of_two_ways_are_not_mixed(server, first_loss):
    first_loss(*LM, *source(server))
    server.gives = ("prompt_logprobs",)
    with pytest.raises(DataError, match=r"no `logprobs`.*replaced, change teacher\.source\.rev"):
        first_loss(*LM, *source(server), "task.max_length=8")
    first_loss(*LM, *source(server, revision="second"), "task.max_length=8")


@pytest.mark.parametrize("is_strict", [False, True], ids=["ignores", "refuses"])
def test_a_server_that_knows_neither_way_is_refused_before_the_run(server, prepare_run, is_strict):
    server.gives, server.is_strict = (), is_strict
    both = "`prompt_logprobs`.*`echo` and `logprobs`.*vLLM.*`prompt_logprobs` or `echo` and `log"
    with pytest.raises(ConfigError, match=both) as refused:
        prepare_run(*LM, *source(server), teachers=("lm-decoder",))
    assert str(refused.value).count("unrecognized argument") == 2 * is_strict


def test_a_server_that_takes_texts_only_is_refused_with_the_reason(server, prepare_run):
    server.takes_ids = False
    reason = r"takes no token ids \(status 422.*valid string.*\), and may read a text as other tok"
    with pytest.raises(ConfigError, match=reason):
        prepare_run(*LM, *source(server), teachers=("lm-decoder",))
    assert not server.prompts


def test_a_strict_server_is_asked_as_it_can(server, teacher, ways):
    server.is_strict = True
    assert teacher.first_way("the-teacher", PROMPTS[0], ways) is ways[1]
    server.faults = [503]
    with pytest.raises(DataError, match="does not answer"):
        teacher.first_way("the-teacher", PROMPTS[0], ways)
    server.faults = [404]
    with pytest.raises(ConfigError, match="status 404"):
        teacher.first_way("the-teacher", PROMPTS[0], ways)


def test_a_server_that_gives_fewer_words_is_refused_before_the_run(server, prepare_run):
    server.most = 5
    with pytest.raises(ConfigError, match=r"the most is 5.*set teacher\.source\.k to fewer"):
        prepare_run(*LM, *source(server, k=6), teachers=("lm-decoder",))


def test_texts_that_several_tokens_have_are_refused(server, prepare_run, world, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(world / "lm-decoder", folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    one, other = list(described["model"]["vocab"])[7:9]
    described["decoder"] = {"type": "Replace", "pattern": {"String": one}, "content": other}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    server.names_ids = False
    told = (*source(server), f"teacher.tokenizer={folder}")
    with pytest.raises(ConfigError, match=rf"tokens 7 and 8 .*\('{other}'\).*vLLM.*by id"):
        prepare_run(*LM, *told, teachers=("lm-decoder",))
    server.names_ids = True
    prepare_run(*LM, *told, teachers=("lm-decoder",))


def test_tokens_are_found_by_text_only_if_no_two_are_alike(world, tongues):
    words = AutoTokenizer.from_pretrained(world / "lm-decoder")
    assert tokens_by_text(words) == words.get_vocab()
    with pytest.raises(ConfigError, match=r"cannot be told apart \('�'\)"):
        tokens_by_text(AutoTokenizer.from_pretrained(tongues / "causal-roberta"))
    words.add_tokens(f" {words.convert_ids_to_tokens(9)}")
    with pytest.raises(ConfigError, match=rf"tokens 9 and {len(words) - 1} .*told apart"):
        tokens_by_text(words)


def spoiled():
    """Echoed answers that are about something else, with the reason for which they are not used."""

    def at(change):
        return lambda choices: change(choices[0]["logprobs"])

    def cell(column, place, value):
        return at(lambda answer: answer[column].__setitem__(place, value))

    def cut(answer):
        for column in answer.values():
            del column[-2:]

    def words(change):
        return at(lambda answer: change(answer["top_logprobs"][1]))

    yield lambda choices: choices.pop(), r"about \d+ texts instead of \d+"
    yield lambda choices: choices[0].update(logprobs=None), "has no `logprobs`"
    yield at(lambda answer: answer.update(top_logprobs=None)), "has no `logprobs`"
    yield at(cut), r"2 positions for a text of 3 tokens"
    yield at(lambda answer: answer["tokens"].append("token_id:5")), "more than 4 positions"
    yield at(lambda answer: answer["tokens"].insert(0, answer["tokens"].pop())), "not where it sh"
    yield cell("tokens", 1, "token_id:5"), "the token 10 of the text is not where it should be"
    yield cell("tokens", 1, "nonsense"), "the token 'token_id:9', which the teacher's tokenizer la"
    yield cell("top_logprobs", 1, None), "a position holds 'None'"
    yield cell("token_logprobs", 1, None), "a position holds"
    yield cell("token_logprobs", 1, -0.01), "the token 10 of the text has two log-probabilities"
    yield cell("token_logprobs", 1, float("nan")), "has two log-probabilities"
    yield cell("token_logprobs", 0, -1.0), "a position holds 'None'"
    yield words(lambda at: at.update({"token_id:06": -9.0, "token_id:6": -9.0})), "the word 6 twice"
    yield words(lambda at: at.update(film=-1.0)), "the token 'film' among ids"
    yield words(lambda at: at.update({name: float("nan") for name in at})), "two log-prob"
    yield words(lambda at: at.update({"token_id:6": 1.0})), "nan or above 0"
    yield words(dict.clear), "1 words instead of 2"

    def predicts_the_first(answer):
        answer["token_logprobs"][0], answer["top_logprobs"][0] = -1.0, {"token_id:9": -1.0}

    yield at(predicts_the_first), "predicts the first token"


def test_a_wrong_echo_is_not_used(server, teacher, ways):
    expected = teacher.likeliest("the-teacher", PROMPTS, 2, ways[1])
    assert [len(own) for own in expected] == [3, 2]
    for spoil, reason in spoiled():
        server.faults = [spoil]
        with pytest.raises(DataError, match=reason):
            teacher.likeliest("the-teacher", PROMPTS, 2, ways[1])
    assert teacher.likeliest("the-teacher", PROMPTS, 2, ways[1]) == expected


def test_the_word_after_the_text_may_be_left_out(server, teacher, ways):
    expected = teacher.likeliest("the-teacher", PROMPTS, 2, ways[1])

    def ends_at_once(choices):
        for column in choices[0]["logprobs"].values():
            column.pop()

    server.faults = [ends_at_once]
    assert teacher.likeliest("the-teacher", PROMPTS, 2, ways[1]) == expected


def test_the_words_need_not_hold_that_of_the_text(server, teacher, ways):
    expected = teacher.likeliest("the-teacher", PROMPTS, 2, ways[1])

    def only_the_likeliest(choices):
        for choice in choices:
            for words in choice["logprobs"]["top_logprobs"][1:]:
                while len(words) > 2:
                    words.popitem()

    server.faults = [only_the_likeliest]
    assert teacher.likeliest("the-teacher", PROMPTS, 2, ways[1]) == expected
