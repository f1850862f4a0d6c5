"""Families of models do what docs/reference/families.toml says, which the documentation prints.

A use that is refused is refused as the run is prepared: before anything is trained or written.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from gkd_core.errors import GkdError
from gkd_core.models.load import load_teacher
from gkd_core.models.quiet import quiet
from gkd_core.models.save import save_model
from gkd_core.plugins import registry
from gkd_core.training.assembly import build_stage

TABLE = tomllib.loads(
    (Path(__file__).parents[3] / "docs/reference/families.toml").read_text(encoding="utf-8")
)
ENCODERS = ("bert", "roberta", "distilbert", "albert", "electra", "deberta-v2", "modernbert")
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 34,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
DEBERTA_V3 = {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 8,
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_size": 32,
}
OWN = {
    "squeezebert": {"embedding_size": 32},
    "eurobert": {"num_key_value_heads": 4},
    "distilbert": {"hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "deberta-v2": DEBERTA_V3,
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "llama": GROUPED,
    "qwen3": GROUPED,
    "qwen3_moe": GROUPED
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gemma3_text": GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "glm4": GROUPED,
}
"""What the configuration of a family needs besides the shape, or another than its default."""

QUICK = ("deberta-v2", "gpt_neox", "qwen3_moe", "albert", "mamba", "t5")
"""One family for each kind of block that no other test of `make test` trains."""


def _config(family, words):
    """A small configuration without dropout."""
    usual = AutoConfig.for_model(family)
    still = {name: 0.0 for name in usual.to_dict() if "drop" in name and name != "layerdrop"}
    shape = {name: value for name, value in SHAPE.items() if hasattr(usual, name)}
    return AutoConfig.for_model(family, **(still | shape | OWN.get(family, {})), vocab_size=words)


def _write_model(folder, tokenizer, family, kind):
    config = _config(family, len(tokenizer))
    tokenizer.save_pretrained(folder)
    if type(config) not in kind.configs:
        config.save_pretrained(folder)
        return
    kind.configure(config, ("neg", "pos"))
    torch.manual_seed(0)
    model = kind.auto.from_config(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, float("norm" in name.lower()), 0.2)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def teacher(world, tmp_path_factory):
    """Write a teacher: `teacher(family, kind)` -> its directory.

    A family without a head of this kind has a configuration only."""
    folder = tmp_path_factory.mktemp("families")
    tokenizer = AutoTokenizer.from_pretrained(world / "teacher")

    def _teacher(family, kind):
        path = folder / f"{family}-{kind}"
        if not path.exists():
            with quiet():
                _write_model(path, tokenizer, family, registry().kind(kind))
        return path

    return _teacher


def explained(run, folder):
    (stage,) = run.outline.stages
    assert [one.stops_after for one in stage.passes] == ["the logits"] * 2


def _losses(run):
    """The loss terms of each step."""
    rows = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
    steps = [{n: v for n, v in row.items() if n.startswith("loss/")} for row in rows]
    return [step for step in steps if step]


def trained(run, folder):
    run.execute()
    losses = [loss for step in _losses(run) for loss in step.values()]
    assert losses
    assert all(map(math.isfinite, losses))


def equal(run, folder):
    run.execute()
    assert max(_losses(run)[0].values()) < 1e-6


def saved(run, folder):
    """The student is the same model when it is loaded again, and gkd reads it as a teacher."""
    (spec,) = run.specs
    student = build_stage(spec, registry(), folder / "stage", None).student.model.eval()
    save_model(student, spec.tokenizer, folder / "saved")
    loaded = load_teacher(str(folder / "saved"), spec.kind, spec.data.classes, False, "teacher")
    tokens = torch.arange(5, 21).view(2, 8)
    torch.testing.assert_close(loaded(tokens).logits, student(tokens).logits, rtol=0, atol=0)


USES = {
    "explain": (explained, ["method=soft"]),
    "soft": (trained, ["method=soft"]),
    "pkd+soft": (trained, ["method=pkd+soft"]),
    "minilm": (trained, ["method=minilm"]),
    "match": (trained, ["method=match"]),
    "narrower": (trained, ["method=soft", "student.hidden_size=16"]),
    "identity": (equal, ["student.layers=all"]),
    "again": (saved, ["method=soft"]),
}
METHODS = ("soft", "pkd", "match", "minilm")


def test_every_use_of_the_table_is_tried():
    assert list(USES) == list(TABLE["uses"])


def _cases():
    for family in TABLE["families"]:
        lm = "masked-lm" if family in ENCODERS else "causal-lm"
        for kind in (lm, "classification"):
            marks = () if family in QUICK and kind == lm else pytest.mark.exhaustive
            for use in USES:
                yield pytest.param(family, kind, use, marks=marks, id=f"{family}-{kind}-{use}")


@pytest.mark.parametrize(("family", "kind", "use"), list(_cases()))
def test_family_can_be_used_as_the_table_says(teacher, prepare_run, tmp_path, family, kind, use):
    refused = TABLE["families"][family].get("refused", {})
    check, settings = USES[use]
    able = [method for method in METHODS if method not in refused]
    methods = [f"method={'+'.join(able)}", *settings] if use == "identity" else settings
    given = [f"task.kind={kind}", "training.steps=2", "training.log_every=1", *methods]
    path = str(teacher(family, kind))
    reason = refused.get(use, refused.get("all"))
    if reason is not None:
        with pytest.raises(GkdError, match=re.escape(reason)):
            prepare_run(*given, teachers=(path,))
        return
    check(prepare_run(*given, teachers=(path,)), tmp_path)


@pytest.mark.parametrize(
    ("family", "method", "reason"),
    [
        ("squeezebert", "pkd", "does not call its blocks as modules"),
        ("eurobert", "match", "classifies more than one vector of a row"),
    ],
)
def test_states_that_no_hook_sees_are_refused_before_the_run(
    teacher, prepare_run, family, method, reason
):
    pooled = "match.terms=[{ site = 'pooled', distance = 'mse' }]"
    with pytest.raises(GkdError, match=rf"reads \w+\.\w+.*, but .*{reason}"):
        prepare_run(
            "task.kind=classification",
            f"method={method}",
            *([pooled] if method == "match" else []),
            teachers=(str(teacher(family, "classification")),),
        )


def test_what_a_later_stage_cannot_do_is_refused_before_the_first(teacher, prepare_run):
    stages = ["stages.0.name=one", "stages.1.name=two", "stages.1.method=minilm"]
    with pytest.raises(GkdError, match=r"minilm reads teacher\.attention\[3\], but transformers"):
        prepare_run(
            "task.kind=masked-lm",
            "method=soft",
            *stages,
            teachers=(str(teacher("deberta-v2", "masked-lm")),),
        )
