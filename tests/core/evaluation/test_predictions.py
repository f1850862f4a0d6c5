"""Files of predictions: what is written is read, and rows are paired by their content."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import entropy
from transformers import AutoModelForCausalLM

from gkd_core.analysis.compare import predict_and_compare
from gkd_core.analysis.disagreement import disagreements
from gkd_core.analysis.exam import ComparedModel
from gkd_core.contract.task import Split
from gkd_core.errors import DataError, PluginError
from gkd_core.evaluation.predictions import (
    About,
    Predictions,
    file_names,
    model_table,
    pair_rows,
    row_hashes,
    rows_table,
)
from gkd_core.kinds.task_kind import Evaluation
from gkd_core.plugins import registry

CLASSES = ("neg", "pos")


def _predictions(kind="classification"):
    kind = registry().kind(kind)
    split = Split(["good", "bad", "good"], labels=[1, 0, 1], group=["a", "a", "b"])
    rows = rows_table(split, kind, CLASSES)
    logits = torch.tensor([[0.5, 2.0], [1.0, -1.0], [3.0, 0.0]])
    found = Evaluation({"loss": 0.0}, logits.argmax(-1), {"scores": logits})
    about = About("test", kind.name, CLASSES, "accuracy")
    table = model_table(found, rows, kind, CLASSES)
    return Predictions(about, rows, {"student": table}, {"student": "student, soft"})


def test_what_is_written_is_read(tmp_path):
    made = _predictions()
    made.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.parquet", "student.parquet"]
    found = Predictions.read(tmp_path)
    assert (found.about, found.names) == (made.about, made.names)
    assert found.rows.equals(made.rows)
    assert found.models["student"].equals(made.models["student"])
    rows = found.rows.to_pydict()
    assert rows["row"] == [0, 1, 2]
    assert (rows["text"], rows["pair"]) == (["good", "bad", "good"], [None] * 3)
    assert (rows["gold"], rows["group"]) == (["pos", "neg", "pos"], ["a", "a", "b"])
    student = found.models["student"].to_pydict()
    assert student["prediction"] == ["pos", "neg", "neg"]
    assert student["scores"] == [[0.5, 2.0], [1.0, -1.0], [3.0, 0.0]]
    assert student["hash"] == rows["hash"]


def test_a_file_of_something_else_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet is not a file of predictions"):
        Predictions.read(tmp_path)
    with pytest.raises(DataError, match=r"rows\.parquet is not a file of predictions"):
        Predictions.read(tmp_path / "missing")


def test_rows_of_the_same_content_are_paired_in_their_order():
    found = pair_rows("abcbx", "bbyac")
    assert found.ours.tolist() == [0, 1, 2, 3]
    assert found.theirs.tolist() == [3, 0, 4, 1]
    assert (found.only_ours, found.only_theirs) == (1, 1)
    assert str(found) == "4 rows in both, 1 only in the first, 1 only in the second"
    assert str(pair_rows("ab", "ba")) == "2 rows in both"
    assert len(pair_rows("", "ab")) == 0


def test_a_hash_is_of_what_a_model_reads():
    split = Split(["good", "bad"], ["film", "plot"], labels=[0, 1])
    same = Split(["bad", "good"], ["plot", "film"], labels=[0, 0], group=["x", "y"])
    assert row_hashes(split) == row_hashes(same)[::-1]
    assert row_hashes(Split(["good"])) != row_hashes(split)[:1]
    choices = [row_hashes(Split(["good"], [pair]))[0] for pair in (["a", "b"], ["b", "a"])]
    assert choices[0] != choices[1]


def test_a_kind_that_loses_rows_is_to_blame():
    made = _predictions()
    with pytest.raises(PluginError, match="'classification' gives 1 values in the column"):
        model_table(
            Evaluation({}, torch.tensor([1])), made.rows, registry().kind("classification"), CLASSES
        )


def test_every_model_has_a_file_of_its_own():
    assert file_names(["teacher", "rows", "teacher"]) == ["teacher", "rows-2", "teacher-2"]


@pytest.mark.parametrize(
    ("kind", "labels", "shown"),
    [
        ("classification", [1, 0], ["pos", "neg"]),
        ("multi-label", [[1, 1], [0, 0]], [["neg", "pos"], []]),
        ("token-classification", [[1, 0], [-100]], [["pos", "neg"], [None]]),
        ("multiple-choice", [1, 0], [1, 0]),
        ("regression", [0.5, 1.5], [0.5, 1.5]),
        ("span-extraction", [{"text": ["a", "b"], "start": [0, 2]}, "c"], [["a", "b"], "c"]),
    ],
)
def test_labels_are_shown_by_name(kind, labels, shown):
    assert registry().kind(kind).shown(labels, CLASSES) == shown


def test_texts_of_a_language_model_have_their_sums(prepare_run, world, tmp_path):
    """Blocks of a text are summed, and perplexity and agreement follow from the sums."""
    corpus = tmp_path / "texts.txt"
    long, short = "the movie was good and " * 12, "a bad film"
    corpus.write_text(f"{long.strip()}\n{short}\n{short}\n")
    data = [f"task.{split}={corpus}" for split in ("train", "validation", "test")]
    settings = ("method=soft", "task.kind=causal-lm", "task.max_length=16", "training.steps=1")
    run = prepare_run(*settings, *data, teachers=("lm-decoder",))
    run.execute()
    student = ComparedModel("student", str(run.student), run.last.tokenizer)
    teacher = ComparedModel("teacher", str(world / "lm-decoder"), run.last.tokenizer)
    compared = predict_and_compare(run.last, [teacher, student], "teacher")
    comparison, found = compared.comparison, compared.predictions
    columns = found.models["student"].to_pydict()
    perplexity = math.exp(sum(columns["nll"]) / sum(columns["tokens"]))
    assert comparison.rows[1].metrics["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    # [CLS] precedes the first token of every block, so all are predicted, and [SEP] too.
    assert columns["tokens"] == [60 + 5, 3 + 1, 3 + 1]
    assert columns["bytes"] == [len(long.strip()), len(short), len(short)]
    own = found.models["lm-decoder"].to_pydict()
    assert own["same_top1"] == own["tokens"]
    same = [
        sum(one == other for one, other in zip(*both, strict=True))
        for both in zip(columns["top_tokens"], own["top_tokens"], strict=True)
    ]
    assert same == columns["same_top1"]
    assert len(set(found.tokenizers.values())) == 1
    same, apart = _compared_by_hand(run, corpus.read_text().splitlines())
    assert columns["same_top1"] == same
    assert columns["kl"] == pytest.approx(apart, rel=1e-4)
    assert own["kl"] == [0, 0, 0]
    pair = compared.pairs["lm-decoder"]
    assert pair.kl == pytest.approx(sum(apart) / sum(columns["tokens"]), rel=1e-4)
    rows = disagreements(found, run.last.kind)
    means = [total / count for total, count in zip(apart, columns["tokens"], strict=True)]
    assert [row.distance for row in rows] == pytest.approx(sorted(means, reverse=True), rel=1e-4)


def _compared_by_hand(run, texts):
    """Return the positions with the same top token and KL(teacher || student) of each text."""
    models = [
        AutoModelForCausalLM.from_pretrained(place).eval()
        for place in (run.student, run.last.teachers[0].model)
    ]
    counts, apart = [], []
    for text in texts:
        words = text.split()
        blocks = [" ".join(words[start : start + 14]) for start in range(0, len(words), 14)]
        counts.append(0)
        apart.append(0.0)
        for block in blocks:
            ids = run.last.tokenizer(block, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                mine, theirs = (model(ids).logits[0, :-1].double() for model in models)
            counts[-1] += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
            p, q = (logits.softmax(-1).numpy() for logits in (theirs, mine))
            apart[-1] += float(entropy(p, q, axis=-1).sum())
    return counts, apart
