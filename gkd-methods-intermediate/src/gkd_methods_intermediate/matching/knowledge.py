"""The sites and distances of `match`, and the knowledge types named in the literature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Knowledge = Literal[
    "logits-ce",
    "logits-mse",
    "attention-mse",
    "attention-mse-sum",
    "attention-ce",
    "attention-ce-mean",
    "hidden-mse",
    "hidden-cosine",
    "hidden-pkd",
    "hidden-gram",
    "hidden-nst",
    "query-relation",
    "key-relation",
    "value-relation",
    "custom",
]
Site = Literal[
    "hidden",
    "embedding",
    "normed",
    "context",
    "ffn",
    "pooled",
    "query",
    "key",
    "value",
    "attention",
    "logits",
]
Products = Literal["none", "channels", "tokens"]
Distance = Literal[
    "mse",
    "huber",
    "cosine",
    "normalized",
    "kl",
    "reverse-kl",
    "js",
    "total-variation",
    "cross-entropy",
]
ComparedPositions = Literal["tokens", "targets", "cls", "mean"]
HeadTreatment = Literal["auto", "each", "merged", "mean", "sum"]
Activation = Literal["auto", "none", "linear", "relu", "tanh"]
Assigned = Literal["emd", "monotone"]

LAYERED: tuple[Site, ...] = ("hidden", "context", "ffn", "query", "key", "value", "attention")
HEADED: tuple[Site, ...] = ("query", "key", "value")
"""Sites whose tensors are split into heads."""
REDUCIBLE: tuple[Site, ...] = ("hidden", "embedding", "normed", "context", "ffn")
"""Sites that can be reduced to one vector per sample."""
DIVERGENCES: tuple[Distance, ...] = ("kl", "reverse-kl", "js", "total-variation", "cross-entropy")
"""Distances between distributions; the others compare vectors."""

PRESETS: Mapping[Knowledge, Mapping[str, Any]] = {
    "logits-ce": {"site": "logits", "distance": "cross-entropy"},
    "logits-mse": {"site": "logits", "distance": "mse"},
    "attention-mse": {"site": "attention", "distance": "mse", "heads": "each"},
    "attention-mse-sum": {"site": "attention", "distance": "mse", "heads": "sum"},
    "attention-ce": {"site": "attention", "distance": "cross-entropy", "heads": "each"},
    "attention-ce-mean": {"site": "attention", "distance": "cross-entropy", "heads": "mean"},
    "hidden-mse": {"site": "hidden", "relation": "none", "distance": "mse", "embedding": True},
    "hidden-cosine": {"site": "hidden", "relation": "none", "distance": "cosine"},
    "hidden-pkd": {
        "site": "hidden",
        "relation": "none",
        "distance": "normalized",
        "positions": "cls",
    },
    "hidden-gram": {"site": "hidden", "relation": "channels", "distance": "mse", "embedding": True},
    "hidden-nst": {
        "site": "hidden",
        "relation": "tokens",
        "distance": "mse",
        "heads": "merged",
        "embedding": True,
    },
    "query-relation": {"site": "query", "relation": "tokens", "distance": "kl"},
    "key-relation": {"site": "key", "relation": "tokens", "distance": "kl"},
    "value-relation": {"site": "value", "relation": "tokens", "distance": "kl"},
    "custom": {},
}
"""The options that each knowledge type sets."""

FIXED = ("site", "relation", "distance", "heads")
"""Options that define a knowledge type; the other options of a preset can be changed."""
