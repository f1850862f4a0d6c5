"""Packing: blocks of several rows, whose tokens see their own row only."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from gkd_core.contract.batch import IGNORE
from gkd_core.contract.task import Split
from gkd_core.data import encode
from gkd_core.data import pack as packing
from gkd_core.data.collate import Collator
from gkd_core.data.encode import Encoded
from gkd_core.data.pack import best_fit, pack
from gkd_core.errors import ConfigError
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.packing import packing_obstacle
from gkd_core.hooks.paths import LOGITS
from gkd_core.kinds.causal_lm import CausalLM
from gkd_core.losses import cross_entropy, kl
from gkd_core.models.sites import find_sites
from gkd_core.models.tokenizer import load_tokenizer
from gkd_core.training.assembly import build_stage

CAUSAL = CausalLM()


def blocks_of(lengths, size):
    order, counts = best_fit(np.array(lengths), size)
    return [block.tolist() for block in np.split(order, np.cumsum(counts)[:-1])]


def test_best_fit_leaves_the_least_room():
    assert blocks_of([5, 3, 6, 2, 4], 8) == [[2, 3], [0, 1], [4]]
    assert blocks_of([8, 8, 1], 8) == [[0], [1], [2]]
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 65, 500).tolist()
    blocks = blocks_of(lengths, 64)
    assert sorted(row for block in blocks for row in block) == list(range(500))
    assert all(sum(lengths[row] for row in block) <= 64 for block in blocks)
    assert len(blocks) <= 11 / 9 * sum(lengths) / 64 + 1


PACKED = {
    True: (
        [0, 8, 16, 20],
        [*range(8, 16), *range(8), *range(16, 20)],
        [*range(6), *range(2), *range(5), *range(3), *range(4)],
    ),
    False: (
        [0, 7, 14, 20],
        [*range(20)],
        [*range(5), *range(2), *range(1), *range(6), *range(2), *range(4)],
    ),
}
"""Where blocks begin, their tokens and the places of these, for rows of 5, 3, 6, 2 and 4 tokens."""


@pytest.mark.parametrize("whole", PACKED)
@pytest.mark.parametrize("chunk", [2, 1000])
def test_packed_rows_have_the_tokens_and_places_of_their_blocks(monkeypatch, whole, chunk):
    monkeypatch.setattr(packing, "CHUNK", chunk)
    ids = np.arange(20, dtype=np.int32)
    offsets = np.cumsum([0, 5, 3, 6, 2, 4])
    learned = ids % 3 == 0
    plain = Encoded(ids, None, offsets, None, num_truncated=1, learned=learned, extra={"any": 1})
    packed = pack(plain, 8 if whole else 7, whole)
    bounds, tokens, places = PACKED[whole]
    assert packed.offsets.tolist() == bounds
    assert packed.ids.tolist() == tokens
    assert packed.positions.tolist() == places
    assert packed.learned.tolist() == [token % 3 == 0 for token in tokens]
    assert packed.ids.dtype == packed.positions.dtype == np.int32
    assert (packed.num_packed, packed.num_truncated, packed.extra) == (5, 1, {})


@pytest.mark.parametrize("chunk", [2, 1000])
def test_prompts_end_with_the_first_token_that_is_learned(monkeypatch, chunk):
    monkeypatch.setattr(encode, "CHUNK", chunk)
    offsets = np.cumsum([0, 5, 1, 2, 0, 2])
    learned = np.array([0, 0, 1, 0, 1, 1, 0, 0, 0, 1], bool)
    ids = np.zeros(len(learned), np.int32)
    assert Encoded(ids, None, offsets, None, 0, learned=learned).prompts.tolist() == [2, 0, 2, 0, 1]


@pytest.fixture(scope="module")
def tokenizer(world):
    return load_tokenizer(str(world / "lm-decoder"), False, "teacher.model")


@pytest.fixture(scope="module")
def rows(world):
    lines = (world / "corpus.txt").read_text().splitlines()[:12]
    return {
        "texts": Split(lines),
        "targets": Split(lines, target=[line.split()[0] for line in lines]),
    }


@pytest.mark.parametrize("whole", [True, False])
def test_packing_keeps_every_token_once(rows, tokenizer, whole):
    plain = CAUSAL.encode(rows["texts"], tokenizer, 24)
    packed = pack(plain, 24, whole)
    assert packed.num_packed == len(plain) > len(packed)
    assert sorted(packed.ids.tolist()) == sorted(plain.ids.tolist())
    if not whole:
        assert packed.ids.tolist() == plain.ids.tolist()
        assert set(packed.lengths[:-1].tolist()) == {24}
    assert packed.lengths.max() <= 24
    for block in range(len(packed)):
        positions = packed.positions[packed.part(block)]
        assert positions[0] == 0
        steps = np.diff(positions)
        assert np.all((steps == 1) | (positions[1:] == 0))


FAMILIES = ["gpt2", "qwen3", "gemma3_text", "gpt_neox"]


@pytest.mark.parametrize("content", ["texts", "targets"])
@pytest.mark.parametrize(
    "family",
    ["llama", "mistral", *(pytest.param(f, marks=pytest.mark.exhaustive) for f in FAMILIES)],
)
def test_a_packed_row_gives_the_losses_of_its_parts(build_model, rows, tokenizer, family, content):
    """Values, in whatever order, and their gradients; also where attention sees a window only."""
    model = build_model(family, "causal-lm").double()
    other = build_model(family, "causal-lm", num_hidden_layers=2).double()
    plain = CAUSAL.encode(rows[content], tokenizer, 24)
    packed = pack(plain, 24, whole=True)
    collator = Collator(tokenizer, CAUSAL, 0.15, 1)
    found = {}
    for name, encoded in (("plain", plain), ("packed", packed)):
        batch = collator.collate(encoded, range(len(encoded)), 0)
        logits, known = (
            Extractor(each, find_sites(each)).run({LOGITS}, batch.inputs).prediction
            for each in (model, other)
        )
        losses = kl(logits, known, batch.targets) + cross_entropy(
            logits, batch.labels, batch.targets
        )
        model.zero_grad()
        losses.mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        counted = losses.values[batch.targets.mask].sort().values
        found[name] = counted, losses.mean(), gradient
    for one, other_one in zip(found["plain"], found["packed"], strict=True):
        # Gemma normalizes in float32 whatever the model computes in.
        tolerance = 1e-5 if family == "gemma3_text" else 1e-9
        torch.testing.assert_close(one, other_one, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("opt", "its attention mask does not follow"), ("bloom", "it takes no position_ids")],
)
def test_a_model_that_mixes_packed_rows_is_known(build_model, family, reason):
    assert reason in packing_obstacle(build_model(family, "causal-lm"))


def test_labels_end_with_each_row(rows, tokenizer):
    plain = CAUSAL.encode(rows["texts"], tokenizer, 24)
    collator = Collator(tokenizer, CAUSAL, 0.15, 1)
    counts = [
        collator.collate(each, range(len(each)), 0).targets.count
        for each in (plain, pack(plain, 24, whole=True))
    ]
    assert counts[0] == counts[1] == len(plain.ids) - len(plain)
    batch = collator.collate(pack(plain, 24, whole=True), [0], 0)
    ends = batch.inputs["position_ids"][0].roll(-1) == 0
    assert (batch.labels[0][ends] == IGNORE).all()


def given(world):
    return [f"task.{name}={world / 'corpus.txt'}" for name in ("train", "validation", "test")]


def test_a_packed_run_says_how_full_its_blocks_are(prepare_run, world):
    run = prepare_run(
        *given(world), "method=soft+hard", "task.packing=true", teachers=("lm-decoder",)
    )
    stage = build_stage(run.last, run.registry, run.directory / "stage", None)
    told = "\n".join(stage.describe())
    assert f"96 packed into {len(stage.train):,} blocks, 9" in told
    assert stage.validation.positions is None
    run.execute()
    logged = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
    assert any("validation/perplexity" in line for line in logged)


@pytest.mark.parametrize(
    ("teacher", "settings", "reason"),
    [
        ("lm-decoder", ["method=minilm"], r"minilm reads student\.\w+\[\d\], which relates all"),
        ("lm-decoder", ["method=pkd"], "pkd reads student.hidden"),
        (
            "lm-decoder",
            ["method=uncertainty(soft)", "uncertainty.share=0.5"],
            "uncertainty may weigh",
        ),
        ("lm-decoder", ["method=gold"], "gold aligns tokens by their place in the text"),
        ("lm-decoder", ["method=soft+uld"], "uld aligns tokens by their place in the text"),
        ("lm-teacher", ["method=soft"], "task.kind is masked-lm, and only causal-lm reads them"),
    ],
)
def test_what_packing_does_not_go_with_is_refused(prepare_run, world, teacher, settings, reason):
    with pytest.raises(ConfigError, match=f"puts several rows into one, but .*{reason}"):
        prepare_run(*given(world), *settings, "task.packing=true", teachers=(teacher,))
