import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForSequenceClassification,
    Gemma3nTextConfig,
    MambaConfig,
    PreTrainedTokenizerFast,
    T5Config,
    ViTConfig,
)

from gkd_core.errors import ConfigError
from gkd_core.models import source
from gkd_core.models.classes import check_classes, teacher_classes
from gkd_core.models.load import check_kind, load_model, load_teacher
from gkd_core.models.source import load_config
from gkd_core.models.stored import check_stored, check_stored_weights
from gkd_core.models.tokenizer import (
    check_vocabulary,
    load_tokenizer,
    other_special_tokens,
    set_padding,
    tokenizer_mismatch,
)
from gkd_core.plugins import registry

KINDS = registry().kinds

CLASSES = ("no", "yes")
ENCODERS = ["bert", "roberta", "distilbert"]
DECODERS = ["gpt2", "llama", "qwen3", "glm"]
SPECIAL = {"[UNK]": 0, "[PAD]": 1, "[EOS]": 2}


def build_tokenizer(words=("good", "bad"), normalizer=None, pad="[PAD]", eos="[EOS]", **more):
    vocabulary = SPECIAL | {word: len(SPECIAL) + index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token=pad,
        eos_token=eos,
        **more,
    )


@pytest.fixture
def save(build_model, tmp_path):
    """Save a random model: `save(family, head, classes)` returns its directory."""

    def _save(family="bert", head="classification", classes=CLASSES, **changes):
        model = build_model(family, head, num_labels=max(len(classes), 1), **changes)
        if classes:
            KINDS["classification"].configure(model.config, classes)
        model.save_pretrained(tmp_path / family)
        return str(tmp_path / family)

    return _save


def teacher(model, kind="classification", classes=CLASSES):
    return load_teacher(model, KINDS[kind], classes, False, "teacher.model")


def checkpoint(model, kind="classification", classes=CLASSES, seed=0):
    return load_model(model, KINDS[kind], classes, seed, False, "student.model")


@pytest.mark.parametrize("family", ENCODERS + DECODERS)
@pytest.mark.parametrize("task", ["classification", "lm"])
def test_teacher_is_the_saved_model_frozen_and_in_fp32(
    build_model, build_batch, save, family, task
):
    lm = "masked-lm" if family in ENCODERS else "causal-lm"
    kind, classes = (task, CLASSES) if task == "classification" else (lm, ())
    loaded = teacher(save(family, kind, classes, dtype="bfloat16"), kind, classes)
    assert not loaded.training
    assert loaded.config._attn_implementation == "sdpa"
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    expected = build_model(family, kind, dtype="bfloat16").to(torch.float32)
    torch.testing.assert_close(loaded(**build_batch()).logits, expected(**build_batch()).logits)


def test_nothing_is_printed(save, capfd):
    directory = save("bert", "masked-lm", ())
    capfd.readouterr()
    checkpoint(directory)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brt", r"does not exist. Did you mean 'bert'\?"),
        ("no/such/bert", r"does not exist. The path exists up to"),
        ("bert/config.json", r"is a file; give the directory"),
        ("", r"has no config.json. Did you mean '.*bert'\?"),
    ],
)
def test_wrong_path_is_explained(save, tmp_path, name, message):
    save()
    with pytest.raises(ConfigError, match=f"teacher.model = .*{message}"):
        teacher(str(tmp_path / name))


def test_hub_id_that_cannot_be_fetched_suggests_a_directory(save, tmp_path, monkeypatch):
    save()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"neither a directory here nor .* Did you mean 'bert'"):
        teacher("brt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type":', "not a valid JSON"),
        ('{"model_type": "nosuch"}', "does not recognize this architecture"),
        ("{}", "Unrecognized model"),
        ('{"model_type": "bert", "hidden_size": "wide"}', "hidden_size"),
        (json.dumps(T5Config().to_dict()), "is an encoder-decoder"),
        (json.dumps(ViTConfig().to_dict()), "is not a text model"),
        (json.dumps(MambaConfig().to_dict()), r"\(mamba\) is not a transformer of equal blocks"),
        (json.dumps(Gemma3nTextConfig().to_dict()), r"is not a transformer of equal blocks"),
        (json.dumps(AlbertConfig().to_dict()), r"\(albert\) runs the same block several times"),
    ],
)
def test_wrong_config_is_explained(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=f"teacher.model = .*{message}"):
        load_config(str(tmp_path), False, "teacher.model")


