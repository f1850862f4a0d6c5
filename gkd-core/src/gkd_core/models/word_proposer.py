"""`MaskedProposer`: a masked language model that proposes words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gkd_core.contract.positions import longest_sequence
from gkd_core.data.augment import Word
from gkd_core.data.words import Words

LOGITS = 2**26
"""Logits computed at a time: 256 MiB."""


class MaskedProposer:
    """Proposes the words that a masked language model finds most likely at a position.

    Words of several tokens are left as they are, because one mask stands for one token; so are
    numbers and punctuation. Candidates are whole words of letters other than the word itself.

    Args:
        model: The language model, in evaluation mode.
        tokenizer: Its tokenizer.
        number: Number of candidates per word.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, number: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.number = number
        self._words = Words(tokenizer)
        self._spelling = [_spelling(tokenizer, token) for token in range(len(self._words.starts))]
        whole = self._words.starts & np.array([word.isalpha() for word in self._spelling])
        self._forbidden = torch.ones(int(model.config.vocab_size), dtype=torch.bool)
        self._forbidden[: len(whole)] = torch.from_numpy(~whole)
        self._length = min(longest_sequence(model.config), tokenizer.model_max_length)

    def words(self, texts: Sequence[str]) -> list[list[Word]]:
        """Return the single-token words of each text, in order."""
        made = self._encode(texts)
        return [
            list(self._of_text(text, ids, offsets))
            for text, ids, offsets in zip(
                texts, made["input_ids"], made["offset_mapping"], strict=True
            )
        ]

    @torch.no_grad()
    def candidates(
        self, texts: Sequence[str], wanted: Sequence[tuple[int, Word]]
    ) -> list[list[str]]:
        """Return the most likely words at each wanted position, given the rest of its text."""
        ids: list[list[int]] = self._encode(texts)["input_ids"]
        found: list[list[str]] = [[] for _ in wanted]
        order = sorted(range(len(wanted)), key=lambda index: len(ids[wanted[index][0]]))
        for batch in self._batches(order, [len(ids[row]) for row, _ in wanted]):
            rows = [ids[wanted[index][0]] for index in batch]
            places = [wanted[index][1].position for index in batch]
            for index, tokens in zip(batch, self._likeliest(rows, places), strict=True):
                found[index] = [self._spelling[token] for token in tokens]
        return found

    def _encode(self, texts: Sequence[str]) -> dict[str, Any]:
        made: dict[str, Any] = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self._length,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        ).data
        return made

    def _of_text(self, text: str, ids: list[int], offsets: list[tuple[int, int]]) -> Iterator[Word]:
        numbers = self._words.number(np.array(ids)).tolist()
        tokens = Counter(numbers)
        for position, (number, (start, end)) in enumerate(zip(numbers, offsets, strict=True)):
            known = ids[position] != self.tokenizer.unk_token_id
            spelled = text[start:end].strip()
            if number >= 0 and tokens[number] == 1 and known and spelled.isalpha():
                # Some tokenizers include the space before a word.
                start = text.index(spelled, start)
                yield Word(start, start + len(spelled), position)

    def _batches(self, order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield batches of indices sorted by length, each within the limit on logits."""
        batch: list[int] = []
        for index in order:
            if (len(batch) + 1) * lengths[index] * len(self._forbidden) > LOGITS and batch:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _likeliest(self, rows: Sequence[list[int]], places: Sequence[int]) -> list[list[int]]:
        """Return the most likely tokens at one position of each row."""
        device = self.model.device
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), self.tokenizer.pad_token_id)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = torch.tensor(row)
        each, at = torch.arange(len(rows)), torch.tensor(places)
        old = ids[each, at].clone()
        ids[each, at] = self.tokenizer.mask_token_id
        mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
        logits: Tensor = self.model(**inputs).logits[each.to(device), at.to(device)]
        forbidden = self._forbidden.repeat(len(rows), 1)
        forbidden[each, old] = True
        logits = logits.masked_fill(forbidden.to(device), -torch.inf)
        best = logits.topk(min(self.number, logits.shape[-1]))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [
            [token for value, token in zip(values, tokens, strict=True) if value > -torch.inf]
            for values, tokens in pairs
        ]


def _spelling(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    """Return a token's spelling in a text."""
    name = tokenizer.convert_ids_to_tokens(token) or ""
    text: str = tokenizer.convert_tokens_to_string([name])
    return text.strip()
