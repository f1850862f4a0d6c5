"""Augmented training rows: made once by a masked language model, then cached."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

import gkd_core
from gkd_core import digest
from gkd_core.config.schema import RunConfig
from gkd_core.contract.task import Split
from gkd_core.data.augment import augment
from gkd_core.data.cache import cache_entry, read_entry, write_entry
from gkd_core.distributed.ranks import is_first, tell
from gkd_core.errors import ConfigError
from gkd_core.kinds.language_model import sees_both_sides
from gkd_core.kinds.masked_lm import MaskedLM
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.load import load_teacher
from gkd_core.models.source import load_config, locate
from gkd_core.models.stored import check_stored, check_trained_head
from gkd_core.models.tokenizer import load_tokenizer
from gkd_core.models.word_proposer import MaskedProposer

SETTING = "task.augment_model"


def copies(config: RunConfig, kind: TaskKind) -> int:
    """Return the number of copies that a stage adds of each training row."""
    return config.task.augment if kind.augments else 0


def check_augmentation(config: RunConfig, kind: TaskKind) -> None:
    """Reject an augmentation without a usable masked language model.

    Raises:
        ConfigError: No model is named, or it is not a masked language model.
    """
    if copies(config, kind) == 0:
        return
    model = config.task.augment_model
    if model is None:
        raise ConfigError(
            f"task.augment is {config.task.augment}, but no model proposes the words; name a "
            f"masked language model, such as the one the teacher was fine-tuned from: {SETTING}=DIR"
        )
    found = load_config(model, False, SETTING)
    masks = load_tokenizer(model, False, SETTING).mask_token_id is not None
    if not sees_both_sides(found) or not masks:
        raise ConfigError(
            f"{SETTING} = {model!r} ({found.model_type}) cannot fill in a masked word; choose a "
            "masked language model such as BERT"
        )
    check_stored(model, found, MaskedLM(), SETTING)
    check_trained_head(model, found, MaskedLM(), SETTING)


def augmented(rows: Split, config: RunConfig, kind: TaskKind, device: torch.device) -> Split:
    """Return the training rows with their copies, the same on every rank.

    Args:
        rows: The training rows.
        config: The configuration of the stage.
        kind: The kind of task.
        device: Where the words are proposed, unless the copies are cached.
    """
    if copies(config, kind) == 0:
        return rows
    path = cache_entry("augmented", f"{_key(rows, config)}.json")
    made = read_entry(path, lambda content: Split(**content)) if is_first() else None
    if is_first() and made is None:
        made = _make(rows, config, device)
        write_entry(path, asdict(made))
    found = tell(made)
    assert found is not None, "the first rank has made it"
    return found


def _make(rows: Split, config: RunConfig, device: torch.device) -> Split:
    task = config.task
    assert task.augment_model is not None, "checked before"
    model = load_teacher(task.augment_model, MaskedLM(), (), False, SETTING).to(device)
    tokenizer = load_tokenizer(task.augment_model, False, SETTING)
    proposer = MaskedProposer(model, tokenizer, task.augment_candidates)
    return augment(rows, proposer, task.augment, task.augment_share, config.seed)


def _key(rows: Split, config: RunConfig) -> str:
    """Return a digest of everything that determines the copies."""
    task = config.task
    settings = [task.augment, task.augment_share, task.augment_candidates, config.seed]
    assert task.augment_model is not None, "checked before"
    place = Path(locate(task.augment_model, SETTING))
    if place.is_dir():
        model = digest.of_files([*place.glob("*.safetensors"), *place.glob("*.json")])
    else:
        found = load_config(task.augment_model, False, SETTING)
        model = f"{task.augment_model}@{getattr(found, '_commit_hash', None)}"
    return digest.of_value([asdict(rows), settings, gkd_core.__version__, model])
