"""Teachers provided by the task `embedded`: a small encoder or decoder for each kind.

All large ones have the same depth, width and vocabulary, so that a student can learn the language
from one and continue with another. Runs with several teachers use small ones, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from gkd_core.config.schema import TeacherSize
from gkd_core.contract.task import DefaultTeacher, TaskData
from gkd_core.data.vocabulary import train_tokenizer
from gkd_core.models.quiet import quiet
from gkd_core.models.save import save_model

VOCAB_SIZE = 6000
SEED = 0

MASK_SHARE = 0.4
"""With little text, more masks teach more (Wettig et al., EACL 2023, arXiv:2202.08005)."""

SHAPE: Mapping[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
"""Configuration fields common to all of them."""

ENCODER: Mapping[str, Any] = {
    **SHAPE,
    "intermediate_size": 512,
    "type_vocab_size": 2,
    "attention_probs_dropout_prob": 0.0,
}
"""Fields of the `BertConfig` of an encoder."""

DECODER: Mapping[str, Any] = {**SHAPE, "intermediate_size": 352, "tie_word_embeddings": True}
"""Fields of the `LlamaConfig` of a decoder."""

SIZES: Mapping[TeacherSize, Mapping[str, Any]] = {
    "large": {},
    "small": {"num_hidden_layers": 3, "hidden_size": 96, "intermediate_size": 256},
}
"""Fields that differ from these, by size."""

MODELS: Mapping[tuple[str, str], Any] = {
    ("encoder", "classification"): BertForSequenceClassification,
    ("encoder", "masked-lm"): BertForMaskedLM,
    ("decoder", "classification"): LlamaForSequenceClassification,
    ("decoder", "causal-lm"): LlamaForCausalLM,
}

FAMILY = {"classification": "encoder", "masked-lm": "encoder", "causal-lm": "decoder"}
"""The family for each kind of task, unless another is asked for."""

TRAINING: Mapping[str, Mapping[str, Any]] = {
    "classification": {"epochs": 4, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.05},
    "masked-lm": {"epochs": 5, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.05},
    "causal-lm": {"epochs": 6, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.05},
}
"""Training settings, as in the table `training` of a run file."""


def embedded_teacher(data: TaskData, family: str, size: TeacherSize) -> DefaultTeacher:
    """Return the teacher for a kind of task.

    Args:
        data: The task.
        family: `encoder` or `decoder`.
        size: `large` or `small`.
    """
    fields = {**(ENCODER if family == "encoder" else DECODER), **SIZES[size]}
    return DefaultTeacher(
        build=lambda directory: _build(data, family, fields, directory),
        training=TRAINING[data.kind],
        shape={**fields, "family": family, "vocab_size": VOCAB_SIZE, "seed": SEED},
        mask_share=MASK_SHARE,
    )


def _build(data: TaskData, family: str, fields: Mapping[str, Any], directory: Path) -> None:
    """Write an untrained teacher and a tokenizer for its texts, replacing an existing model."""
    tokenizer = train_tokenizer(data.train.text, VOCAB_SIZE, SHAPE["max_position_embeddings"])
    if family == "decoder":
        tokenizer = _without_segments(tokenizer)
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(SEED)
        model = MODELS[family, data.kind](_config(data, family, fields, tokenizer))
    save_model(model, tokenizer, directory)


def _config(
    data: TaskData, family: str, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast
) -> PretrainedConfig:
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    classes = {
        "id2label": dict(enumerate(data.classes)),
        "label2id": {name: index for index, name in enumerate(data.classes)},
    }
    named = tokens | (classes if data.classes else {})
    if family == "encoder":
        return BertConfig(**fields, **named)
    ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    return LlamaConfig(**fields, **named, **ends)


def _without_segments(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return a tokenizer without segment ids, which decoders do not accept."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        **tokenizer.special_tokens_map,
    )
