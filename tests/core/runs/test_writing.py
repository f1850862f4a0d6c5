"""A teacher writes the answers of a stage before its first step: once, resumably, filtered."""

from __future__ import annotations

import json

import pytest
from tests.serving import serving
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkd_core.config.schema import WritingConfig
from gkd_core.contract.task import Split
from gkd_core.data.encode_chats import encode_chats
from gkd_core.data.prompts import answered, as_columns, encode_prompts, prompts_alone
from gkd_core.errors import ConfigError, DataError
from gkd_core.rollouts.answers import FilteredAnswers, WrittenAnswer
from gkd_core.runs import writing
from gkd_core.runs.directory import has_trained
from gkd_core.teachers import server as client

WRITING = ("writing.prompt_tokens=4", "writing.max_new_tokens=6")
SAMPLED = (*WRITING, "writing.temperature=1", "writing.samples=2")


@pytest.fixture
def prepare(prepare_run, world):
    """Prepare a run on text whose answers the teacher writes."""

    def _prepare(*settings, **options):
        corpus = f"task.train={world / 'corpus.txt'}"
        plain = [corpus, corpus.replace("train", "validation"), corpus.replace("train", "test")]
        given = ("task.kind=causal-lm", "method=hard", *settings)
        return prepare_run(*plain, *given, teachers=("lm-decoder",), **options)

    return _prepare


@pytest.fixture
def written(prepare):
    """Let the teacher write, and return the stage and its data set."""

    def _written(*settings, directory="run"):
        run = prepare(*settings, directory=directory)
        spec = run._with_answers(run.last)
        data = run.locations.folder(run.last) / "written.jsonl"
        return spec, [json.loads(line) for line in data.read_text().splitlines()], data

    return _written


def test_the_student_learns_what_the_teacher_writes(written, world):
    spec, rows, _ = written(*WRITING)
    tokenizer = AutoTokenizer.from_pretrained(world / "lm-decoder")
    model = AutoModelForCausalLM.from_pretrained(world / "lm-decoder").eval()
    texts = (world / "corpus.txt").read_text().splitlines()
    assert len(rows) == 95, "one answer is empty"
    assert [row["text"].split() for row in rows[:9]] == [text.split()[:4] for text in texts[:9]]
    for row in rows[:3]:
        ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
        greedy = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert row["target"] == tokenizer.decode(greedy, skip_special_tokens=True)
    encoded = spec.encode(spec.data.train, spec.tokenizer)
    assert len(encoded) == len(rows)
    learned = encoded.ids[encoded.part(0)][encoded.learned[encoded.part(0)]]
    assert tokenizer.decode(learned) == rows[0]["target"]


def test_a_stage_trains_on_its_answers(prepare):
    run = prepare(*WRITING, "training.steps=2")
    run.execute()
    assert run.results["distil"].steps == 2


def test_samples_are_drawn_by_the_seed(written):
    first, again = (written(*SAMPLED, directory=name)[1] for name in ("first", "again"))
    assert first == again
    assert first != written(*SAMPLED, "seed=2", directory="other")[1]
    both = {}
    for row in first:
        both.setdefault(row["text"], []).append(row["target"])
    assert any(len(answers) > 1 for answers in both.values())
    assert all(len(set(answers)) == len(answers) for answers in both.values())


def test_what_was_interrupted_ends_with_the_same_bytes(written, monkeypatch):
    whole = written(*SAMPLED, directory="whole")[2].read_bytes()
    stock, saved = writing.save_part, []

    def dies(path, answers):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        stock(path, answers)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "save_part", dies)
        with pytest.raises(KeyboardInterrupt):
            written(*SAMPLED, directory="killed")
    assert has_trained(saved[0].parents[4]), "the directory is kept, to be resumed"
    times = [path.stat().st_mtime_ns for path in saved]
    assert written(*SAMPLED, directory="killed")[2].read_bytes() == whole
    assert [path.stat().st_mtime_ns for path in saved] == times, "they are not written again"


def test_other_settings_are_other_answers(written):
    written(*SAMPLED)
    _, rows, data = written(*WRITING)
    assert len(rows) == 95
    assert len(list((data.parent / "written").iterdir())) == 2


@pytest.fixture
def server(world, monkeypatch):
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    with serving(world / "lm-decoder", monkeypatch) as served:
        yield served


def source(server):
    return ("teacher.source.name=server", f"teacher.source.url={server.url}")


def test_a_server_writes_what_its_model_does(written, server):
    live = written(*WRITING, directory="live")[1]
    server.defaults = {"repetition_penalty": 3.0}
    assert written(*WRITING, *source(server), directory="served")[1] == live
    assert len(server.prompts) == 96
    server.faults = ["dies", 503, lambda choices: choices.pop()]
    with pytest.raises(DataError, match="about 0 texts instead of 1"):
        written(*WRITING, *source(server), "seed=2", directory="faulty")


