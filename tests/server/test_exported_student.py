"""An exported student is served as the how-to page says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from tests.server.serving import free_port, serving
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "serve-a-student.md"


def test_the_page_serves_what_the_student_writes(invoke, folder, environment, tmp_path):
    settings = ["task.kind=causal-lm", "task.max_length=64", "training.steps=5"]
    (tmp_path / "rows.txt").write_text((ROOT / "README.md").read_text())
    arguments = [part for setting in settings for part in ("--set", setting)]
    teacher = ["--teacher", folder, "--student-layers", 1, "--data", "rows.txt", "--method", "soft"]
    done = invoke("run", *teacher, *arguments, "--no-baseline", "--output", "run")
    assert done.code == 0, done.err
    done = invoke("export", "run", "--to", "student")
    assert done.code == 0, done.err

    serve, ask = _commands(port := free_port())
    binaries = f"{Path(environment).resolve() / 'bin'}:{os.environ['PATH']}"
    command = [*shlex.split(serve), "--host", "127.0.0.1", "--port", str(port)]
    # The tool's own: no network, and arithmetic that can be compared.
    own = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with serving([*command, "--dtype", "float32"], port, tmp_path, PATH=binaries, **own):
        answer = subprocess.run(shlex.split(ask), capture_output=True, check=True, timeout=300)
    prompt = json.loads(re.search(r"-d '(.*)'", ask)[1])["prompt"]
    assert json.loads(answer.stdout)["choices"][0]["text"] == _greedy(tmp_path / "student", prompt)


def _commands(port):
    """Return both commands of the page, for a model of 512 positions and another port."""
    block = PAGE.read_text().split("## vLLM")[1].split("```console\n")[1].split("```")[0]
    serve, ask = (line.removeprefix("$ ") for line in block.strip().splitlines())
    return serve.replace("2048", "512"), ask.replace("localhost:8000", f"127.0.0.1:{port}")


@torch.no_grad()
def _greedy(student, prompt):
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForCausalLM.from_pretrained(student).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    new = written[0, inputs["input_ids"].shape[1] :]
    # The server leaves out a character of which the last bytes are not written yet.
    return tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd")
