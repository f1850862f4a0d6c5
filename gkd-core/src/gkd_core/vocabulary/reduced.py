"""`ReducedVocabulary`: the tokens of a teacher that its student has, and their ids."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gkd_core.contract.positions import first_position
from gkd_core.errors import ConfigError
from gkd_core.models.tokenizer import PROBE
from gkd_core.vocabulary.pieces import UNUSED, Pieces, read_pieces
from gkd_core.vocabulary.rewrite import describe, rewritten
from gkd_core.vocabulary.weights import named_tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

SETTING = "student.vocabulary"


@dataclass(frozen=True, eq=False)
class ReducedVocabulary:
    """Some of the tokens of a tokenizer, numbered from 0 in their order.

    Attributes:
        origin: The tokenizer with all tokens.
        tokenizer: The tokenizer that has only these.
        kept: Their ids in `origin`, ascending: no two tokens are one.
        used: How many of them occur in the texts of the run.
    """

    origin: PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast
    kept: Sequence[int]
    used: int

    def __str__(self) -> str:
        return (
            f"{len(self.kept):,} of the teacher's {len(self.origin):,} tokens; the texts of the "
            f"run have {self.used:,} of them"
        )


def reduce_vocabulary(
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainedConfig,
    used: Collection[int],
    size: int,
    origin: str,
) -> ReducedVocabulary:
    """Return a vocabulary that splits the texts of a run as a tokenizer does.

    It has the tokens of these texts and those that these need, special tokens, the bytes or ASCII
    characters that spell other words, and of the rest those of the lowest ids: most vocabularies
    are in the order of frequency.

    Args:
        tokenizer: The tokenizer.
        config: The configuration of its model.
        used: The ids of the tokens of the texts.
        size: The number of tokens to keep.
        origin: The setting that names the model.

    Raises:
        ConfigError: The size is too small or too large, or the tokenizer cannot be cut.
    """
    pieces = read_pieces(describe(tokenizer), origin)
    special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    for ids in named_tokens(config).values():
        special.update(one for one in ids if one < len(tokenizer))
    needed = pieces.closed({*used, *special, *pieces.alphabet()})
    if size < len(needed):
        raise ConfigError(
            f"{SETTING} = {size} is too small: the texts of the run have {len(used):,} different "
            f"tokens of {origin}, which with the special ones, those of single characters, and "
            f"those that they are merged from are {len(needed):,}. Set it to {len(needed)} or more"
        )
    if size > len(tokenizer):
        raise ConfigError(
            f"{SETTING} = {size} is larger than the vocabulary of {origin}, which has "
            f"{len(tokenizer)} tokens. Set it to less, or omit it"
        )
    kept = sorted(_filled(needed, pieces, size))
    _check_positions(config, tokenizer, kept, origin)
    made = rewritten(tokenizer, pieces, kept)
    check_held_out(tokenizer, made, kept, held_out_texts(), origin)
    return ReducedVocabulary(tokenizer, made, tuple(kept), len(used))


def _filled(needed: Collection[int], pieces: Pieces, size: int) -> set[int]:
    """Return the tokens that are needed, and others in the order of their ids up to a number."""
    found = set(needed)
    others = ((number, token) for token, number in pieces.ids.items() if number not in found)
    reserved = []
    for number, token in sorted(others):
        if len(found) == size:
            break
        if UNUSED.fullmatch(token):
            reserved.append(number)
            continue
        more = pieces.closed({number}) - found
        if len(found) + len(more) <= size:
            found |= more
    return {*found, *reserved[: size - len(found)]}


def _check_positions(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, kept: Sequence[int], origin: str
) -> None:
    """Reject a model that counts positions from a padding token whose id would change."""
    pad = tokenizer.pad_token_id
    if first_position(config) and (pad >= len(kept) or kept[pad] != pad):
        raise ConfigError(
            f"{SETTING} would change the id of the padding token of {origin} ({pad}), from which "
            f"{config.model_type} models count positions. Omit the setting"
        )


def held_out_texts() -> list[str]:
    """Return texts that no run is likely to have: of Python's own functions."""
    documented = (inspect.getdoc(value) for _, value in sorted(vars(builtins).items()))
    return [PROBE, *filter(None, documented)]


def check_held_out(
    whole: PreTrainedTokenizerFast,
    reduced: PreTrainedTokenizerFast,
    kept: Sequence[int],
    texts: Iterable[str],
    origin: str,
) -> None:
    """Reject a tokenizer that loses something of a text that the whole one does not.

    Texts with a token for unknown words are passed over: what a word without tokens is, is lost.

    Raises:
        ConfigError: A text is another when it is read back.
    """
    for text in texts:
        ids = reduced(text, add_special_tokens=False, verbose=False)["input_ids"]
        if reduced.unk_token_id is not None and reduced.unk_token_id in ids:
            continue
        known = whole.decode(whole(text, add_special_tokens=False, verbose=False)["input_ids"])
        if known != reduced.decode(ids) or known != whole.decode([kept[one] for one in ids]):
            raise ConfigError(
                f"{SETTING}: the tokenizer of {origin} reads {text[:60]!r} back as "
                f"{reduced.decode(ids)[:60]!r} with fewer tokens, so it cannot be cut. Omit the "
                "setting"
            )
