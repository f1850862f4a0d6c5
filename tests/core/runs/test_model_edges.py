"""Runs of models whose directories leave things open: padding, code, special tokens, generation."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from gkd_core.analysis.compare import compare_models
from gkd_core.analysis.exam import ComparedModel
from gkd_core.analysis.run_summary import summarize_run
from gkd_core.api import RolloutEngine, Written, hookimpl
from gkd_core.errors import ConfigError, DataError
from gkd_core.models.save import save_model
from gkd_core.training.assembly import build_stage
from gkd_core.training.rollouts import build_rollouts

GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": [3, 4]}
TEMPLATE = "{% for message in messages %}{{ message.content }} [SEP]{% endfor %}"


def edit(file, **changes):
    """Change entries of a JSON file; None removes one."""
    tree = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in tree.items() if value is not None}))


@pytest.fixture
def copy_of(world, tmp_path):
    """`copy_of("decoder", pad_token=None)`: a copy of a model, with changes to its tokenizer."""

    def _copy(name, new="copy", **changes):
        folder = tmp_path / new
        shutil.copytree(world / name, folder)
        edit(folder / "tokenizer_config.json", **changes)
        return folder

    return _copy


def loss_alone(folder, rows):
    """The loss as transformers computes it, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits for row in rows]
    labels = torch.tensor([model.config.label2id[row["label"]] for row in rows])
    return float(cross_entropy(torch.cat(logits), labels))


