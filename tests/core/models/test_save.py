import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from gkd_core.errors import ConfigError
from gkd_core.models.save import (
    count_embedding_parameters,
    count_parameters,
    directory_size,
    save_model,
)
from gkd_core.plugins import registry

AUTO = {
    "classification": AutoModelForSequenceClassification,
    "masked-lm": AutoModelForMaskedLM,
    "causal-lm": AutoModelForCausalLM,
}
FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen3", "glm"]
LM = {"bert": "masked-lm", "roberta": "masked-lm", "distilbert": "masked-lm"}


@pytest.fixture
def tokenizer():
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "bad": 5}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]"
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["classification", "lm"])
def test_reloaded_model_gives_bit_equal_logits(
    build_model, build_batch, tokenizer, tmp_path, family, head
):
    head = LM.get(family, "causal-lm") if head == "lm" else head
    model = build_model(family, head)
    save_model(model, tokenizer, tmp_path / "student")
    reloaded = AUTO[head].from_pretrained(tmp_path / "student").eval()
    batch = build_batch()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, reloaded(**batch).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "student")("good")["input_ids"] == [4]


def test_class_names_are_written(build_model, tokenizer, tmp_path):
    model = build_model("bert", "classification")
    registry().kind("classification").configure(model.config, ("no", "yes"))
    save_model(model, tokenizer, tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert config["label2id"] == {"no": 0, "yes": 1}


def test_saving_again_replaces_the_model_and_leaves_nothing_beside(
    build_model, tokenizer, tmp_path
):
    directory = tmp_path / "run" / "student"
    model = build_model("bert", "classification")
    save_model(model, tokenizer, directory)
    nn.init.ones_(model.classifier.bias)
    save_model(model, tokenizer, directory)
    reloaded = AutoModelForSequenceClassification.from_pretrained(directory)
    assert torch.equal(reloaded.classifier.bias, torch.ones(2))
    assert list(directory.parent.iterdir()) == [directory]


def test_failure_while_writing_keeps_the_model_saved_before(
    build_model, tokenizer, tmp_path, monkeypatch
):
    directory = tmp_path / "student"
    model = build_model("bert", "classification")
    save_model(model, tokenizer, directory)
    before = (directory / "model.safetensors").read_bytes()
    nn.init.ones_(model.classifier.bias)

    def fail(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "save_pretrained", fail)
        with pytest.raises(OSError, match="no space"):
            save_model(model, tokenizer, directory)
    assert (directory / "model.safetensors").read_bytes() == before
    save_model(model, tokenizer, directory)
    assert (directory / "model.safetensors").read_bytes() != before
    assert list(tmp_path.iterdir()) == [directory]


def test_directory_that_is_no_model_is_left_alone(build_model, tokenizer, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"thesis.*not a model"):
        save_model(build_model("bert", "classification"), tokenizer, tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_nothing_is_printed(build_model, tokenizer, tmp_path, capfd):
    save_model(build_model("gpt2", "causal-lm"), tokenizer, tmp_path / "student")
    assert capfd.readouterr() == ("", "")


def test_tied_parameters_are_counted_once(build_model):
    tied = build_model("llama", "causal-lm", tie_word_embeddings=True)
    untied = build_model("llama", "causal-lm", tie_word_embeddings=False)
    assert count_parameters(untied) - count_parameters(tied) == 100 * 32
    assert count_embedding_parameters(tied) == count_embedding_parameters(untied) == 100 * 32


def test_directory_size_counts_files_below(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "sub" / "b").write_bytes(b"345")
    assert directory_size(tmp_path) == 5
