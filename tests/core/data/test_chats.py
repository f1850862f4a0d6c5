"""Conversations: their columns, their tokens, and that only the assistant's are learned."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from gkd_core.api import RolloutEngine, Written, hookimpl
from gkd_core.config.schema import TaskConfig
from gkd_core.contract.batch import IGNORE
from gkd_core.contract.step import Step
from gkd_core.contract.task import Split
from gkd_core.data import chat, encode, encode_chats
from gkd_core.data.collate import Collator
from gkd_core.data.encode import BYTES, TEXTS
from gkd_core.data.loader import iterate
from gkd_core.data.table import Faults, Table
from gkd_core.errors import ConfigError, DataError
from gkd_core.plugins import registry
from gkd_core.training.assembly import build_stage

CAUSAL = registry().kind("causal-lm")
START, END, OTHER = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

PLAIN = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Without marks."""

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""That of SmolLM2-135M-Instruct, which marks nothing."""

FORGETS = PLAIN.replace(
    "m.content +", "(m.content.split('>')[-1] if not loop.last else m.content) +"
)
"""Leaves out what an answer begins with once another turn follows, as templates with reasoning."""

TOLD = "{% if tools %}{{ tools | tojson }}{% endif %}" + PLAIN

TURNS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "naïve?"},
    {"role": "assistant", "content": "ça va 漢"},
]


def make_tokenizer(template=PLAIN, merges=(), end=END, ruled=True):
    """A token for each byte, and one for each merge, with or without the rule that makes it."""
    special = [START, END, OTHER]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = [first + second for first, second in merges]
    words = {word: number for number, word in enumerate([*special, *letters, *joined])}
    made = Tokenizer(models.BPE(words, list(merges) if ruled else []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=end, pad_token=OTHER, chat_template=template
    )


def chats(*rows, **columns):
    return Split(list(rows), chat=True, **columns)


def located(encoded, row=0):
    """The part of what the assistant says that each of its tokens stands for, in order."""
    said = "fourça va 漢".encode()
    spans = encoded.byte_offsets[encoded.part(row)]
    assert (spans[~encoded.learned[encoded.part(row)]] == -1).all()
    return [said[start:end].decode() for start, end in spans.tolist() if start >= 0]


def learned(tokenizer, encoded, row=0):
    """The texts of the parts of a row that are learned."""
    part = encoded.part(row)
    parts, before = [], False
    for token, counts in zip(encoded.ids[part], encoded.learned[part], strict=True):
        if counts and not before:
            parts.append([])
        if counts:
            parts[-1].append(token)
        before = counts
    return [tokenizer.decode(one) for one in parts]


SPACED = PLAIN.replace("'\n' + m.content", "'\n ' + m.content | trim")
"""Writes a space before what is said."""


@pytest.mark.parametrize("template", [PLAIN, MARKED, SMOLLM2, SPACED])
def test_what_the_assistant_says_has_the_same_place_for_every_template(template):
    merges = [("f", "o"), ("Ġ", "v")]
    encoded = CAUSAL.encode(chats(TURNS, byte_offsets=True), make_tokenizer(template, merges), 512)
    # Each of the bytes of a character stands for it.
    assert located(encoded) == ["fo", "u", "r", "ç", "ç", "a", " v", "a", " ", *"漢" * 3]
    assert CAUSAL.encode(chats(TURNS), make_tokenizer(template), 512).byte_offsets is None


def test_answers_in_other_words_are_not_aligned():
    loud = PLAIN.replace("m.content", "m.content | upper")
    assert CAUSAL.encode(chats(TURNS), make_tokenizer(loud), 512).learned.any()
    with pytest.raises(DataError, match="chat template writes an answer"):
        CAUSAL.encode(chats(TURNS, byte_offsets=True), make_tokenizer(loud), 512)


@pytest.mark.parametrize("template", [PLAIN, MARKED, SMOLLM2])
def test_only_what_the_assistant_says_is_learned(template):
    tokenizer = make_tokenizer(template)
    encoded = CAUSAL.encode(chats(TURNS), tokenizer, 512)
    whole = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert tokenizer.decode(encoded.ids) == whole
    answers = [f"four{END}", f"ça va 漢{END}"]
    assert learned(tokenizer, encoded) == answers
    assert encoded.extra[TEXTS].tolist() == [0]
    assert encoded.extra[BYTES].tolist() == [len("fourça va 漢".encode())]
    batch = Collator(tokenizer, CAUSAL, 0.15, 1).collate(encoded, [0], 0)
    labels = batch.labels[0]
    assert tokenizer.decode(labels[labels != IGNORE]) == "".join(answers)
    at = (labels != IGNORE).nonzero().flatten()
    assert batch.inputs["input_ids"][0][at + 1].equal(labels[at])
    assert batch.loss_mask[0].equal(torch.from_numpy(encoded.learned))
    assert batch.targets.count == batch.tokens.count


def test_what_ends_with_an_answer_is_written_once_with_it_and_once_without(monkeypatch):
    template = chat.ChatTemplate(make_tokenizer())
    written = []
    render = chat.render_jinja_template
    monkeypatch.setattr(
        chat,
        "render_jinja_template",
        lambda *a, **k: written.append(len(a[0][0])) or render(*a, **k),
    )
    template.render(TURNS[:2], None)
    assert sorted(written) == [1, 2]


def test_answers_of_marked_and_unmarked_templates_are_the_same_tokens():
    """The marks say what the prompts alone say, token by token, also where tokens span words."""
    merges = [("a", "n"), ("Ċ", "Ċ"), (">", "Ċ")]
    chat = [{"role": "user", "content": "an\n\n"}, {"role": "assistant", "content": "an an\n"}]
    bare = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    found = [
        CAUSAL.encode(chats(chat), make_tokenizer(template, merges), 512)
        for template in (MARKED, bare)
    ]
    assert found[0].ids.tolist() == found[1].ids.tolist()
    assert found[0].learned.tolist() == found[1].learned.tolist()


def test_a_template_that_rewrites_earlier_turns_is_refused():
    chat = [*TURNS[:1], {"role": "assistant", "content": "hm>four"}, *TURNS[2:]]
    tokenizer = make_tokenizer(FORGETS)
    assert learned(tokenizer, CAUSAL.encode(chats(chat[:2]), tokenizer, 512)) == [f"hm>four{END}"]
    with pytest.raises(
        DataError, match=r"row 2 of its split: the chat template writes turn 2 diff"
    ):
        CAUSAL.encode(chats(chat[:2], chat), tokenizer, 512)


def test_a_template_whose_prompt_is_not_how_answers_begin_is_refused():
    thinks = PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    with pytest.raises(DataError, match="with and without the prompt of its answer"):
        CAUSAL.encode(chats(TURNS[:2]), make_tokenizer(thinks), 512)


def test_what_is_cut_and_left_out_is_counted():
    tokenizer = make_tokenizer()
    long = [{"role": "user", "content": "x" * 90}, TURNS[1]]
    encoded = CAUSAL.encode(chats(TURNS[:2], long, TURNS[:1], TURNS), tokenizer, 60)
    assert (len(encoded), encoded.num_truncated, encoded.num_left_out) == (2, 1, 2)
    assert encoded.extra[TEXTS].tolist() == [0, 3]
    assert learned(tokenizer, encoded, 1) == [f"four{END}"]
    assert encoded.extra[BYTES].tolist() == [4, 0, 0, 4]
    with pytest.raises(DataError, match="no conversation has a token of an answer within"):
        CAUSAL.encode(chats(long), tokenizer, 60)


def test_an_answer_that_begins_within_a_token_is_said(caplog):
    tokenizer = make_tokenizer(merges=[("Ċ", "Ċ")])
    chat = [TURNS[0], {"role": "assistant", "content": "\nfour"}]
    with caplog.at_level(logging.WARNING):
        encoded = CAUSAL.encode(chats(chat), tokenizer, 512)
    assert learned(tokenizer, encoded) == [f"four{END}"]
    assert "1 answers begin within a token of their prompt" in caplog.text


def test_prompts_alone_end_where_the_answer_begins():
    tokenizer = make_tokenizer()
    encoded = CAUSAL.encode(chats("2+2?", "3?"), tokenizer, 512)
    assert tokenizer.decode(encoded.ids).count(f"{START}assistant\n") == 2
    assert tokenizer.decode(encoded.ids).endswith(f"3?{END}\n{START}assistant\n")
    assert not encoded.learned.any()
    assert encoded.prompts.tolist() == encoded.lengths.tolist()
    tokenizer.chat_template = None
    assert tokenizer.decode(CAUSAL.encode(chats("2+2?"), tokenizer, 512).ids) == "2+2?"


def test_tools_reach_the_template():
    tokenizer = make_tokenizer(TOLD)
    split = chats(TURNS[:2], tools=[[{"name": "add"}]])
    encoded = CAUSAL.encode(split, tokenizer, 512)
    assert tokenizer.decode(encoded.ids).startswith('[{"name": "add"}]<|im_start|>system')
    assert learned(tokenizer, encoded) == [f"four{END}"]


def test_without_a_template_prompts_and_answers_are_joined():
    tokenizer = make_tokenizer(template=None)
    encoded = CAUSAL.encode(chats("2+2?", target=["four"]), tokenizer, 512)
    assert tokenizer.decode(encoded.ids) == f"2+2?four{END}"
    assert learned(tokenizer, encoded) == [f"four{END}"]
    with pytest.raises(ConfigError, match="has no chat template to write them with"):
        CAUSAL.encode(chats(TURNS), tokenizer, 512)


def table(**columns):
    return Table(columns, range(1, len(next(iter(columns.values()))) + 1), Faults("rows.jsonl"))


def read(config=None, **columns):
    return CAUSAL.read({"train": table(**columns)}, config or TaskConfig()).splits["train"]


SHAREGPT = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "four"}]


@pytest.mark.parametrize(
    ("columns", "text", "target"),
    [
        ({"messages": [TURNS]}, TURNS, None),
        ({"messages": [json.dumps(TURNS)]}, TURNS, None),
        ({"conversations": [SHAREGPT]}, TURNS[:2], None),
        ({"prompt": ["2+2?"], "response": ["four"]}, "2+2?", "four"),
        ({"prompt": [TURNS[:1]], "completion": [TURNS[1:2]]}, TURNS[:2], None),
        ({"instruction": ["add"], "input": ["2+2"], "output": ["four"]}, "add\n\n2+2", "four"),
        ({"instruction": ["add"], "input": [""], "output": ["four"]}, "add", "four"),
        ({"Question": ["2+2?"], "Answer": ["four"]}, "2+2?", "four"),
        ({"prompt": ["2+2?"]}, "2+2?", None),
        (
            {"system": ["Be"], "prompt": ["2+2?"], "response": ["four"]},
            [{"role": "system", "content": "Be"}, TURNS[0]],
            "four",
        ),
    ],
)
def test_usual_columns_are_found(columns, text, target):
    split = read(**columns)
    assert split.chat
    assert split.text == [text]
    assert split.target == (None if target is None else [target])


ALPACA = {"instruction": ["add"], "input": ["2+2"], "output": ["four"], "text": ["all of it"]}


def test_a_setting_says_whether_a_table_with_both_is_a_conversation_or_a_text():
    talk = read(TaskConfig(chat=True), **ALPACA)
    assert (talk.text, talk.target, talk.chat) == (["add\n\n2+2"], ["four"], True)
    text = read(TaskConfig(text="text"), **ALPACA)
    assert (text.text, text.target, text.chat) == (["all of it"], None, False)
    assert read(TaskConfig(context="text"), **ALPACA).target == ["four"]
    assert read(TaskConfig(chat=True), messages=[TURNS], text=["a"]).text == [TURNS]


def test_privileged_context_is_no_part_of_the_prompt():
    columns = {"instruction": ["add"], "context": ["2+2"], "output": ["four"]}
    assert read(**columns).text == ["add\n\n2+2"]
    assert read(TaskConfig(context="context"), **columns).text == ["add"]


def test_tools_are_lists_or_json_and_a_text_may_begin_like_messages():
    code = '[{"a": 1}]'
    split = read(prompt=[code, "b"], response=["[]", "d"], tools=['[{"name": "add"}]', ""])
    assert split.text == [code, "b"]
    assert split.target == ["[]", "d"]
    assert split.tools == [[{"name": "add"}], None]


def test_named_columns_are_a_conversation_if_so_set_or_if_they_are_messages():
    columns = {"ask": ["2+2?"], "say": ["four"], "turns": [TURNS]}
    named = TaskConfig(text="ask", target="say")
    assert not read(named, **columns).chat
    assert read(named.model_copy(update={"chat": True}), **columns).chat
    assert read(TaskConfig(text="turns"), **columns).text == [TURNS]
    plain = read(TaskConfig(chat=False), prompt=["2+2?"], response=["four"])
    assert (plain.chat, plain.target) == (False, ["four"])


@pytest.mark.parametrize(
    ("columns", "config", "message"),
    [
        ({"messages": [[{"role": "user"}]]}, {}, "rows.jsonl:1: message 1 is {'role': 'user'}"),
        ({"messages": [TURNS, []]}, {}, "rows.jsonl:2: the list of messages is empty"),
        ({"messages": [TURNS, 3]}, {}, "rows.jsonl:2: neither a text nor a list of messages"),
        (
            {"messages": [TURNS], "tools": ["[1"]},
            {},
            r"rows.jsonl:1: the tools are not JSON: .*\(column 'tools'\)",
        ),
        ({"prompt": ["a", ""], "response": ["b", "c"]}, {}, "rows.jsonl:2: the text is empty"),
        (
            {"messages": [TURNS], "text": ["a"]},
            {},
            r"messages \('messages'\) and a text \('text'\)",
        ),
        (
            ALPACA,
            {},
            r"prompts with answers \('instruction', 'output'\) and a text \('text'\). Set "
            "task.text=text to learn the text, or task.chat=true to read the prompts with answers",
        ),
        ({"prompt": ["a"], "sentence": ["b"]}, {}, r"has prompts \('prompt'\) and a text"),
        ({"messages": [TURNS]}, {"chat": False}, "Remove task.chat = false"),
        ({"prompt": ["a"]}, {"chat": False}, "Remove task.chat = false"),
        (
            {"premise": ["a"], "hypothesis": ["b"]},
            {},
            "two texts in a row, 'premise' and 'hypothesis', but causal-lm learns one. Set "
            "task.text=premise to learn it alone, or task.text=premise and task.target=hypothesis",
        ),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(columns, config, message):
    with pytest.raises(DataError, match=message):
        read(TaskConfig(**config), **columns)


def test_masked_language_models_say_that_both_texts_are_texts(caplog):
    with caplog.at_level(logging.WARNING):
        rows = (
            registry()
            .kind("masked-lm")
            .read({"train": table(premise=["a"], hypothesis=["b"])}, TaskConfig())
        )
    assert rows.splits["train"].text == ["a", "b"]
    assert "'premise' and 'hypothesis': each is read as a separate text" in caplog.text


SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 2,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """An instruct teacher of 264 logits, a base student of 260, and eight conversations."""
    folder = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    for name, words, made in (
        ("teacher", 264, make_tokenizer()),
        ("student", 260, make_tokenizer(template=None, end=OTHER)),
    ):
        LlamaForCausalLM(LlamaConfig(vocab_size=words, **SHAPE)).save_pretrained(folder / name)
        made.save_pretrained(folder / name)
    rows = [{"messages": TURNS[: 2 + 2 * (n % 2)]} for n in range(8)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def prepare(prepare_run, pair):
    """Prepare a run on the conversations, whose teacher is an instruct model."""

    def _prepare(*settings, student="student"):
        given = [
            f"task.{split}={pair / 'chats.jsonl'}" for split in ("train", "validation", "test")
        ]
        models = [f"teachers.0.model={pair / 'teacher'}", f"student.model={pair / student}"]
        quick = ["task.max_length=128", "training.steps=2", "training.batch_size=4"]
        return prepare_run(*given, *models, *quick, *settings, teachers=())

    return _prepare


def test_a_base_student_learns_the_answers_of_an_instruct_teacher(prepare, pair):
    """The kind is found; the student takes the template and ends as the teacher; losses are of
    the answers alone."""
    run = prepare("method=soft+hard", "training.evaluate_every=2")
    spec = run.last
    assert (spec.kind.name, spec.end_token) == ("causal-lm", END)
    said = "\n".join(build_stage(spec, run.registry, run.directory / "stage", None).describe())
    assert "the student has no chat template and takes that of teacher.model" in said
    assert f"ends its answers with '{END}', as teacher.model does in a conversation" in said
    assert "264 logits and the student 260 for the 259 tokens of both: 4 of the" in said
    assert "tokens are learned" in said
    run.execute()
    tokenizer = AutoTokenizer.from_pretrained(run.student)
    student = AutoModelForCausalLM.from_pretrained(run.student).eval()
    assert (tokenizer.eos_token, tokenizer.chat_template) == (END, PLAIN)
    assert student.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(END)
    logged = [
        json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()
    ]
    (found,) = (line["validation/loss"] for line in logged if "validation/loss" in line)
    losses = []
    for line in (pair / "chats.jsonl").read_text().splitlines():
        text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        inside, begin = torch.zeros(len(ids), dtype=torch.bool), 0
        for piece in text.split(f"{START}assistant\n")[1:]:
            begin = text.index(f"{START}assistant\n", begin) + len(f"{START}assistant\n")
            start = len(tokenizer(text[:begin], add_special_tokens=False)["input_ids"])
            answer = piece.partition(END)[0] + END
            size = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
            inside[start : start + size] = True
        with torch.no_grad():
            logits = student(ids[None]).logits[0]
        each = functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        losses.append(each[inside[1:]])
    assert found == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_a_student_that_reads_the_rows_differently_is_refused(prepare_run, tmp_path):
    """Only the teacher's tokenizer has a rule for a token that both have."""
    rare, text = ("q", "z"), tmp_path / "rows.txt"
    text.write_text("".join(f"qz {number}\n" for number in range(9)))
    torch.manual_seed(0)
    for name in ("teacher", "student"):
        made = make_tokenizer(merges=[rare], ruled=name == "teacher")
        LlamaForCausalLM(LlamaConfig(vocab_size=260, **SHAPE)).save_pretrained(tmp_path / name)
        made.save_pretrained(tmp_path / name)
    models = [f"teachers.0.model={tmp_path / 'teacher'}", f"student.model={tmp_path / 'student'}"]
    given = [f"task.{split}={text}" for split in ("train", "validation", "test")]
    with pytest.raises(ConfigError, match=r"other tokens from number 1 on \(teacher.model: \['qz'"):
        prepare_run(*given, *models, "method=soft", teachers=())


