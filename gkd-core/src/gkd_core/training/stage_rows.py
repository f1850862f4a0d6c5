"""The training rows of a stage as its student and its teachers read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from gkd_core.contract.task import Split
from gkd_core.data.collate import Collator
from gkd_core.data.encode import TEXTS, Encoded
from gkd_core.data.other_prompts import OtherPrompts, other_prompts
from gkd_core.data.readings import Reading, encode_again
from gkd_core.data.writing_room import rows_with_room
from gkd_core.errors import DataError
from gkd_core.training.augmentation import augmented
from gkd_core.training.stage_spec import StageSpec


def encode_training_rows(spec: StageSpec, device: torch.device) -> tuple[Split, Encoded]:
    """Return the training rows of a stage, augmented, and what the student reads of them.

    Args:
        spec: The spec of the stage.
        device: Device of a model that proposes words.

    Raises:
        DataError: No prompt leaves room for what models write.
    """
    rows = augmented(spec.data.train, spec.config, spec.kind, device)
    rows = replace(rows, byte_offsets=spec.needs_byte_offsets)
    train = spec.encode(rows, spec.tokenizer, packed=spec.config.task.packing)
    return rows, _with_room(spec, train)


def _with_room(spec: StageSpec, train: Encoded) -> Encoded:
    """Return the rows whose prompts models can continue within `task.max_length`, if they do."""
    longest = spec.longest_prompt
    if longest is None:
        return train
    found = rows_with_room(train, longest)
    if not len(found):
        raise DataError(
            f"every prompt of {spec.data.source} has more than {longest} tokens, so none leaves "
            f"room for rollout.max_new_tokens ({spec.origin('rollout.max_new_tokens')}) within "
            f"task.max_length = {spec.max_length}. Lower the one, or raise the other"
        )
    return found


def read_by(spec: StageSpec, number: int, device: torch.device) -> tuple[Encoded, Collator]:
    """Return the training rows as a teacher reads them, and what makes batches of them."""
    rows, train = encode_training_rows(spec, device)
    name = spec.teachers[number].info.name
    own = (one for one in readings_of(spec, rows, train) if name in one.models)
    reading = next(own, None)
    if reading is None:
        return train, spec.collator(spec.tokenizer)
    return reading.encoded, reading.collator


def readings_of(spec: StageSpec, rows: Split, train: Encoded) -> Iterator[Reading]:
    """Yield the training rows in the tokens of each tokenizer besides the student's."""
    for tokenizer, teachers in spec.other_tokenizers:
        limit = min(teacher.info.max_length for teacher in teachers)
        # The student cuts long texts into blocks, which may take more of another's tokens.
        longest = min(limit, (2 if spec.kind.is_lm else 1) * spec.max_length)
        classes = spec.data.classes
        encoded = encode_again(spec.kind, rows, train, tokenizer, longest, classes)
        spec.check_ids(encoded, tokenizer)
        yield Reading(
            models=tuple(teacher.info.name for teacher in teachers),
            encoded=encoded,
            collator=spec.collator(tokenizer),
        )


def prompts_of_teachers(
    spec: StageSpec, rows: Split, train: Encoded, pad_id: int
) -> Iterator[OtherPrompts]:
    """Yield the prompts of teachers that have others than the student."""
    texts = train.extra[TEXTS].tolist() if TEXTS in train.extra else range(len(train))
    for settings in spec.config.teachers if spec.reads_teachers else ():
        if settings.prompt is not None:
            yield other_prompts(settings.name, settings.prompt, rows, texts, spec.tokenizer, pad_id)