def test_code_beside_a_checkpoint_is_not_run(tmp_path):
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match=r"set teacher.trust_remote_code = true if you trust it"):
        teacher(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("table", "file", "name"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "", "gptq"),
        ({"quantization_config": {"load_in_4bit": True}}, "", "config.json"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "", "config.json"),
        ({}, "quantize_config.json", "quantize_config.json"),
    ],
)
def test_quantized_weights_are_refused(save, table, file, name):
    directory = Path(save())
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | table))
    if file:
        (directory / file).write_text("{}")
    with pytest.raises(ConfigError, match=rf"is quantized \({name}\)") as raised:
        load_config(str(directory), False, "teacher.model")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ((), "holds an adapter of 'base'"),
        (("config.json",), "holds an adapter of 'base'"),
        (("config.json", "model.safetensors"), "holds a model and an adapter"),
    ],
)
def test_adapters_are_refused(save, tmp_path, kept, message):
    saved, directory = Path(save()), tmp_path / "adapter"
    directory.mkdir()
    for name in kept:
        shutil.copy(saved / name, directory)
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    save_file({"x": torch.zeros(1)}, directory / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=message):
        load_config(str(directory), False, "teacher.model")


def test_an_adapter_of_the_hub_is_told_from_a_name_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--some--lora"
    (kept / "snapshots/1a").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("1a")
    (kept / "snapshots/1a/adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    with pytest.raises(ConfigError, match=r"'some/lora' holds an adapter of 'base'.* Merge it"):
        load_config("some/lora", False, "teacher.model")
    with pytest.raises(ConfigError, match="'some/other' is neither a directory here nor a model"):
        load_config("some/other", False, "teacher.model")


@pytest.mark.parametrize(
    ("proxies", "resolves", "only_here"),
    [({}, False, True), ({}, True, False), ({"https": "http://proxy:1"}, False, False)],
)
def test_a_hub_without_an_address_is_not_asked_again_and_again(
    monkeypatch, proxies, resolves, only_here
):
    only_local = []

    def fetch(name, *arguments, local_files_only, **more):
        only_local.append(local_files_only)
        raise OSError("no such model")

    def address(*arguments):
        if not resolves:
            raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(source.AutoConfig, "from_pretrained", fetch)
    monkeypatch.setattr(source, "hf_hub_download", fetch)
    monkeypatch.setattr(source, "getproxies", lambda: proxies)
    monkeypatch.setattr(socket, "getaddrinfo", address)
    with pytest.raises(ConfigError, match="neither a directory here nor a model"):
        load_config("some/model", False, "teacher.model")
    assert only_local == [only_here, only_here], "the configuration, and that of an adapter"


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ("module.{}", r"DistributedDataParallel or DeepSpeed: .* begin with 'module\.'"),
        ("_orig_mod.{}", r"torch.compile: .* begin with '_orig_mod\.'"),
        ("net.{}", r"a wrapper: .* begin with 'net\.'"),
        ("{}.lora_A.default.weight", "the weights of an adapter"),
    ],
)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_weights_of_a_wrapped_model_are_refused(save, family, rename, message):
    directory = Path(save(family))
    config = load_config(str(directory), False, "teacher.model")
    kind = KINDS["classification"]
    check_stored(str(directory), config, kind, "teacher.model")
    file = directory / "model.safetensors"
    save_file({rename.format(name): weight for name, weight in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match=message):
        check_stored(str(directory), config, kind, "teacher.model")


def _to_integers(weights):
    return {name: (100 * weight).to(torch.int8) for name, weight in weights.items()}


def _with_another_block(weights):
    last = {name: weight for name, weight in weights.items() if ".2." in name}
    return weights | {name.replace(".2.", ".3."): w.clone() for name, w in last.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_to_integers, r"is stored in integers \(I8\).*Give the checkpoint"),
        (_with_another_block, r"layers?\.3\..*is part of no block that its config.json counts"),
    ],
)
@pytest.mark.parametrize("family", ["bert", "gpt_neox", "qwen3_moe"])
def test_weights_that_would_be_read_otherwise_than_meant_are_refused(save, family, change, message):
    directory = Path(save(family))
    config = load_config(str(directory), False, "teacher.model")
    kind = KINDS["classification"]
    check_stored_weights(str(directory), config, kind, "teacher.model")
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(ConfigError, match=message):
        check_stored_weights(str(directory), config, kind, "teacher.model")


