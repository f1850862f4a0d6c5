"""Which token a server means that names tokens by their text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def tokens_by_text(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the id of each token by its text, as decoders write it alone.

    Raises:
        ConfigError: The texts of two tokens are equal, or would be without the spaces around
            them, which some decoders leave out.
    """
    ids = sorted(set(tokenizer.get_vocab().values()))
    decode = tokenizer.backend_tokenizer.decode_batch
    texts = decode([[token] for token in ids], skip_special_tokens=False)
    first: dict[str, int] = {}
    for token, text in zip(ids, texts, strict=True):
        other = first.setdefault(text.strip() or text, token)
        if other != token:
            raise ConfigError(
                f"the server of the teacher names tokens by their text, from which the tokens "
                f"{other} and {token} of its tokenizer cannot be told apart ({text!r}). Serve it "
                "with vLLM, or by a server that names tokens by id (return_tokens_as_token_ids)"
            )
    return dict(zip(texts, ids, strict=True))
