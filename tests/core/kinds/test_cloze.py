"""`masked-cloze` and `causal-cloze`: candidates score as a direct computation with transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, LlamaConfig

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import BLANK, Split
from gkd_core.data.collate import Collator
from gkd_core.data.table import Faults, Table
from gkd_core.errors import ConfigError, DataError
from gkd_core.evaluation.evaluate import evaluate
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.padding import follow_mask
from gkd_core.hooks.paths import LOGITS, Capture
from gkd_core.models.sites import find_sites
from gkd_core.plugins import registry
from gkd_core.testing.check_method import MethodTrial
from gkd_core.testing.tiny import model_for

MASKED, CAUSAL = registry().kind("masked-cloze"), registry().kind("causal-cloze")
KINDS = [MASKED, CAUSAL]
WORDS = ("yes", "no")
TEXTS = [f"is the car red ? {BLANK}", f"anna lives in the old house {BLANK}", f"is it ? {BLANK}"]
SHARED = Split(TEXTS, labels=[0, 1, 1])
CANDIDATES = [["red car", "no", "the old blue door"], ["yes"], ["paris", "rome oslo"]]
OWN = Split(TEXTS, CANDIDATES, [2, 0, 1])
GOES_ON = Split([f"{text} near paris ." for text in TEXTS], CANDIDATES, [2, 0, 1])
NUMBERS = ("0", "1", "2")


@pytest.mark.parametrize(
    ("kind", "split", "per_row", "shape"),
    [
        (MASKED, SHARED, 1, (1, 2)),
        (MASKED, OWN, 3, (4, 1)),  # "the old blue door"
        (CAUSAL, GOES_ON, 3, (7, 1)),  # and what follows it
    ],
)
def test_a_step_is_planned_with_as_many_scored_tokens_as_rows_have(
    tokenizer, kind, split, per_row, shape
):
    known = split, tokenizer
    planned = kind.planned_for(*known, 2, 24, 7, classes_of(split))
    assert (len(planned), planned.per_row) == (2, per_row)
    assert planned.extra["words"].shape == (2 * per_row, *shape)
    assert planned.extra["blank"].sum() == 2 * per_row * shape[0]


def classes_of(split):
    return WORDS if split.pair is None else NUMBERS


def batch_of(kind, tokenizer, split, rows, max_length=24, width=0):
    encoded = kind.encode(split, tokenizer, max_length, classes_of(split))
    return Collator(tokenizer, kind, 0.15, 0).collate(encoded, rows, 0, width)


def masked_score(model, tokenizer, text, candidate):
    """Return the mean log-probability of a candidate whose tokens are all masked."""
    words = tokenizer(candidate, add_special_tokens=False)["input_ids"]
    masks = " ".join(["[MASK]"] * len(words))
    made = tokenizer(text.replace(BLANK, masks), return_tensors="pt")["input_ids"]
    log_p = model(input_ids=made).logits[0].log_softmax(-1)
    places = (made[0] == tokenizer.mask_token_id).nonzero().flatten()
    return log_p[places, torch.tensor(words)].mean()


def causal_score(model, tokenizer, text, candidate):
    """Return the mean log-probability of a candidate and of what follows it."""
    before, after = text.split(BLANK)
    start = tokenizer(before)["input_ids"][:-1]  # without [SEP]
    scored = tokenizer(candidate + after, add_special_tokens=False)["input_ids"]
    log_p = model(input_ids=torch.tensor([start + scored])).logits[0].log_softmax(-1)
    return log_p[len(start) - 1 : -1].gather(-1, torch.tensor(scored).unsqueeze(-1)).mean()


def unprepared(kind):
    """Return a language model as transformers makes it."""
    made = model_for(kind, NUMBERS, layers=1, seed=0)
    model = type(made)(made.config).double().eval()
    model.load_state_dict(made.state_dict())
    return model


SCORES = {"masked-cloze": masked_score, "causal-cloze": causal_score}


@pytest.fixture(params=["right", "left"])
def padded(request, tokenizer):
    """The tokenizer, which pads on one side or the other."""
    tokenizer.padding_side = request.param
    yield tokenizer
    tokenizer.padding_side = "right"


@pytest.mark.parametrize("split", [SHARED, OWN, GOES_ON], ids=["shared", "own", "goes-on"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_scores_are_mean_log_probabilities(kind, split, padded):
    plain, model = unprepared(kind), unprepared(kind)
    follow_mask(model, padded.padding_side == "left", reads_rows=False)
    kind.prepare(model, classes_of(split))
    rows = [2, 0, 1]
    with torch.no_grad():
        found = model(**batch_of(kind, padded, split, rows).inputs).logits
        for row, logits in zip(rows, found, strict=True):
            candidates = WORDS if split.pair is None else split.pair[row]
            score = SCORES[kind.name]
            expected = [score(plain, padded, split.text[row], one) for one in candidates]
            torch.testing.assert_close(logits[: len(expected)], torch.stack(expected))
            assert logits[len(expected) :].eq(-torch.inf).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_label_words_of_one_token_take_one_sequence_per_row(kind, tokenizer):
    batch = batch_of(kind, tokenizer, SHARED, [0, 1, 2])
    assert len(batch.mask) == len(batch) == 3
    assert batch.inputs["words"].shape == (3, 1, 2)
    longer = Split(TEXTS, labels=[0, 1, 1])
    encoded = kind.encode(longer, tokenizer, 24, ("yes", "no the"))
    assert (len(encoded), encoded.per_row) == (3, 2)


def test_text_after_the_blank_makes_candidates_sequences_of_their_own_in_causal_models(tokenizer):
    split = Split([f"{text} ." for text in TEXTS], labels=[0, 1, 1])
    assert CAUSAL.encode(split, tokenizer, 24, WORDS).per_row == 2
    assert MASKED.encode(split, tokenizer, 24, WORDS).per_row == 1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_head_sees_the_states_of_the_blank_only(kind, tokenizer):
    model = model_for(kind, NUMBERS, layers=1, seed=0)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[2].shape))
    batch = batch_of(kind, tokenizer, OWN, [0, 1, 2])
    direct = model(**batch.inputs).logits
    extractor = Extractor(model, find_sites(model))
    found = extractor.run(frozenset({LOGITS, Capture("hidden", 1)}), batch.inputs)
    assert seen == [(6, 4, 64)] * 2
    torch.testing.assert_close(found.prediction, direct)
    assert found[Capture("hidden", 1)].shape[:2] == batch.mask.shape
    alone = extractor.run(frozenset({Capture("hidden", 1)}), batch.inputs)
    torch.testing.assert_close(alone[Capture("hidden", 1)], found[Capture("hidden", 1)])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_context_furthest_from_the_blank_is_cut(kind, tokenizer):
    text = f"went to the old house near paris {BLANK}"
    split = Split([text], [["red", "blue car"]], [0])
    encoded = kind.encode(split, tokenizer, 8, ("0", "1"))
    words = [tokenizer.convert_ids_to_tokens(encoded.row(n)["input_ids"]) for n in (0, 1)]
    end = {"masked-cloze": ["[MASK]", "[SEP]"], "causal-cloze": ["red"]}[kind.name]
    assert words[0] == ["[CLS]", "old", "house", "near", "paris", *end]
    assert words[1][:5] == words[0][:5]
    assert encoded.num_truncated == 2
    both = Split([f"went to the old house {BLANK} near paris with anna ."], [["red"]], [0])
    encoded = kind.encode(both, tokenizer, 8, ("0",))
    kept = tokenizer.convert_ids_to_tokens(encoded.row(0)["input_ids"])
    assert kept[:4] == ["[CLS]", "the", "old", "house"]
    assert kept[5:7] == ["near", "paris"]


def read(kind, rows, **settings):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = Table(columns, range(1, len(rows) + 1), Faults("rows.jsonl"))
    return kind.read({"train": table}, TaskConfig(**settings))


def test_rows_have_label_words_or_candidates_of_their_own():
    texts = [{"text": text} for text in TEXTS]
    found = read(MASKED, [{**row, "label": one} for row, one in zip(texts, "yny", strict=True)])
    assert (found.classes, found.splits["train"].labels) == (("n", "y"), [1, 0, 1])
    assert found.splits["train"].pair is None
    rows = zip(texts, CANDIDATES, (2, 0, 1), strict=True)
    found = read(CAUSAL, [{**row, "choices": own, "label": n} for row, own, n in rows])
    assert (found.classes, found.splits["train"].pair) == (NUMBERS, CANDIDATES)
    assert MASKED.shown([1, 0], WORDS) == ["no", "yes"]
    assert MASKED.shown([1, 0], NUMBERS) == [1, 0]


def test_what_is_no_cloze_is_refused(tokenizer):
    rows = [{"text": "no blank", "label": "a"}, {"text": f"{BLANK} {BLANK}", "label": "b"}]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* 0 times .*\n.*:2: .* has 2 times"):
        read(MASKED, rows)
    with pytest.raises(DataError, match=r"has 0 times .* \(row 1 of its split\)"):
        MASKED.encode(Split(["none"], labels=[0]), tokenizer, 16, WORDS)
    with pytest.raises(DataError, match="two text columns, 'premise' and 'hypothesis'"):
        read(CAUSAL, [{"premise": BLANK, "hypothesis": "b", "choices": ["a", "b"], "label": 0}] * 2)
    with pytest.raises(DataError, match=r"no tokens for the candidate ' ' \(row 1\)"):
        MASKED.encode(Split([f"a {BLANK}"], [[" "]], [0]), tokenizer, 16, ("0",))
    with pytest.raises(DataError, match="a candidate has 5 tokens"):
        MASKED.encode(Split([f"a {BLANK}"], [["no " * 5]], [0]), tokenizer, 7, ("0",))
    with pytest.raises(ConfigError, match="bert is an encoder, which sees the very tokens"):
        CAUSAL.check_model(BertConfig(), "teacher.model")
    CAUSAL.check_model(LlamaConfig(), "teacher.model")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_likeliest_candidate_is_predicted(kind, tokenizer):
    model = model_for(kind, NUMBERS, layers=1, seed=0)
    encoded = kind.encode(OWN, tokenizer, 24, NUMBERS)
    collator = Collator(tokenizer, kind, 0.15, 0)
    found = evaluate(model, encoded, collator, kind, torch.device("cpu"))
    scores = torch.stack(
        [model(**batch_of(kind, tokenizer, OWN, [n]).inputs).logits[0] for n in range(3)]
    )
    assert found.predictions.tolist() == scores.argmax(-1).tolist()
    expected = torch.nn.functional.cross_entropy(scores.detach(), torch.tensor(OWN.labels))
    assert found.metrics["loss"] == pytest.approx(expected.item(), abs=1e-6)


METHODS = [n for n, m in registry().methods.items() if MASKED.counts_as(m.kinds)]


@pytest.mark.parametrize("split", [SHARED, OWN], ids=["shared", "own"])
@pytest.mark.parametrize("name", METHODS)
def test_methods_work_on_scores_states_and_attention(name, split, tokenizer):
    trial = MethodTrial(registry().method(name), {}, "masked-cloze")
    rows = range(3) if split is OWN else [0, 1]
    batch = batch_of(MASKED, tokenizer, split, list(rows))
    counts = batch.counts()
    whole = trial.gradient([batch], counts)
    assert whole.isfinite().all()
    assert whole.abs().sum() > 0
    parts = [batch_of(MASKED, tokenizer, split, [row]) for row in rows]
    torch.testing.assert_close(trial.gradient(parts, counts), whole, rtol=1e-7, atol=1e-10)