def test_pickled_weights_are_refused_with_the_way_to_convert_them(save, tmp_path):
    directory = save()
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no weights"):
        teacher(directory)
    torch.save({}, tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickle only \(pytorch_model.bin\).*save_pretrained"):
        teacher(directory)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "../other/model.safetensors", "a\\b.bin"])
def test_index_that_names_other_files_is_refused(save, tmp_path, file):
    directory = save()
    index = tmp_path / "bert" / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "model.safetensors", "b": file}})
    )
    with pytest.raises(
        ConfigError, match=r"index\.json names .*, which is not a safetensors file of"
    ):
        teacher(directory)


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "somebody/code"},
        {"_attn_implementation": "somebody/code"},
        {"_experts_implementation": "somebody/code"},
        {"attn_implementation": {"": "paged|somebody/code@main"}},
        {"text_config": {"_attn_implementation_internal": "somebody/code"}},
    ],
    ids=str,
)
def test_layers_that_would_be_fetched_as_code_are_refused(save, tmp_path, settings):
    directory = save()
    path = tmp_path / "bert" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ConfigError, match=r"requests the kernel '(paged\|)?somebody/code"):
        teacher(directory)


def test_damaged_weights_are_refused(save, tmp_path):
    directory = save()
    weights = tmp_path / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"teacher.model = .* cannot be loaded"):
        teacher(directory)


def test_weights_of_another_shape_are_refused(save, tmp_path):
    directory = save()
    config = tmp_path / "bert" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 16'))
    for load in (teacher, checkpoint):
        with pytest.raises(ConfigError, match="weights do not fill the model"):
            load(directory)


def test_teacher_without_a_trained_head_is_refused(save):
    directory = save("bert", "masked-lm", ())
    with pytest.raises(ConfigError, match=r"no trained regression head \(bert.pooler"):
        teacher(directory, "regression", ())
    with pytest.raises(
        ConfigError, match=r"has 1 unnamed outputs, but .* \[no, yes\]; .*train one"
    ):
        teacher(directory)
    with pytest.raises(ConfigError, match=r"no trained causal-LM head \(lm_head.weight\)"):
        teacher(save("llama", "classification"), "causal-lm", ())


@pytest.mark.parametrize(
    ("family", "kind", "message"),
    [
        ("distilbert", "causal-lm", "distilbert models have no causal-LM head"),
        ("bert", "causal-lm", "bert is an encoder, which sees the very token"),
        ("gpt2", "masked-lm", "gpt2 models have no masked-LM head.*can do .*causal-lm"),
    ],
)
def test_kind_the_architecture_cannot_do_is_refused(build_model, family, kind, message):
    with pytest.raises(ConfigError, match=message):
        check_kind(build_model(family).config, KINDS[kind], "teacher.model")


def test_encoder_built_as_decoder_may_do_causal_lm(build_model):
    check_kind(build_model("bert", is_decoder=True).config, KINDS["causal-lm"], "teacher.model")


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1"), ("0", "1")])
def test_names_that_only_count_match_any_classes(build_model, names):
    config = build_model("bert", "classification").config
    KINDS["classification"].configure(config, names)
    assert teacher_classes(config) is None
    check_classes(config, KINDS["classification"], CLASSES, "teacher.model")
    KINDS["classification"].configure(config, CLASSES)
    assert teacher_classes(config) == CLASSES
    check_classes(config, KINDS["classification"], names, "teacher.model")


