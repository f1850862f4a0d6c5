"""Students of each kind as ONNX graphs, which say what the students say."""

import json
import re

import pytest

pytest.importorskip("onnxscript")

KINDS = (
    "multi-label",
    "token-classification",
    "multiple-choice",
    "choices",
    "span-extraction",
    "span-classification",
    "masked-cloze",
    "causal-cloze",
    "embedding",
)
NAMED = ("masked-cloze", "causal-cloze", "embedding")
"""Kinds that columns do not tell."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("rows", KINDS)
def test_graph_of_each_kind_says_what_the_student_says(rows, task, invoke, tmp_path, monkeypatch):
    folder, student = task(rows), tmp_path / "student"
    settings = [f"task.{name}={folder}/{name}.jsonl" for name in ("validation", "test")]
    settings += ["training.epochs=1", "task.max_length=32", "output.tensorboard=false"]
    settings += [f"task.kind={rows}"] * (rows in NAMED)
    method = "soft" if rows == "embedding" else "hard"
    flags = ["--method", method, "--student", folder / "untrained", "--no-baseline"]
    if rows == "embedding":
        flags = ["--method", "minilm", "--teacher", folder / "untrained", "--student-layers", 2]
    flags += [part for setting in settings for part in ("--set", setting)]
    done = invoke("run", *flags, "--data", folder / "train.jsonl", "--output", student)
    assert done.code == 0, done.err
    done = invoke("export", student, "--to", tmp_path / "graph", "--format", "onnx")
    assert done.code == 0, done.err
    known = json.loads((tmp_path / "graph" / "lineage.json").read_text())["verification"]
    assert known["rows"] == 64
    assert known["difference"] < 1e-4
    assert known["differing"] in (0, None)
    assert invoke("export", student, "--to", tmp_path / "plain").code == 0
    for place in ("graph", "plain"):
        _run_code_of_card(tmp_path / place, monkeypatch)


def _run_code_of_card(place, monkeypatch):
    """Run the code of a model card in its folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(place)
    exec(compile(code, f"{place.name}/README.md", "exec"), {})


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_graph_of_a_decoder_writes_what_the_student_writes(
    family, world, invoke, tmp_path, monkeypatch
):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from gkd_core.deploy.onnx_model import OnnxDecoder

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        family, **sizes, vocab_size=29, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=None, eos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "start")
    AutoTokenizer.from_pretrained(world / "lm-decoder").save_pretrained(tmp_path / "start")
    flags = ["--method", "hard", "--student", "start", "--data", world / "corpus.txt"]
    flags += ["--set", "training.epochs=1", "--set", "task.kind=causal-lm", "--no-baseline"]
    done = invoke("run", *flags, "--output", "run")
    assert done.code == 0, done.err
    done = invoke("export", "run", "--to", "graph", "--format", "onnx")
    assert done.code == 0, done.err
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student").eval()
    prompt = torch.tensor([[2, 17, 18, 19, 7]])
    expected = student.generate(prompt, max_new_tokens=32, do_sample=False, pad_token_id=0)
    graph = OnnxDecoder(tmp_path / "graph" / "model.onnx")
    assert torch.equal(graph.continue_greedily(prompt, 32), expected)
    _run_code_of_card(tmp_path / "graph", monkeypatch)
