"""Students with a part of their teacher's tokens, from the plan of a run to their directory."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers import AutoModelForSequenceClassification as Classifier

from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.errors import ConfigError
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step

HEADS = {
    "bert": ("classification", Classifier),
    "roberta": ("classification", Classifier),
    "masked-bert": ("masked-lm", AutoModelForMaskedLM),
    "causal-roberta": ("causal-lm", AutoModelForCausalLM),
}


@pytest.fixture
def prepare(prepare_run, world, tongues):
    """`prepare("bert", "student.vocabulary=70")`: a run of a student made from this teacher."""

    def _prepare(teacher, *settings, **keywords):
        kind = HEADS[teacher][0]
        rows = [f"task.{name}={world}/corpus.txt" for name in ("train", "validation", "test")]
        own = [f"teachers.0.model={tongues / teacher}", f"task.kind={kind}", "task.max_length=64"]
        own += [] if kind == "classification" else rows
        return prepare_run(*own, "method=soft", *settings, teachers=(), **keywords)

    return _prepare


@pytest.fixture
def least(prepare):
    """The smallest vocabulary for a teacher's tokens of the world's texts, as a run says it."""

    def _least(teacher):
        with pytest.raises(ConfigError, match=r"vocabulary = 1 is too small") as refused:
            prepare(teacher, "student.vocabulary=1")
        return int(str(refused.value).split("Set it to ")[1].split()[0])

    return _least


@pytest.mark.parametrize("name", HEADS)
def test_teacher_and_student_read_the_same_positions(prepare, least, tongues, tmp_path, name):
    size = least(name)
    run = prepare(name, f"student.vocabulary={size}", "student.layers=all")
    spec = run.specs[0]
    whole, kept = AutoTokenizer.from_pretrained(tongues / name), spec.vocabulary.kept
    assert len(spec.tokenizer) == spec.student.vocab_size == size < len(whole)
    assert spec.teachers[0].info.vocab_size == len(whole)
    assert spec.teachers[0].tokenizer is spec.tokenizer
    stage = build_stage(spec, run.registry, tmp_path / "stage", None)
    for row in (0, 5):
        ids = stage.train.row(row)["input_ids"]
        texts = whole(spec.data.train.text[row])["input_ids"]
        assert [kept[one] for one in ids] == texts
    model = HEADS[name][1].from_pretrained(tongues / name).eval()
    (batch,) = next(iter(iterate(stage.train, stage.collator, stage.sampler, 0, 1)))[1]
    own = {**batch.inputs, "input_ids": torch.tensor(kept)[batch.inputs["input_ids"]]}
    with torch.no_grad():
        known = model(**own).logits
        found = stage.live(0).model(**batch.inputs).logits
        student = stage.student.model.eval()(**batch.inputs).logits
    if spec.kind.is_lm:
        assert torch.allclose(found[..., :size], known[..., list(kept)], atol=1e-5)
        assert torch.allclose(student, known[..., list(kept)], atol=1e-5)
    else:
        assert torch.allclose(found, known, atol=1e-5)
        assert torch.allclose(student, known, atol=1e-5)


@pytest.mark.parametrize("method", ["soft", "glmd", "tinybert", "distilbert", "minilm", "pkd"])
def test_methods_learn_from_a_teacher_with_more_tokens(prepare, least, tmp_path, method):
    size = least("masked-bert")
    run = prepare("masked-bert", f"student.vocabulary={size}", f"method={method}")
    stage = build_stage(run.specs[0], run.registry, tmp_path / "stage", None)
    ((_, batches),) = iterate(stage.train, stage.collator, stage.sampler, 0, 1)
    losses = train_step(stage, batches, Step(0, 1, 0, "distil", torch.Generator())).read()
    assert 0 <= losses["total"] < float("inf")


def test_the_count_of_weights_is_that_of_the_smaller_vocabulary(prepare, least):
    from gkd_core.planning.shapes import count_weights

    size = least("masked-bert")
    cut = count_weights(prepare("masked-bert", f"student.vocabulary={size}").specs[0])
    whole = count_weights(prepare("masked-bert").specs[0])
    tokens = AutoConfig.from_pretrained(
        prepare("masked-bert").specs[0].teachers[0].model
    ).vocab_size
    assert cut["teacher"] == whole["teacher"]
    # A row of the embedding, which the head shares, and a bias for each token.
    assert whole["student"] - cut["student"] == (tokens - size) * (32 + 1)


def test_later_stages_continue_with_the_smaller_vocabulary(prepare, least):
    size = least("masked-bert")
    stages = '[[stages]]\nname = "one"\n[[stages]]\nname = "two"\n'
    run = prepare("masked-bert", f"student.vocabulary={size}", file=stages)
    one, two = run.specs
    assert two.vocabulary is one.vocabulary
    assert two.tokenizer is one.tokenizer is two.teachers[0].tokenizer
    assert two.student.vocab_size == size


REFUSED = {
    "student.lora": ["student.lora.rank=2", "student.layers=all"],
    "parallel.tensor": ["parallel.nproc=2", "parallel.tensor=2"],
    "task.augment": ["task.augment=2", "task.augment_model={bert}"],
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_meant_is_refused(prepare, least, tongues, what):
    settings = [one.format(bert=tongues / "masked-bert") for one in REFUSED[what]]
    size = least("bert")
    with pytest.raises(ConfigError, match=rf"student.vocabulary = {size} .*{what}"):
        prepare("bert", f"student.vocabulary={size}", *settings)


def test_methods_that_align_tokens_are_refused(prepare, least):
    size = least("causal-roberta")
    with pytest.raises(ConfigError, match=rf"student.vocabulary = {size} .*uld aligns"):
        prepare("causal-roberta", f"student.vocabulary={size}", "method=uld")


def test_a_teacher_that_writes_is_refused(prepare, least):
    size = least("causal-roberta")
    settings = ["rollout.engine=generate", "rollout.teacher=1", "rollout.student=0"]
    with pytest.raises(ConfigError, match=r"a teacher writes other text \(rollout\)"):
        prepare("causal-roberta", f"student.vocabulary={size}", *settings)


def test_a_checkpoint_of_its_own_is_refused(prepare, tongues):
    with pytest.raises(ConfigError, match="vocabulary cannot be set as well"):
        prepare("bert", "student.vocabulary=60", f"student.model={tongues / 'bert'}")


@pytest.mark.parametrize("name", ["bert", "causal-roberta"])
def test_run_resume_eval_and_export(invoke, least, world, tongues, tmp_path, name):
    size, kind = least(name), HEADS[name][0]
    data = "train.jsonl" if kind == "classification" else "corpus.txt"
    settings = [f"student.vocabulary={size}", f"task.kind={kind}", "task.max_length=64"]
    settings += ["training.epochs=1", "training.lr=1e-3", "output.reuse=false", "baseline=false"]
    settings += ["method=soft", "student.layers=1"]
    given = [part for setting in settings for part in ("--set", setting)]
    rows = ["--data", world / data, "--teacher", tongues / name]
    done = invoke("run", *rows, *given, "--output", "run")
    assert done.code == 0, done.err
    folder = tmp_path / "run" / "student"
    assert AutoConfig.from_pretrained(folder).vocab_size == size
    assert len(AutoTokenizer.from_pretrained(folder)) == size
    assert f"vocabulary: {size} of the teacher's" in done.out + done.err
    table = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(table["rows"]) == 2
    again = invoke("run", "--resume", "--output", "run")
    assert again.code == 0, again.err
    judged = invoke("eval", "run")
    assert judged.code == 0, judged.err
    exported = invoke("export", "run", "--to", "out")
    assert exported.code == 0, exported.err
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == size
