"""Random models and batches that are small enough for tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedTokenizerFast
from transformers import PreTrainedModel as Model

from gkd_core.contract.batch import IGNORE, Batch
from gkd_core.data.collate import Collator, Uncollated
from gkd_core.errors import ConfigError
from gkd_core.hooks.padding import follow_mask
from gkd_core.plugins import registry

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import TaskKind

VOCABULARY = 64
CLASSES = 3
NAMES = tuple(f"LABEL_{index}" for index in range(CLASSES))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD = 0
DECODER = "llama"
"""Architecture of the tiny decoder."""


def tiny_model(kind: str, layers: int, seed: int, family: str = "") -> Model:
    """Return a random fp64 model in eval mode, of width 32 with 4 heads.

    Args:
        kind: `classification` gives a BERT with 3 classes, `causal-lm` a Llama.
        layers: Number of blocks.
        seed: Seed of the weights.
        family: Another architecture than that of the kind.
    """
    return model_for(registry().kind(kind), NAMES, layers, seed, family)


def model_for(
    kind: TaskKind, classes: Sequence[str], layers: int, seed: int, family: str = ""
) -> Model:
    """Return a random model as `tiny_model` does.

    Args:
        kind: The kind of task.
        classes: Its classes.
        layers: Number of blocks.
        seed: Seed of the weights.
        family: Another architecture than that of the kind.
    """
    family = family or ("bert" if accepts(kind, "bert") else DECODER)
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=len(classes),
        pad_token_id=PAD,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        kind.configure(config, classes)
        model: Model = kind.auto.from_config(config)
    reads_rows = kind.predicted == "sample" and kind.pools
    follow_mask(model, pads_left=family == DECODER, reads_rows=reads_rows)
    kind.prepare(model, classes)
    return model.double().eval()


def accepts(kind: TaskKind, family: str) -> bool:
    """Return whether models of an architecture can be used for a kind of task."""
    config = CONFIG_MAPPING[family]()
    try:
        kind.check_model(config, family)
    except ConfigError:
        return False
    return type(config) in kind.configs


def word_tokenizer(words: Iterable[str] = (), side: str = "right") -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words.

    Args:
        words: The words.
        side: The side of the padding.
    """
    known = list(dict.fromkeys([*SPECIAL, *words]))[:VOCABULARY]
    ids = {word: index for index, word in enumerate(known)}
    made = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL[1]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side=side, **tokens)


def tiny_batch(kind: str, rows: int = 4, length: int = 10) -> Batch:
    """Return a batch of random tokens whose rows have different lengths, padded on the right.

    In a kind that generates text, every other row is the student's own.

    Args:
        kind: Name of the kind of task; the labels are those of the kind.
        rows: Number of rows.
        length: Tokens of the longest row.
    """
    # The rows of a micro-batch all have the same number of sequences.
    sequences = rows * registry().kind(kind).planned(1, length, 1, NAMES).per_row
    lengths = length - 2 * torch.arange(sequences) % (length - 2)
    mask = torch.arange(length) < lengths.unsqueeze(1)
    return _batch(kind, mask, size=2, seed=0)


def tiny_view(kind: str, batch: Batch) -> Batch:
    """Return a tiny batch as a teacher reads it whose tokens are half as long.

    Args:
        kind: As for `tiny_batch`.
        batch: The tiny batch.
    """
    view = _batch(kind, batch.mask.repeat_interleave(2, dim=1), size=1, seed=1)
    return view if registry().kind(kind).is_lm else replace(view, labels=batch.labels)


def _batch(kind: str, mask: Tensor, size: int, seed: int) -> Batch:
    """Return random tokens of `size` bytes each, two of them a word."""
    found = registry().kind(kind)
    sequences, length = mask.shape
    rows = sequences // found.planned(1, length, 1, NAMES).per_row
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (sequences, length), generator=generator)
    tokens = tokens.masked_fill(~mask, PAD)
    if found.is_lm:
        following = tokens.roll(-1, dims=1)
        has_next = mask.roll(-1, dims=1)
        has_next[:, -1] = False
        labels: Tensor | None = following.masked_fill(~has_next, IGNORE)
    else:
        labels = _labels(found, rows, mask, generator)
    places = torch.arange(length)
    words = (places // 2).expand(sequences, -1).masked_fill(~mask, -1)
    spans = torch.stack([places, places + 1], dim=-1) * size
    return Batch(
        inputs={"input_ids": tokens, "attention_mask": mask.long(), **_markers(found, rows, mask)},
        labels=labels,
        rows=torch.arange(rows),
        words=words,
        byte_offsets=spans.expand(sequences, -1, -1).masked_fill(~mask.unsqueeze(-1), -1),
        output=found.output,
        sources=torch.arange(rows) % 2 if found.generates else None,
        data_sources=torch.arange(rows) % 2,
    )


def _markers(kind: TaskKind, rows: int, mask: Tensor) -> Mapping[str, Tensor]:
    """Return the markers of rows to plan with."""
    ids = [np.ones(count, np.int64) for count in mask.sum(1).tolist()]
    collator = Collator(word_tokenizer(), kind, mask_share=0.5, seed=0)
    encoded = kind.planned(rows, mask.shape[1], 1, NAMES)
    return kind.mark(Uncollated(collator, encoded, range(rows), ids, 0, mask.shape[1]))


def _labels(kind: TaskKind, rows: int, mask: Tensor, generator: torch.Generator) -> Tensor | None:
    """Return random labels of the shape that a kind has them in."""
    if kind.output == "vector":
        return None
    if kind.output == "value":
        return torch.rand(rows, generator=generator, dtype=torch.float64)
    if kind.output == "binary":
        return torch.randint(0, 2, (rows, CLASSES), generator=generator).double()
    if kind.predicted == "span":
        return torch.randint(0, int(mask.sum(1).min()), (rows, 2), generator=generator)
    if kind.predicted == "token":
        labels = torch.randint(0, CLASSES, mask.shape, generator=generator)
        return labels.masked_fill(~mask, IGNORE)
    return torch.randint(0, CLASSES, (rows,), generator=generator)
