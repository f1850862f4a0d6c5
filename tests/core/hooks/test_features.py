import pytest
import torch

from gkd_core.contract.model_info import ModelInfo
from gkd_core.errors import MethodError
from gkd_core.hooks.features import Features, View
from gkd_core.hooks.paths import Capture
from gkd_core.losses.relation import Relation

CAPTURES = [
    Capture("hidden", 0),
    Capture("hidden", 2),
    Capture("hidden", 4),
    Capture("hidden", 2, reduce="cls"),
    Capture("hidden", 4, reduce="mean"),
    Capture("hidden", 4, normed=True),
    Capture("hidden", 4, normed=True, reduce="cls"),
    Capture("value", 3),
    Capture("context", 1, reduce="mean"),
    Capture("logits"),
]


def shape(name):
    return ModelInfo(name, "bert", 4, 8, 2, 2, 4, 16, 100, 2, 64)


@pytest.fixture
def features():
    features = Features()
    for capture in CAPTURES:
        features.tensors[capture] = torch.rand(2)
    return features


@pytest.fixture
def view(features):
    return View(features, CAPTURES, shape("student"), "pkd")


def test_view_names_every_capture(features, view):
    named = [
        view.hidden[0],
        view.hidden[2],
        view.hidden[4],
        view.hidden.cls[2],
        view.hidden.mean[4],
        view.hidden.normed,
        view.hidden.cls.normed,
        view.value[3],
        view.context.mean[1],
        view.logits,
    ]
    for capture, tensor in zip(CAPTURES, named, strict=True):
        assert tensor is features.tensors[capture]


def test_negative_layers_count_from_the_end(view):
    assert view.hidden[-1] is view.hidden[4]
    assert view.hidden[-5] is view.embedding
    assert view.value[-2] is view.value[3]


def test_layers_are_those_read_of_this_reduction(view):
    assert view.hidden.layers == [0, 2, 4]
    assert view.hidden.cls.layers == [2]
    assert view.context.layers == []


def test_what_was_not_asked_for_is_refused_even_if_captured(features):
    view = View(features, [Capture("logits"), Capture("value", 3)], shape("student"), "pkd")
    with pytest.raises(MethodError) as error:
        view.hidden[2]
    assert str(error.value) == (
        "pkd did not request student.hidden[2]; it reads: student.logits, student.value[3]. "
        "Add it to `reads`"
    )


def test_view_that_reads_nothing_says_so():
    with pytest.raises(MethodError, match="it reads: nothing"):
        _ = View(Features(), [], shape("teacher"), "hard").logits


def test_scores_and_probs_are_computed_when_asked_for_and_kept(monkeypatch):
    calls = []
    scores = Relation.scores
    monkeypatch.setattr(Relation, "scores", lambda self: calls.append(1) or scores(self))
    query, key = torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 4)
    inputs = Relation(query, key, None, False, 0.5)
    captures = [Capture("scores", 1), Capture("probs", 1)]
    features = Features()
    features.attention = dict.fromkeys(captures, inputs)
    view = View(features, captures, shape("student"), "tinybert")
    assert calls == []
    torch.testing.assert_close(view.scores[1], query @ key.mT * 0.5)
    assert calls == [1]
    assert view.scores[1] is view.scores[1]
    assert view.probs[1] is view.probs[1]
    assert calls == [1, 1]
    torch.testing.assert_close(view.probs[1], view.scores[1].softmax(-1))