def test_a_server_draws_each_sample_anew_from_the_whole_distribution(written, server):
    server.defaults = {"top_k": 1, "top_p": 0.01, "min_p": 0.99}
    wished = (*SAMPLED, *source(server))
    rows = written(*wished, directory="served")[1]
    by_prompt = {}
    for row in rows:
        by_prompt.setdefault(row["text"], set()).add(row["target"])
    assert sum(len(answers) > 1 for answers in by_prompt.values()) > 80
    server.is_strict = True  # it knows none of the fields that turn defaults off
    server.defaults = {}
    assert written(*wished, directory="strict")[1] == rows


def test_a_server_draws_from_as_many_words_as_it_is_told(written, server):
    live = written(*WRITING, directory="live")[1]
    few = ("writing.temperature=1", "writing.top_k=1", *source(server))
    assert written(*WRITING, *few)[1] == live


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("writing.samples=2",), "`samples` is 2, but at `temperature` 0 all are equal"),
        (("writing.pattern=(",), "is not a regular expression"),
        (("writing.max_new_tokens=29",), r"writing.prompt_tokens \(default\) and writing.max_new_"),
        (("writing.max_new_token=2",), "Did you mean 'writing.max_new_tokens'"),
    ],
)
def test_what_cannot_be_written_is_refused(prepare, settings, message):
    with pytest.raises(ConfigError, match=message):
        prepare(*settings)


def test_a_filter_that_keeps_nothing_says_why(written):
    with pytest.raises(
        DataError, match=r"none of the 96 answers.*95 without the pattern, 1 empty\. Raise"
    ):
        written(*WRITING, "writing.pattern=nowhere")


def test_answers_are_left_out_for_one_reason_each():
    texts = [("a", 1, True), ("b b", 2, True), ("b b ", 2, True), ("c c", 2, False), ("", 0, True)]
    answers = [WrittenAnswer(0, *text) for text in texts] + [WrittenAnswer(1, "b b", 2, True)]
    kept = FilteredAnswers.of(answers, WritingConfig(min_tokens=2))
    assert [answer.text for answer in kept.answers] == ["b b", "b b"]
    assert kept.left_out == {"too short": 1, "equal to another": 1, "cut": 1, "empty": 1}
    every = FilteredAnswers.of(answers, WritingConfig(distinct=False, ended=False))
    assert [answer.text for answer in every.answers] == ["a", "b b", "b b ", "c c", "b b"]
    some = FilteredAnswers.of(answers, WritingConfig(pattern="^[ac]", ended=False))
    assert [answer.text for answer in some.answers] == ["a", "c c"]


def test_a_pattern_that_takes_for_ever_is_named():
    answers = [WrittenAnswer(0, "a" * 60, 60, True)]
    with pytest.raises(ConfigError, match=r"writing\.pattern = '\(a\|aa\)\+b'.*within 1 s"):
        FilteredAnswers.of(answers, WritingConfig(pattern="(a|aa)+b"))


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture
def talker(world):
    tokenizer = AutoTokenizer.from_pretrained(world / "lm-decoder")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_the_last_answer_of_a_conversation_is_written_again(talker):
    messages = [
        {"role": "user", "content": "the movie"},
        {"role": "assistant", "content": "was good"},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "bad"},
    ]
    split = Split([messages, "so"], target=None, chat=True)
    prompts = prompts_alone(split, talker, 4)
    assert prompts.text == [messages[:3], "so"]
    ids = encode_prompts(prompts, talker, 100)
    rows = answered(prompts, [0, 1], ["fine", "great"])
    encoded = encode_chats(rows, talker, 100)
    for number, prompt in enumerate(ids):
        own = encoded.ids[encoded.part(number)].tolist()
        assert own[: len(prompt)] == prompt
    assert encode_prompts(prompts, talker, len(ids[0]) - 1)[0] is None
    first, second = as_columns(rows)
    assert first == {"messages": [*messages[:3], {"role": "assistant", "content": "fine"}]}
    assert second == {"prompt": "so", "response": "great"}


def test_a_pair_is_a_prompt():
    rows = Split(["a"], ["b"], target=["c"])
    assert as_columns(rows) == [{"text": "a b", "target": "c"}]


def test_answers_of_a_model_end_at_its_end_token(world):
    tokenizer = AutoTokenizer.from_pretrained(world / "lm-decoder")
    reader = writing.LiveWriter.__new__(writing.LiveWriter)
    reader._tokenizer = tokenizer
    good, bad, end = tokenizer.convert_tokens_to_ids(["good", "bad", "[SEP]"])
    assert reader._read([good, end, bad], [end]) == ("good", 2, True)
    assert reader._read([good, bad], [end]) == ("good bad", 2, False)
    assert reader._read([good, bad], []) == ("good bad", 2, True)
