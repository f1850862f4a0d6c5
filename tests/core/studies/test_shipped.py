"""Every cell of the studies that come with gkd is possible, or lacks what users have to give."""

import pytest

from gkd_core.plugins import registry
from gkd_core.studies.shipped import SHIPPED
from gkd_core.studies.study import Study
from gkd_core.studies.study_config import read_study

LACKING = {
    "kd-revisited": ("the student's hidden size",),  # 4 blocks of the size of 6 are wider than 12
    "methods": ("is not made for task.kind = 'classification'",),
    "recipes": (
        "has no trained masked-LM head",
        "is an encoder, which sees the very token",
        "refers to a single teacher, but `teachers`",
        "have no prompts with an answer each",
    ),
}
"""By study, why some cells are refused: what the teacher or the rows lack."""


def _write_bert(path, world):
    """Write a teacher of 12 blocks, whose heads are narrow enough for students of equal size."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(world / "teacher")
    labels = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    shape = {"hidden_size": 48, "intermediate_size": 192, "max_position_embeddings": 32}
    config = BertConfig(vocab_size=len(tokenizer), num_attention_heads=12, **shape, **labels)
    BertForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def _write_chat_model(path, world):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(world / "lm-decoder")
    tokenizer.chat_template = "{% for each in messages %}{{ each['content'] }} {% endfor %}"
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 13}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, pad_token_id=0, **shape)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="module")
def settings(world, tmp_path_factory):
    """Return what a user gives to a study, by its name."""
    folder = tmp_path_factory.mktemp("teachers")
    _write_bert(folder / "bert", world)
    _write_chat_model(folder / "chat", world)
    classified = {"task.train": str(world / "train.jsonl"), "task.max_length": 16}
    bert = {"model": str(folder / "bert")}
    two = {"teachers": [{"name": "a", **bert}, {"name": "b", **bert}]}
    others = {"teachers": classified | two, "language-models": {"teacher": str(folder / "chat")}}
    return lambda name: others.get(name, {"teacher": str(folder / "bert")} | classified)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_cell_is_possible_or_lacks_what_the_user_can_give(name, settings, tmp_path):
    config = read_study(SHIPPED[name])
    given = {"settings": config.settings | settings(name)}
    study = Study(tmp_path / "study", config.model_copy(update=given), registry())
    points = {point.group: point for point in study.points}
    refused = {
        str(dict(point.axes)): refusal
        for point in points.values()
        if (refusal := study.maker.prepare(point).refusal)
    }
    expected = LACKING.get(name, ())
    assert {
        axes: refusal
        for axes, refusal in refused.items()
        if not any(lacking in refusal for lacking in expected)
    } == {}