@pytest.mark.parametrize(
    ("kind", "classes", "message"),
    [
        (
            "classification",
            ("no", "maybe", "yes"),
            r"\[no, yes\], but the task has the classes \[no, maybe",
        ),
        (
            "classification",
            ("bad", "good"),
            r"\[no, yes\], but the task has the classes \[bad, good\]",
        ),
        ("classification", ("yes", "no"), r"order \[no, yes\], not \[yes, no\]"),
        ("regression", (), r"has 2 outputs, but regression needs 1"),
    ],
)
def test_teacher_of_another_task_is_refused(save, kind, classes, message):
    with pytest.raises(ConfigError, match=message):
        teacher(save(), kind, classes)


@pytest.mark.parametrize("ids", [{"no": 1, "yes": 0}, {"no": "1", "yes": "0"}])
def test_names_of_outputs_that_contradict_each_other_are_refused(build_model, ids):
    config = build_model("bert", "classification").config
    KINDS["classification"].configure(config, CLASSES)
    config.label2id = {"LABEL_0": 0, "LABEL_1": 1}  # never set
    check_classes(config, KINDS["classification"], CLASSES, "teacher.model")
    config.label2id = ids
    with pytest.raises(ConfigError, match=r"output 0 is 'no' in id2label, and 'no' is output 1 in"):
        check_classes(config, KINDS["classification"], CLASSES, "teacher.model")


