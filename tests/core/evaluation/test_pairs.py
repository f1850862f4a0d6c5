"""Two models on the same rows, against values worked out by hand and other libraries."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binomtest, entropy
from sklearn.calibration import calibration_curve

from gkd_core.contract.task import Split
from gkd_core.evaluation.pairs import calibrate, compare_pair, mean_kl
from gkd_core.evaluation.predictions import About, Predictions, model_table, rows_table
from gkd_core.kinds.task_kind import Evaluation
from gkd_core.plugins import registry

CLASSES = ("a", "b", "c")


def _pair(name, labels, *evaluations, classes=CLASSES, group=None):
    """Return the comparison of two evaluations of rows of a kind."""
    kind = registry().kind(name)
    pair = ["x"] * len(labels) if name == "span-extraction" else None
    split = Split([f"text {n}" for n in range(len(labels))], pair, labels=labels, group=group)
    rows = rows_table(split, kind, classes)
    tables = [model_table(one, rows, kind, classes) for one in evaluations]
    files = ("student", "teacher")
    about = About("test", name, classes, kind.metric.name)
    predictions = Predictions(
        about, rows, dict(zip(files, tables, strict=True)), {file: file for file in files}
    )
    measures = [kind.remeasure(one, split, classes) for one in evaluations]
    chosen = tuple(lambda r, m=m: m(r)[kind.metric.name] for m in measures)
    return compare_pair(predictions, files, kind, None if None in measures else chosen, 50)


def _classified(logits, **columns):
    scores = torch.tensor(logits)
    return Evaluation({}, scores.argmax(-1), {"scores": scores, **columns})


def test_calibration_error_is_worked_out_by_hand():
    # Confidences 0.9, 0.8, 0.6, 0.6; two bins: (0, 0.5] is empty. 3 of 4 are right.
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.6, 0.4]])
    found = calibrate(np.log(shares), np.array([0, 1, 0, 1]), bins=2)
    assert found.error == pytest.approx(abs(0.75 - (0.9 + 0.8 + 0.6 + 0.6) / 4))
    assert [one.count for one in found.bins] == [0, 4]
    # Ten bins: 0.6 falls into (0.5, 0.6], where one of two is right.
    found = calibrate(np.log(shares), np.array([0, 1, 0, 1]), bins=10)
    assert found.error == pytest.approx((2 * 0.1 + 0.2 + 0.1) / 4)


def test_bins_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(300, 3)) * 2
    truths = draw.integers(3, size=300)
    found = calibrate(logits, truths, bins=8)
    sure, right = softmax(logits, -1).max(-1), logits.argmax(-1) == truths
    accuracy, confidence = calibration_curve(right, sure, n_bins=8)
    filled = [one for one in found.bins if one.count]
    assert [one.accuracy for one in filled] == pytest.approx(accuracy.tolist())
    assert [one.confidence for one in filled] == pytest.approx(confidence.tolist())
    weights = np.array([one.count for one in filled]) / 300
    assert found.error == pytest.approx((weights * abs(accuracy - confidence)).sum())


def test_divergence_is_that_of_scipy_and_ignores_what_is_impossible():
    draw = np.random.default_rng(1)
    one, other = draw.normal(size=(2, 20, 4))
    one[:, 3] = other[:, 3] = -np.inf
    expected = entropy(softmax(one, -1), softmax(other, -1), axis=-1)
    assert mean_kl(one, other) == pytest.approx(expected.mean())
    assert mean_kl(one, one) == 0


def test_classifiers_are_compared():
    student = _classified([[2.0, 0, 0], [0, 1.0, 0], [0, 0, 3.0], [1.0, 0, 0], [0, 2.0, 0]])
    teacher = _classified([[2.0, 0, 0], [0, 1.0, 0], [0, 3.0, 0], [0, 1.0, 0], [0, 1.0, 0]])
    found = _pair("classification", [0, 1, 1, 1, 2], student, teacher)
    assert found.agreement == 3 / 5
    assert (found.mcnemar.only_first, found.mcnemar.only_second) == (0, 2)
    assert found.mcnemar.p == pytest.approx(binomtest(0, 2).pvalue)
    assert found.difference.value == pytest.approx(2 / 5 - 4 / 5)
    assert found.difference.interval.low <= -0.4 <= found.difference.interval.high
    p, q = (softmax(e.columns["scores"].numpy(), -1) for e in (teacher, student))
    assert found.kl == pytest.approx(entropy(p, q, axis=-1).mean(), rel=1e-6)
    assert set(found.calibration) == {"student", "teacher"}


def test_rows_of_a_group_are_drawn_together():
    one = _classified([[1.0, 0, 0]] * 4)
    other = _classified([[0, 1.0, 0]] * 4)
    found = _pair("classification", [0, 0, 1, 1], one, other, group=["x", "x", "y", "y"])
    assert found.difference.n == 2


def test_marks_are_compared_class_by_class():
    labels = [[1, 0], [1, 1]]
    one = Evaluation(
        {}, torch.tensor([[1, 0], [1, 0]]), {"scores": torch.tensor([[2.0, -1.0], [1.0, -3.0]])}
    )
    other = Evaluation(
        {}, torch.tensor(labels), {"scores": torch.tensor([[2.0, -1.0], [1.0, 3.0]])}
    )
    found = _pair("multi-label", labels, one, other, classes=("a", "b"))
    assert (found.agreement, found.mcnemar.only_second) == (0.5, 1)
    p, q = (1 / (1 + np.exp(-x)) for x in (3.0, -3.0))
    apart = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert found.kl == pytest.approx(apart / 4)
    assert sum(b.count for b in found.calibration["student"].bins) == 4


def test_tags_are_compared_by_the_words_that_both_have_read():
    labels = [[0, 1], [1, 1]]
    scores = [[[2.0, 0.0], [0.0, 1.0]], [[0.0, 1.0]]]
    one = Evaluation({}, [["O", "B-X"], ["B-X", "O"]], {"scores": scores})
    other = Evaluation({}, [["O", "B-X"], ["B-X", "B-X"]], {"scores": [scores[0], []]})
    found = _pair("token-classification", labels, one, other, classes=("O", "B-X"))
    assert (found.agreement, found.kl) == (0.5, 0)
    assert (found.mcnemar.only_first, found.mcnemar.only_second) == (0, 1)
    # 2 of 2 predicted entities are right, of 3 true ones: 2 * 2 / 5 against all right.
    assert found.difference.value == pytest.approx(0.8 - 1)
    counts = [sum(b.count for b in c.bins) for c in found.calibration.values()]
    assert counts == [3, 2]


def test_answers_are_compared_as_exact_match_does():
    labels = [{"text": ["The film", "plot"], "start": [0, 5]}, {"text": [], "start": []}]
    one, other = Evaluation({}, ["film", ""]), Evaluation({}, ["the old film", "plot"])
    found = _pair("span-extraction", labels, one, other, classes=())
    assert (found.agreement, found.kl, found.calibration) == (0, None, {})
    assert found.mcnemar.only_first == 2
    one, other = (replace(e, columns={"kl": k}) for e, k in ((one, [0.5, 1.0]), (other, [0.0] * 2)))
    assert _pair("span-extraction", labels, one, other, classes=()).kl == 0.75
    assert _pair("span-extraction", labels, other, one, classes=()).kl is None, "of another"
    # F1 of "old film" and "film" is 2/3.
    assert found.difference.value == pytest.approx(100 - (200 / 3 + 0) / 2)


def test_values_have_a_difference_and_nothing_else():
    values = [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 1.0])]
    pair = [Evaluation({}, v, {"scores": v.unsqueeze(-1)}) for v in values]
    found = _pair("regression", [0.0, 1.0, 2.0], *pair, classes=())
    assert found.difference.value == pytest.approx(1 - 0.5)
    assert (found.agreement, found.kl, found.calibration, found.mcnemar) == (None, None, {}, None)


def test_language_models_are_compared_by_text():
    made = partial(dict, tokens=np.array([4, 6]), bytes=np.array([10, 20]))
    one, other = (
        Evaluation({}, None, made(nll=np.array(nll), same_top1=np.array(same), kl=np.array(kl)))
        for nll, same, kl in (
            ([4.0, 6.0], [3, 4], [2.0, 1.0]),
            ([2.0, 3.0], [4, 6], [0.0, 0.0]),
        )
    )
    kind = registry().kind("causal-lm")
    split = Split(["text a", "text b"])
    found = kind.remeasure(one, split, ())(np.array([0, 1, 1]))
    assert found["loss"] == pytest.approx(1)
    rows = rows_table(split, kind, ())
    tables = {n: model_table(e, rows, kind, ()) for n, e in (("one", one), ("other", other))}
    about = About("test", "causal-lm", (), "perplexity")
    predictions = Predictions(about, rows, tables, {"one": "one", "other": "other"})
    pair = compare_pair(predictions, ("one", "other"), kind, None)
    assert (pair.agreement, pair.mcnemar, pair.difference) == (0.7, None, None)
    assert pair.kl == pytest.approx(3 / 10), "the mean over all tokens"
    # Both have been compared with a third: nothing tells how far they agree with each other.
    assert compare_pair(predictions, ("other", "one"), kind, None).agreement is None


@pytest.mark.parametrize(("tokenizer", "agreement"), [("same", 0.75), ("another", None)])
def test_students_agree_where_they_have_the_same_likeliest_token(tokenizer, agreement):
    """The first agrees with its teacher at 1 of 4 tokens, and with the other student at 3."""
    made = partial(dict, nll=np.ones(2), tokens=np.array([3, 1]), same_top1=np.array([1, 0]))
    one = Evaluation({}, None, made(top_tokens=[[5, 6, 7], [8]]))
    other = Evaluation({}, None, made(top_tokens=[[5, 6, 9], [8]]))
    kind = registry().kind("causal-lm")
    rows = rows_table(Split(["text a", "text b"]), kind, ())
    tables = {n: model_table(e, rows, kind, ()) for n, e in (("one", one), ("other", other))}
    about = About("test", "causal-lm", (), "perplexity")
    names = {"one": "one", "other": "other"}
    predictions = Predictions(about, rows, tables, names, {"one": "same", "other": tokenizer})
    measures = (lambda rows: 2.0, lambda rows: 1.0)
    pair = compare_pair(predictions, ("one", "other"), kind, measures, 20)
    assert pair.agreement == agreement
    assert (pair.difference is None) is (tokenizer == "another"), "losses are per token"
