"""Rewriting of a tokenizer for fewer tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gkd_core.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gkd_core.vocabulary.pieces import Pieces

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
FRAMES = ("sep", "cls")
"""The places where post-processors of BERT and RoBERTa name a token and its id."""


def describe(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the content of a tokenizer's `tokenizer.json`."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found


def rewritten(
    tokenizer: PreTrainedTokenizerFast, pieces: Pieces, kept: Sequence[int]
) -> PreTrainedTokenizerFast:
    """Return a tokenizer like another with some of its tokens, numbered from 0.

    It is written and read again, so that it is what the student's directory will hold.

    Args:
        tokenizer: The other; it stays as it is.
        pieces: Its algorithm.
        kept: The ids of the tokens that stay, ascending.
    """
    new = {old: number for number, old in enumerate(kept)}
    with TemporaryDirectory() as folder, quiet():
        tokenizer.save_pretrained(folder)
        place, settings = Path(folder, FILE), Path(folder, CONFIG)
        place.write_text(json.dumps(_renumbered(describe(tokenizer), pieces, new)))
        given = json.loads(settings.read_text())
        if "added_tokens_decoder" in given:
            given["added_tokens_decoder"] = {
                str(new[int(old)]): token for old, token in given["added_tokens_decoder"].items()
            }
        settings.write_text(json.dumps(given))
        made: PreTrainedTokenizerFast = type(tokenizer).from_pretrained(folder)
    made.name_or_path = tokenizer.name_or_path
    made.padding_side = made.init_kwargs["padding_side"] = tokenizer.padding_side
    return made


def _renumbered(
    description: Mapping[str, Any], pieces: Pieces, new: Mapping[int, int]
) -> dict[str, Any]:
    """Return the content of `tokenizer.json` with new ids."""
    made = {**description, "model": pieces.cut(new)}
    made["added_tokens"] = [
        {**token, "id": new[token["id"]]} for token in description["added_tokens"]
    ]
    made["post_processor"] = _reframed(description["post_processor"], new)
    if description.get("padding") is not None:
        padding = description["padding"]
        made["padding"] = {**padding, "pad_id": new[padding["pad_id"]]}
    return made


def _reframed(step: dict[str, Any] | None, new: Mapping[int, int]) -> dict[str, Any] | None:
    """Return the step that puts special tokens around a text, with new ids."""
    if step is None:
        return None
    made = dict(step)
    if "processors" in step:
        made["processors"] = [_reframed(inner, new) for inner in step["processors"]]
    if isinstance(step.get("special_tokens"), dict):
        made["special_tokens"] = {
            name: {**token, "ids": [new[number] for number in token["ids"]]}
            for name, token in step["special_tokens"].items()
        }
    for name in FRAMES:
        if name in step:
            token, number = step[name]
            made[name] = [token, new[number]]
    return made