def test_checkpoint_without_a_head_gets_a_seeded_one(save):
    directory = save("distilbert", "masked-lm", ())
    state = torch.get_rng_state()
    first, second, other = (checkpoint(directory, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.initialized == (
        "classifier.bias",
        "classifier.weight",
        "pre_classifier.bias",
        "pre_classifier.weight",
    )
    weights = [loaded.model.classifier.weight for loaded in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.model.training
    assert first.model.config.id2label == {0: "no", 1: "yes"}


def test_head_for_other_classes_is_replaced(save):
    loaded = checkpoint(save(), classes=("a", "b", "c"))
    assert loaded.initialized == ("classifier.bias", "classifier.weight")
    assert loaded.model.classifier.out_features == 3


def test_head_with_the_classes_in_another_order_is_not_mistaken(save):
    with pytest.raises(ConfigError, match=r"order \[no, yes\], but the run in the order \[yes, no"):
        checkpoint(save(), classes=("yes", "no"))


def test_regression_checkpoint_has_one_output(save):
    model = checkpoint(save("bert", "masked-lm", ()), "regression", ()).model
    assert model.classifier.out_features == 1
    assert model.config.problem_type == "regression"


def test_tokenizer_without_padding_pads_with_end_of_sequence(tmp_path, save):
    directory = save("gpt2")
    build_tokenizer(pad=None).save_pretrained(directory)
    assert load_tokenizer(directory, False, "teacher.model").pad_token == "[EOS]"
    build_tokenizer(pad=None, eos=None).save_pretrained(directory)
    with pytest.raises(ConfigError, match="neither a padding nor an end-of-sequence token"):
        load_tokenizer(directory, False, "teacher.model")


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_model_without_tokenizer_is_refused(save, family):
    with pytest.raises(ConfigError, match=r"teacher.model = .*tokenizer"):
        load_tokenizer(save(family), False, "teacher.model")


def test_damaged_tokenizer_is_refused(save, tmp_path):
    directory = save()
    build_tokenizer().save_pretrained(directory)
    (tmp_path / "bert" / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ConfigError, match=r"tokenizer of teacher.model = .* cannot be loaded"):
        load_tokenizer(directory, False, "teacher.model")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({}, None),
        ({"words": ("good", "bad", "ugly")}, "one has 5 tokens, the other 6"),
        ({"words": ("bad", "good")}, "2 of 5 tokens differ; 'good' is id 3 in one and id 4"),
        ({"words": ("good", "ugly")}, "1 of 5 tokens differ; 'bad' is id 4 in one and missing"),
        ({"pad": "[EOS]"}, None),
        ({"mask_token": "[EOS]"}, "the mask token is None in one and '[EOS]' in the other"),
    ],
)
def test_tokenizers_that_differ_are_told_apart(other, reason):
    found = tokenizer_mismatch(build_tokenizer(), build_tokenizer(**other))
    assert found == reason if reason is None else found.startswith(reason)


def test_special_tokens_of_the_same_ids_are_told_apart():
    one, other = build_tokenizer(), build_tokenizer(pad="[EOS]", eos="[UNK]")
    told = ["pad_token '[PAD]', not '[EOS]'", "eos_token '[EOS]', not '[UNK]'"]
    assert other_special_tokens(one, other) == told
    assert other_special_tokens(one, one) == []


def test_tokenizers_that_split_differently_are_told_apart():
    words = ("open", "The")
    plain, lower = build_tokenizer(words), build_tokenizer(words, Lowercase())
    assert "split" in tokenizer_mismatch(plain, lower)


def test_tokens_beyond_the_embedding_are_refused(build_model):
    config = build_model("bert").config
    check_vocabulary(build_tokenizer([f"w{n}" for n in range(97)]), config, "teacher.model")
    with pytest.raises(ConfigError, match=r"largest token id is 100 \('w97'\).* has 100 rows"):
        check_vocabulary(build_tokenizer([f"w{n}" for n in range(98)]), config, "teacher.model")


def test_a_vocabulary_that_skips_ids_may_end_beyond_the_embedding(build_model):
    config = build_model("bert").config
    words = [f"w{n}" for n in range(95)]
    check_vocabulary(build_tokenizer([*words, "w0", "last"]), config, "teacher.model")
    skipping = build_tokenizer([*words, "w0", "w1", "last"])
    check_vocabulary(skipping, config, "teacher.model")
    skipping.pad_token = "last"
    with pytest.raises(ConfigError, match=r"largest token id is 100 \('last'\)"):
        check_vocabulary(skipping, config, "teacher.model")


def test_padding_lets_a_decoder_classify_rows_of_unequal_length(build_model):
    model = build_model("llama", "classification", pad_token_id=None)
    tokenizer = build_tokenizer(pad="[EOS]")
    set_padding(model, tokenizer)
    alone = model(**tokenizer(["good bad"], return_tensors="pt")).logits
    batch = tokenizer(["good bad", "bad bad good bad"], padding=True, return_tensors="pt")
    torch.testing.assert_close(model(**batch).logits[:1], alone)


@pytest.mark.parametrize("known", [2, 3])
def test_a_token_of_the_text_learns_though_the_model_pads_with_it(build_model, known):
    model = build_model("llama", "causal-lm", pad_token_id=known)
    set_padding(model, build_tokenizer())
    assert model.config.pad_token_id == 1
    model(input_ids=torch.tensor([[3, 2, 4]])).logits.sum().backward()
    assert (model.get_input_embeddings().weight.grad[2:4].abs().sum(1) > 0).all()


def test_positions_that_are_counted_from_the_padding_token_stay(build_model, tmp_path):
    model = build_model("roberta", "classification", pad_token_id=0)
    ids = torch.tensor([[3, 2, 4]])
    before = model(input_ids=ids).logits
    set_padding(model, build_tokenizer())
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("family", "said", "side"),
    [
        ("bert", "left", "right"),
        ("llama", "left", "left"),
        ("llama", "right", "right"),
        ("xlnet", "right", "left"),
    ],
)
def test_rows_are_padded_where_the_head_can_bear_it(tmp_path, family, said, side):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    build_tokenizer(padding_side=said).save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), False, "teacher.model")
    assert loaded.padding_side == side
    loaded.save_pretrained(tmp_path / "again")
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "again")
    assert again.padding_side == side


def test_end_of_sequence_keeps_learning_when_it_pads(build_model):
    model = build_model("llama", "causal-lm", pad_token_id=2)
    set_padding(model, build_tokenizer(pad="[EOS]"))
    model(input_ids=torch.tensor([[3, 2, 4]])).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[2].abs().sum() > 0


def test_directory_may_lie_in_the_home(save, tmp_path, monkeypatch):
    save()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config("~/bert", False, "teacher.model").model_type == "bert"
    shutil.rmtree(tmp_path / "bert")
    with pytest.raises(ConfigError, match="~/bert"):
        load_config("~/bert", False, "teacher.model")


def test_a_chat_template_is_no_place_for_a_file(world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    templates = [{"name": "../../run", "template": "x"}, {"name": "default", "template": "x"}]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": templates}))
    with pytest.raises(ConfigError, match=r"a chat template with the name '\.\./\.\./run'"):
        load_tokenizer(str(tmp_path / "model"), False, "teacher.model")
