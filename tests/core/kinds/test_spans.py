"""`span-classification`: a linear classifier on the first token's state and the spans' means."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
)

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import Split
from gkd_core.data.collate import Collator
from gkd_core.data.table import Faults, Table
from gkd_core.errors import ConfigError, DataError
from gkd_core.models.classes import output_names
from gkd_core.plugins import registry
from gkd_core.testing.tiny import model_for

KIND = registry().kind("span-classification")
CLASSES = ("no", "yes")
SPLIT = Split(
    ["the old house", "anna met bruno in paris"],
    ["a new house near the road", "clara"],
    [1, 0],
    spans=[[(0, 8, 13), (1, 2, 11)], [(0, 9, 23), (1, 0, 5)]],
)


def read(rows, **settings):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = Table(columns, range(1, len(rows) + 1), Faults("rows.jsonl"))
    return KIND.read({"train": table}, TaskConfig(**settings))


ROW = {"text1": "the old house", "text2": "a new house", "spans": [[0, 8, 13], [1, 2, 11]]}


def test_spans_are_read_beside_texts_and_labels():
    found = read([{**ROW, "label": "yes"}, {**ROW, "label": "no"}])
    assert found.classes == CLASSES
    assert found.splits["train"].spans == [[(0, 8, 13), (1, 2, 11)]] * 2
    assert found.splits["train"].labels == [1, 0]
    alone = {"sentence": "anna met bruno", "spans": [[0, 4], [9, 14]]}
    found = read([{**alone, "label": "yes"}, {**alone, "label": "no"}])
    assert found.splits["train"].spans[0] == [(0, 0, 4), (0, 9, 14)]


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ([[0, 8, 13]], "expected 2 spans"),
        ([[0, 8, 13], [3, 4]], "a span is at characters 3 to 4 of part 0, where"),
        ([[0, 8, 13], [1, 2, 99]], "a span is at characters 2 to 99 of part 1, where"),
        ([[0, 8, 13], [1, 1, 2]], "a span is at characters 1 to 2 of part 1, where"),
        ([[0, 8, 13], "house"], "the span 'house' is not"),
        ([[0, 8, 13], [0, 1, "x"]], "something other than whole numbers"),
    ],
)
def test_a_span_that_is_none_is_named(spans, problem):
    rows = [{**ROW, "label": "no"}, {**ROW, "spans": spans, "label": "yes"}]
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{problem}"):
        read(rows)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_are_linear_on_the_first_token_and_the_means_of_the_spans(tokenizer, side):
    tokenizer.padding_side = side
    try:
        encoded = KIND.encode(SPLIT, tokenizer, 32, CLASSES)
        batch = Collator(tokenizer, KIND, 0.15, 0).collate(encoded, [1, 0], 0, 20)
    finally:
        tokenizer.padding_side = "right"
    model = model_for(KIND, CLASSES, layers=1, seed=0)
    assert model.classifier.weight.shape == (6, 32)
    assert model.config.label2id == {"no": 0, "yes": 1}
    assert output_names(model.config) == CLASSES
    inputs = {n: x for n, x in batch.inputs.items() if n != "spans"}
    with torch.no_grad():
        found = model(**batch.inputs).logits
        states = model.bert(**inputs).last_hidden_state
    # [CLS] anna met bruno in paris [SEP] clara [SEP]; [CLS] the old house [SEP] a new house ...
    places = [(slice(3, 6), slice(7, 8)), (slice(3, 4), slice(6, 8))]
    for row, (first, second) in enumerate(places):
        own = states[row][batch.mask[row]]
        read = torch.cat([own[0], own[first].mean(0), own[second].mean(0)])
        weight = torch.cat(model.classifier.weight.split(2), 1)
        expected = linear(read, weight, model.classifier.bias.view(3, 2).sum(0))
        torch.testing.assert_close(found[row], expected)


def logits_of(model, tokenizer, text, spans):
    """Return the logits of the classes, given the characters of two spans of a text."""
    made = tokenizer(text, return_tensors="pt")
    outputs = model(**made).logits[0].unflatten(-1, (3, -1))  # [S, 3, C]
    logits = outputs[0, 0]
    for block, (start, end) in enumerate(spans, 1):
        first, last = made.char_to_token(start), made.char_to_token(end - 1)
        logits = logits + outputs[first : last + 1, block].mean(0)
    return logits


def test_a_saved_student_is_an_ordinary_token_classifier(tokenizer, tmp_path):
    made = model_for(KIND, CLASSES, layers=1, seed=0)
    made.save_pretrained(tmp_path)
    student = AutoModelForTokenClassification.from_pretrained(tmp_path, dtype=torch.float64).eval()
    text, spans = "anna met bruno in paris", [(0, 4), (9, 23)]
    split = Split([text], spans=[[(0, *span) for span in spans]])
    encoded = KIND.encode(split, tokenizer, 16, CLASSES)
    batch = Collator(tokenizer, KIND, 0.15, 0).collate(encoded, [0], 0)
    with torch.no_grad():
        found = logits_of(student, tokenizer, text, spans)
        torch.testing.assert_close(found, made(**batch.inputs).logits[0])


def test_a_span_beyond_the_last_token_is_an_error(tokenizer):
    with pytest.raises(DataError, match="row 2: the span 'bruno in paris' is beyond 8 tokens"):
        KIND.encode(SPLIT, tokenizer, 8, CLASSES)


def test_only_token_classifiers_with_an_output_per_state_are_of_this_kind():
    model = model_for(KIND, CLASSES, layers=1, seed=0)
    model.config.architectures = ["BertForTokenClassification"]
    assert KIND.made(model.config)
    assert not registry().kind("token-classification").made(model.config)
    other = BertForSequenceClassification(BertConfig(num_hidden_layers=1, hidden_size=12))
    assert not KIND.made(other.config)
    with pytest.raises(ConfigError, match=r"teacher\.model: llama is no encoder"):
        KIND.check_model(LlamaConfig(), "teacher.model")