class Silent(RolloutEngine):
    """Writes nothing."""

    name = "silent"

    def write(self, prompts, writer):
        return Written([[] for _ in prompts.rows])


class Plugin:
    """Registers the silent engine."""

    @staticmethod
    @hookimpl
    def gkd_register_rollouts():
        return [Silent]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "has prompts without answers, so a row that no model writes has nothing"),
        (
            ["rollout.engine=silent", "rollout.student=0.5", "rollout.prompt_tokens=8"],
            "rollout.student and rollout.teacher add up to 1",
        ),
        (["rollout.engine=silent", "rollout.student=1"], "rows to validate of .* so no student"),
    ],
)
def test_prompts_alone_need_models_that_write(
    prepare_run, registry_with, pair, tmp_path, settings, message
):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{n}?"}) + "\n" for n in range(20)))
    models = [f"teachers.0.model={pair / 'teacher'}", f"student.model={pair / 'student'}"]
    given = [f"task.{split}={prompts}" for split in ("train", "validation", "test")]
    known = registry_with(Plugin())
    chosen = ["method=soft", "task.max_length=128", *settings]
    with pytest.raises(ConfigError, match=message):
        prepare_run(*given, *models, *chosen, teachers=(), registry=known)


def test_rows_to_judge_by_have_the_answers_that_prompts_to_train_on_lack(
    prepare_run, registry_with, pair, tmp_path
):
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    rows = [{"prompt": f"{number}?"} for number in range(20)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers.write_text("".join(json.dumps(row | {"response": "Yes."}) + "\n" for row in rows))
    models = [f"teachers.0.model={pair / 'teacher'}", f"student.model={pair / 'student'}"]
    given = [f"task.train={prompts}", f"task.validation={answers}", f"task.test={answers}"]
    chosen = ["method=soft", "task.max_length=128", "rollout.engine=silent", "rollout.student=1"]
    known = registry_with(Plugin())
    data = prepare_run(*given, *models, *chosen, teachers=(), registry=known).last.data
    assert data.train.target is None
    assert data.validation.target == data.test.target == ["Yes."] * 20


ROOM = 100
"""Tokens of the longest prompt in rows of 128, of which a model writes 28."""


@pytest.fixture
def question(prepare, tmp_path):
    """Build a stage whose student continues questions of given lengths."""

    def _question(lengths, answer=None):
        own = {} if answer is None else {"response": answer}
        told = [{"prompt": "x" * length} | own for length in lengths]
        judged = [{"prompt": "x", "response": "Yes."}]
        for name, rows in (("asked", told), ("judged", judged)):
            lines = (json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        table = ["rollout.engine=generate", "rollout.student=1", "rollout.prompt_tokens=8"]
        given = [f"task.{split}={tmp_path / 'judged.jsonl'}" for split in ("validation", "test")]
        given += [f"task.train={tmp_path / 'asked.jsonl'}", f"rollout.max_new_tokens={128 - ROOM}"]
        run = prepare("method=soft", *table, *given)
        return build_stage(run.last, run.registry, run.directory / "stage", None)

    return _question


@pytest.mark.parametrize("answer", [None, "Yes."])
def test_models_continue_only_prompts_with_room_for_what_they_write(question, answer):
    """A prompt that is cut has lost the line after which the assistant speaks."""
    around = len(make_tokenizer()(f"{START}system\nBe kind{END}\n{START}user\n")["input_ids"])
    around += len(make_tokenizer()(f"{END}\n{START}assistant\n")["input_ids"])
    fits = ROOM - around
    stage = question([3, fits, fits + 1, 90, 200], answer)
    assert stage.train.prompts.tolist() == [around + 3, ROOM]
    left = f"with a prompt of more than {ROOM} tokens (task.max_length - rollout.max_new_tokens)"
    out = 3 if answer is None else 2  # of the longest, no answer is left
    assert any(f"left out: {out} {left}" in line for line in stage.describe())
    batches = next(iterate(stage.train, stage.collator, stage.sampler, 0, 1))[1]
    step = Step(0, 2, 0, "test", torch.default_generator)
    for batch in stage.rollout(batches, step):
        assert batch.mask.shape[1] <= 128
        for ids, prompt in zip(batch.inputs["input_ids"], batch.prompt_mask, strict=True):
            assert stage.spec.tokenizer.decode(ids[prompt]).endswith(f"{START}assistant\n")


def test_prompts_that_are_all_too_long_end_a_run_before_its_first_step(question):
    with pytest.raises(DataError, match="has more than 100 tokens, so none leaves room for"):
        question([90, 200])


@pytest.mark.parametrize("form", ["messages", "answers", "prompts"])
def test_chats_are_the_same_part_by_part(form, monkeypatch):
    texts = {
        "messages": [TURNS[: 2 * (n % 2 + 1)] for n in range(9)],
        "answers": [f"{n}+{n}?" for n in range(9)],
        "prompts": [TURNS[:1]] * 9,
    }[form]
    target = [str(2 * n) for n in range(9)] if form == "answers" else None
    split, made = chats(*texts, target=target), []
    for encoder in (make_tokenizer(), make_tokenizer(None)):
        if encoder.chat_template is None and target is None:
            continue
        for part in (1000, 2):
            monkeypatch.setattr(encode, "CHUNK", part)
            monkeypatch.setattr(encode_chats, "CHUNK", part)
            made.append(CAUSAL.encode(split, encoder, 60))
    for whole, parts in zip(made[::2], made[1::2], strict=True):
        assert whole.tokens_hash == parts.tokens_hash
        assert np.array_equal(whole.learned, parts.learned)
        assert whole.cut == parts.cut
        for name, values in whole.extra.items():
            assert np.array_equal(values, parts.extra[name])
    assert made[0].learned.any() == (form != "prompts")
