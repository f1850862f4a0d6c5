"""Loading of tokenizers, and checks against each other and against a model."""

from __future__ import annotations

import re

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from gkd_core.contract.positions import first_position
from gkd_core.errors import ConfigError
from gkd_core.kinds.language_model import sees_both_sides
from gkd_core.models.quiet import quiet
from gkd_core.models.source import load_config, locate

PROBE = "The 2nd Café isn't OPEN: e.g. naïve_tests, 3.14%  (see 漢字)"
SPECIAL = ("pad", "bos", "eos", "cls", "sep", "unk")
"""Roles of tokens that do not change what the ids of a text mean."""

TEMPLATE_NAME = re.compile(r"[\w-][\w.-]*")


def load_tokenizer(model: str, trust_remote_code: bool, origin: str) -> PreTrainedTokenizerFast:
    """Load a model's fast tokenizer; without a padding token, end-of-sequence serves as one.

    Args:
        model: Directory or hub id.
        trust_remote_code: Whether to run code that comes with the checkpoint.
        origin: Setting that named the model, such as `teacher.model`, for messages.

    Raises:
        ConfigError: There is no tokenizer, only a slow one, or no token to pad with.
    """
    config = load_config(model, trust_remote_code, origin)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                locate(model, origin), config=config, trust_remote_code=trust_remote_code
            )
    except ConfigError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a bad file
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"the tokenizer of {origin} = {model!r} cannot be loaded: {reason}"
        ) from error
    # Without tokenizer files, transformers returns an empty one.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ConfigError(
            f"{origin} = {model!r} has no tokenizer; save one into the directory with "
            "`tokenizer.save_pretrained`"
        )
    if not tokenizer.is_fast:
        raise ConfigError(f"{origin} = {model!r} has no fast tokenizer (tokenizer.json)")
    _refuse_places(tokenizer, model, origin)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ConfigError(
            f"the tokenizer of {origin} = {model!r} has neither a padding nor an end-of-sequence "
            "token, so texts cannot be padded; set `pad_token` in its tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    side = _padding_side(tokenizer, config)
    if tokenizer.padding_side != side:
        # What is saved with the student are the arguments that the tokenizer was made with.
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = side
    return tokenizer


def _refuse_places(tokenizer: PreTrainedTokenizerFast, model: str, origin: str) -> None:
    """Reject chat templates whose names would be paths when they are saved with the student."""
    templates = tokenizer.chat_template
    foreign = [name for name in templates or () if not TEMPLATE_NAME.fullmatch(str(name))]
    if isinstance(templates, dict) and foreign:
        raise ConfigError(
            f"the tokenizer of {origin} = {model!r} has a chat template with the name "
            f"{foreign[0]!r}, which cannot be that of a file; change it in its "
            "tokenizer_config.json"
        )


def _padding_side(tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig) -> str:
    """Return the side on which a model can read padding, whatever the tokenizer says.

    Heads of encoders read the first column, but that of XLNet the last. Decoders follow the mask.
    """
    if getattr(config, "summary_type", None) == "last":
        return "left"
    return "right" if sees_both_sides(config) else str(tokenizer.padding_side)


def tokenizer_mismatch(
    first: PreTrainedTokenizerFast, second: PreTrainedTokenizerFast
) -> str | None:
    """Describe how the ids of two tokenizers differ, or return None if each means the same.

    Compares the tokens and their ids, the mask token, and how a probe text is split.
    """
    here, there = first.get_vocab(), second.get_vocab()
    if len(here) != len(there):
        return f"one has {len(here)} tokens, the other {len(there)}"
    different = [token for token in here if here[token] != there.get(token)]
    if different:
        token = min(different, key=here.__getitem__)
        other = f"id {there[token]}" if token in there else "missing"
        return (
            f"{len(different)} of {len(here)} tokens differ; {token!r} is id {here[token]} in one "
            f"and {other} in the other"
        )
    if first.mask_token != second.mask_token:
        mine, theirs = first.mask_token, second.mask_token
        return f"the mask token is {mine!r} in one and {theirs!r} in the other"
    one, other = (tokenizer(PROBE)["input_ids"] for tokenizer in (first, second))
    if one == other:
        return None
    inner = [t(PROBE, add_special_tokens=False)["input_ids"] for t in (first, second)]
    if inner[0] != inner[1]:
        return f"the same tokens, but they split {PROBE!r} differently"
    frames = [" ".join(map(str, _frame(*pair))) for pair in ((first, one), (second, other))]
    return f"the same tokens, but a text is {frames[0]} in one and {frames[1]} in the other"


def _frame(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    """Return the special tokens around a text."""
    text = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    before = next((n for n in range(len(ids)) if ids[n : n + len(text)] == text), 0)
    tokens = tokenizer.convert_ids_to_tokens
    return [*tokens(ids[:before]), "TEXT", *tokens(ids[before + len(text) :])]


def token_texts(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """Return the text that each token id stands for where it follows another token.

    It is that of the decoder: ` film` is `Ġfilm` in a byte-level vocabulary, `▁film` in one of
    SentencePiece, and `film` in WordPiece, whose `##film` is `film`. Special tokens, parts of a
    character and ids without a token have none.
    """
    decode = tokenizer.backend_tokenizer.decode_batch
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    first = len(decode([before], skip_special_tokens=False)[0])
    ids = sorted(tokenizer.get_vocab().values())
    decoded = decode([[*before, token] for token in ids], skip_special_tokens=False)
    special = set(tokenizer.all_special_ids)
    texts = {
        token: text[first:]
        for token, text in zip(ids, decoded, strict=True)
        if token not in special and "\ufffd" not in text
    }
    return tuple(texts.get(token, "") for token in range(ids[-1] + 1))


def other_special_tokens(
    tokenizer: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast
) -> list[str]:
    """Return the special tokens of a tokenizer that another of the same ids has differently."""
    names = (f"{role}_token" for role in SPECIAL)
    return [
        f"{name} {getattr(tokenizer, name)!r}, not {getattr(other, name)!r}"
        for name in names
        if getattr(tokenizer, name) != getattr(other, name)
    ]


def check_vocabulary(
    tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig, origin: str
) -> None:
    """Reject a tokenizer with ids that the model has no embedding for.

    A vocabulary that skips ids may have been counted when the embedding was made; whether texts
    hold the tokens beyond it shows when they are encoded.

    Raises:
        ConfigError: It has more tokens than the embedding, or a special one beyond it.
    """
    vocabulary, rows = tokenizer.get_vocab(), config.vocab_size
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if len(vocabulary) > rows or max(tokenizer.all_special_ids, default=0) >= rows:
        raise ConfigError(
            f"the tokenizer does not fit the model ({origin}): its largest token id is {largest} "
            f"({token!r}), but the embedding has {config.vocab_size} rows (ids up to "
            f"{config.vocab_size - 1}); use the tokenizer the model was trained with"
        )


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Set the padding token of a model to be trained, and saved, to that of its tokenizer.

    Decoder classifiers read the last token before padding. A model that counts its positions from
    its padding token keeps it.
    """
    embedding, token = model.get_input_embeddings(), tokenizer.pad_token_id
    if token == tokenizer.eos_token_id or getattr(embedding, "padding_idx", None) != token:
        # The padding row of an embedding gets no gradient, but a token of the text has to learn.
        embedding.padding_idx = None
    if first_position(model.config) == 0:
        model.config.pad_token_id = token
