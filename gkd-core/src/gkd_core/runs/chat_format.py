"""Checks that teacher and student of a language model read the same text alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gkd_core.data.chat import end_of_turn
from gkd_core.data.holdout import take
from gkd_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

    from gkd_core.config.schema import RunConfig
    from gkd_core.contract.task import TaskData
    from gkd_core.training.stage_spec import StageSpec, TeacherSpec

FIRST_ROWS = 4
"""Rows whose tokens are compared."""

SHOWN = 8
"""Tokens of a row that a message shows."""


def follow_chat_format(
    tokenizer: PreTrainedTokenizerFast,
    teachers: Sequence[TeacherSpec],
    data: TaskData,
    config: RunConfig,
) -> list[str]:
    """Give a student its teacher's end token, and a chat template if it has none.

    The first teacher with the student's token ids and a chat template of its own decides. A student
    without a template takes the teacher's for rows of conversations; where the models answer, its
    end token becomes the one that ends a turn of the teacher's.

    Args:
        tokenizer: The student's tokenizer, which is changed.
        teachers: The teachers.
        data: The rows.
        config: The configuration of the stage.

    Returns:
        What was changed, and what differs, in sentences.
    """
    teacher = next((t for t in teachers if _has_template(t, tokenizer)), None)
    writes = config.rollout is not None or config.writing is not None
    answers = data.train.chat or data.train.target is not None or writes
    if teacher is None or teacher.own_tokenizer is None or not answers:
        return []
    theirs, notes = teacher.own_tokenizer, list[str]()
    if tokenizer.chat_template is None and data.train.chat:
        tokenizer.chat_template = theirs.chat_template
        notes.append(f"the student has no chat template and takes that of {teacher.setting}")
    elif data.train.chat and tokenizer.chat_template != theirs.chat_template:
        notes.append(
            f"conversations are written with the student's chat template, which differs from that "
            f"of {teacher.setting}"
        )
    end = end_of_turn(theirs)
    if end and end != tokenizer.eos_token and end in tokenizer.get_vocab():
        notes.append(
            f"the student ends its answers with {end!r}, as {teacher.setting} does in a "
            f"conversation, instead of {tokenizer.eos_token!r}"
        )
        tokenizer.eos_token = end
    return notes


def _has_template(teacher: TeacherSpec, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether a teacher has a template of its own, and the student's token ids."""
    own = teacher.own_tokenizer
    other = own is not None and own is not tokenizer and teacher.tokenizer is tokenizer
    return other and own is not None and own.chat_template is not None


def compare_tokens(spec: StageSpec) -> Iterator[str]:
    """Yield how the logits and tokens of teachers and student differ in language modeling.

    Raises:
        ConfigError: Teacher and student read other tokens in the same rows.
    """
    if not spec.kind.is_lm or not spec.reads_teachers:
        return
    width = _width(spec.student_config)
    for teacher in spec.teachers:
        if teacher.tokenizer is not spec.tokenizer:
            continue
        theirs = _width(teacher.config)
        if theirs != width:
            fewer, more = sorted((theirs, width))
            left = "are left out" if theirs > width else "have no probability"
            yield (
                f"{teacher.setting} has {theirs:,} logits and the student {width:,} for the "
                f"{len(spec.tokenizer):,} tokens of both: {more - fewer:,} of the teacher's {left}"
            )
        yield from _first_tokens(spec, teacher)


def _first_tokens(spec: StageSpec, teacher: TeacherSpec) -> Iterator[str]:
    """Compare the tokens of the first rows, as each of both tokenizers makes them."""
    own, mine = teacher.own_tokenizer, spec.tokenizer
    if own is None or own is mine:
        return
    train = spec.data.train
    rows = take(train, range(min(FIRST_ROWS, len(train))))
    if train.chat and own.chat_template is None and mine.chat_template is not None:
        return  # the teacher reads what the student's template writes
    readers = {teacher.setting: own, "the student": mine}
    try:
        found = {
            name: spec.kind.encode(rows, reader, spec.max_length).row(0)["input_ids"].tolist()
            for name, reader in readers.items()
        }
    except DataError:  # these few rows have nothing to learn, but others may
        return
    theirs, learned = found.values()
    # An end token stands after each target, and may be another.
    ends = {own.eos_token_id, mine.eos_token_id}
    same = [a == b or {a, b} <= ends for a, b in zip(theirs, learned, strict=False)]
    if all(same) and len(theirs) == len(learned):
        return
    at = same.index(False) if False in same else len(same)
    shown = ", ".join(
        f"{name}: {mine.convert_ids_to_tokens(ids[max(0, at - 1) : at + SHOWN])}"
        for name, ids in found.items()
    )
    told = f"the first row has other tokens from number {at + 1} on ({shown})"
    if not train.chat or own.chat_template == mine.chat_template:
        raise ConfigError(
            f"{told}. The teacher reads the student's tokens: copy tokenizer.json and "
            f"tokenizer_config.json of {teacher.setting} into the directory of the student"
        )
    yield f"{told}, since the chat templates differ"


def _width(config: PretrainedConfig) -> int:
    width: int = config.get_text_config().vocab_size
    return width