@pytest.mark.parametrize(
    ("side", "known"),
    [
        ("left", None),
        ("right", 3),
        pytest.param("right", None, marks=pytest.mark.exhaustive),
        pytest.param("left", 3, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.usefixtures("brief")
def test_rows_of_a_decoder_are_compared_as_each_text_alone(
    copy_of, prepare_run, world, side, known
):
    # The end token also stands at the end of every text, and pads.
    ends = {"eos_token": "[SEP]", "sep_token": None, "pad_token": None}
    teacher = copy_of("decoder", padding_side=side, **ends)
    edit(teacher / "config.json", pad_token_id=known)
    run = prepare_run("method=soft", "training.steps=2", teachers=(teacher,))
    run.execute()
    (run.directory / "config.toml").touch()
    told = summarize_run(run)
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    found = {row.name.partition(",")[0]: row.metrics["loss"] for row in told.comparison.rows}
    for name, folder in (("copy", teacher), ("student", run.student)):
        assert found[name] == pytest.approx(loss_alone(folder, rows), rel=1e-5)


@pytest.mark.exhaustive
def test_xlnet_reads_the_last_column_and_shows_no_hidden_states(copy_of, prepare_run, world):
    teacher = copy_of("teacher", padding_side="right")
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    shape = {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64, "vocab_size": 29}
    config = AutoConfig.for_model("xlnet", **shape, **names, pad_token_id=0)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(teacher)
    run = prepare_run("method=soft", "training.steps=2", teachers=(teacher,))
    run.execute()
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    models = [ComparedModel(str(m), str(m), run.last.tokenizer) for m in (teacher, run.student)]
    for row in compare_models(run.last, models, None).rows:
        assert row.metrics["loss"] == pytest.approx(loss_alone(row.model, rows), rel=1e-5)
    with pytest.raises(ConfigError, match="positions before rows"):
        prepare_run("method=pkd", teachers=(teacher,))


def test_a_student_pads_like_its_tokenizer(copy_of, prepare_run):
    teacher = copy_of("decoder")
    edit(teacher / "config.json", pad_token_id=3)
    run = prepare_run("method=hard", teachers=(teacher,))
    stage = build_stage(run.last, run.registry, run.directory / "stage", None)
    assert stage.student.model.config.pad_token_id == stage.collator.pad_id == 0


CODE = """
from transformers import BertConfig, BertForSequenceClassification
class SoupConfig(BertConfig):
    model_type = "soup"
class SoupForSequenceClassification(BertForSequenceClassification):
    config_class = SoupConfig
"""
STAGES = """
[[stages]]
name = "first"
method = "soft"
[[stages]]
name = "second"
method = "soft"
teacher.model = "stage:first"
"""


@pytest.mark.exhaustive
def test_code_that_is_trusted_runs_in_every_stage_and_command(
    copy_of, invoke, world, tmp_path, monkeypatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    teacher = copy_of("teacher", "own")
    (teacher / "soup.py").write_text(CODE)
    name = "ForSequenceClassification"
    own = {"AutoConfig": "soup.SoupConfig", f"AutoModel{name}": f"soup.Soup{name}"}
    edit(teacher / "config.json", model_type="soup", auto_map=own)
    (tmp_path / "stages.toml").write_text(STAGES)
    trust = ["--set", "teacher.trust_remote_code=true"]
    brief = ["--no-baseline", "--set", "training.steps=1", "--set", "task.max_length=32"]
    rows = ["--data", world / "train.jsonl"]
    shape = ["--teacher", teacher, "--student-layers", "2", "--output", "run"]
    done = invoke("run", "stages.toml", *shape, *rows, *brief, *trust)
    assert done.code == 0, done.err
    assert len(json.loads(Path("run/results.json").read_text())["rows"]) == 3
    for model in (teacher, "run/student"):
        assert "teacher.trust_remote_code" in invoke("eval", model, *rows).err
        assert invoke("eval", model, *rows, *trust).code == 0
    assert invoke("eval", "run/student", "run/config.toml").code == 0
    assert "trust_remote_code" in invoke("eval", "run").err
    assert invoke("eval", "run", *trust).code == 0
    pruned = ["--model", teacher, "--output", "pruned", "--depth", "2"]
    assert invoke("prune", *pruned, *rows, *trust).code == 0


@pytest.fixture
def base(copy_of):
    """A base model, whose text ends with another token than that of its instruct teacher."""
    return copy_of("lm-decoder", eos_token="[SEP]", pad_token="[SEP]", sep_token=None)


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


def test_other_special_tokens_are_told_and_both_end_a_text(
    base, copy_of, prepare_run, registry_with, world
):
    ends = {"eos_token": "[MASK]", "chat_template": TEMPLATE}
    teacher = copy_of("lm-decoder", "instruct", mask_token=None, **ends)
    edit(base / "tokenizer_config.json", mask_token=None)
    shares = ("engine=silent", "teacher=1", "prompt_tokens=2", "max_new_tokens=3")
    table = [f"rollout.{setting}" for setting in shares]
    text = [f"task.{name}={world / 'corpus.txt'}" for name in ("train", "validation", "test")]
    settings = [f"student.model={base}", "method=soft", *text, *table]
    run = prepare_run(*settings, teachers=(teacher,), registry=registry_with(Plugin()))
    spec = run.last
    assert spec.tokenizer.eos_token == "[SEP]"
    assert spec.teachers[0].tokenizer is spec.tokenizer
    stage = build_stage(spec, run.registry, run.directory / "stage", None)
    told = "instruct: the student's ids; its pad_token '[PAD]', not '[SEP]', "
    assert f"{told}eos_token '[MASK]', not '[SEP]'" in "\n".join(stage.describe())
    arguments = (stage.student, stage.teachers, 0, torch.device("cpu"))
    rollouts = build_rollouts(spec, run.registry, *arguments)
    assert rollouts.end_ids == (3, 4)


@pytest.mark.parametrize("settings", [[], ["student.init=random"], ["student.hidden_size=16"]])
def test_a_student_generates_like_the_teacher_it_is_made_from(
    copy_of, prepare_run, world, settings
):
    teacher = copy_of("lm-decoder", chat_template=TEMPLATE)
    (teacher / "generation_config.json").write_text(json.dumps(GENERATION))
    text = [f"task.{name}={world / 'corpus.txt'}" for name in ("train", "validation", "test")]
    run = prepare_run("method=hard", *text, *settings, teachers=(teacher,))
    stage = build_stage(run.last, run.registry, run.directory / "stage", None)
    save_model(stage.student.model, run.last.tokenizer, run.directory / "saved")
    saved = json.loads((run.directory / "saved" / "generation_config.json").read_text())
    assert {name: saved[name] for name in GENERATION} == GENERATION
    assert AutoTokenizer.from_pretrained(run.directory / "saved").chat_template == TEMPLATE


def test_a_student_with_its_own_checkpoint_keeps_its_own_template(
    base, copy_of, prepare_run, world
):
    teacher = copy_of("lm-decoder", "instruct", chat_template=TEMPLATE)
    edit(base / "tokenizer_config.json", chat_template="own")
    text = [f"task.{name}={world / 'corpus.txt'}" for name in ("train", "validation", "test")]
    run = prepare_run(f"student.model={base}", "method=soft", *text, teachers=(teacher,))
    assert run.last.tokenizer.chat_template == "own"


def test_a_token_of_the_rows_beyond_an_embedding_is_named(copy_of, prepare_run):
    teacher = copy_of("teacher")
    tokens = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["plot"] = len(vocabulary)  # one id is skipped, one is beyond the embedding
    (teacher / "tokenizer.json").write_text(json.dumps(tokens))
    run = prepare_run("method=hard", teachers=(teacher,))
    with pytest.raises(DataError, match=r"the token 'plot' \(id 29\), but the embedding of"):
        build_stage(run.last, run.registry, run.directory / "stage", None)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("longformer", {"attention_window": [4, 4, 4]}, "longformer with 2 blocks cannot be built"),
        ("llama", {"num_key_value_heads": 8, "head_dim": 8}, "4 query heads, which 8 key/value"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    copy_of, prepare_run, family, settings, message
):
    teacher = copy_of("teacher")
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **shape, **names, **settings, vocab_size=29)
    config.save_pretrained(teacher)
    with pytest.raises(ConfigError, match=message):
        prepare_run("method=soft", teachers=(teacher,))


def test_hidden_states_of_the_first_gpt_can_be_read(copy_of, prepare_run):
    teacher = copy_of("decoder")
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32, "vocab_size": 29}
    config = AutoConfig.for_model("openai-gpt", **shape, **names, pad_token_id=0)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(teacher)
    prepare_run("method=pkd", "training.steps=1", teachers=(teacher,)).execute()
