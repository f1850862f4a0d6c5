"""Positions of a model, as its configuration gives them: the longest sequence, the first number."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NO_LIMIT = 2**31
"""Longest sequence of a model that takes any."""

NUMBERED_AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Model types whose first token has the position `pad_token_id + 1`, as in RoBERTa."""


def first_position(config: PretrainedConfig) -> int:
    """Return the position of the first token: 0, or `pad_token_id + 1` as in RoBERTa.

    Args:
        config: The model's configuration; it may be derived from one that transformers has.
    """
    families = {getattr(base, "model_type", "") for base in type(config).__mro__}
    return 0 if families.isdisjoint(NUMBERED_AFTER_PADDING) else (config.pad_token_id or 0) + 1


def longest_sequence(config: PretrainedConfig) -> int:
    """Return the longest sequence that a model can read; `NO_LIMIT` if it can read any.

    Args:
        config: The model's configuration. No number, or one below 1 as in XLNet, means no limit.
    """
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None or positions < 1:
        return NO_LIMIT
    return positions - first_position(config)
