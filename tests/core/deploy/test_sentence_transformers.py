"""sentence-transformers reads an exported embedding student as the how-to page says."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.peer


def test_vectors_are_the_means_of_the_tokens(invoke, world, tmp_path):
    transformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    settings = ["task.kind=embedding", "task.max_length=32", "training.epochs=1"]
    texts = (world / "corpus.txt").read_text().splitlines()
    rows = [
        json.dumps({"sentence1": one, "sentence2": other, "score": number % 5})
        for number, (one, other) in enumerate(pairwise(texts))
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    arguments = ["--teacher", world / "teacher", "--data", "pairs.jsonl", "--method", "minilm"]
    for setting in settings:
        arguments += ["--set", setting]
    done = invoke("run", *arguments, "--student-layers", 2, "--no-baseline", "--output", "run")
    assert done.code == 0, done.err
    done = invoke("export", "run", "--to", "student")
    assert done.code == 0, done.err
    texts = ["the movie was good", "a very sad plot and so it is"]
    found = transformer(str(tmp_path / "student")).encode(texts)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path / "student").eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    expected = (states * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
