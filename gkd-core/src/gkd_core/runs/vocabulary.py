"""The vocabulary of a student with fewer tokens: chosen from the texts of a run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gkd_core.errors import ConfigError
from gkd_core.models.tokenizer import tokenizer_mismatch
from gkd_core.training.augmentation import copies
from gkd_core.vocabulary.reduced import SETTING, ReducedVocabulary, reduce_vocabulary
from gkd_core.vocabulary.weights import renumber_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gkd_core.contract.task import Split, TaskData
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.training.stage_spec import StageSpec, TeacherSpec


@dataclass(frozen=True)
class Texts:
    """The rows of a task of the run, as its models read them.

    Attributes:
        data: The rows.
        kind: The kind of task.
        max_length: Longest sequence in tokens.
    """

    data: TaskData
    kind: TaskKind
    max_length: int

    def read(self, tokenizer: PreTrainedTokenizerFast) -> list[np.ndarray]:
        """Return the ids of all tokens of each split, and those of words to choose from."""
        found = []
        for split in self._splits():
            encoded = self.kind.encode(split, tokenizer, self.max_length, self.data.classes)
            words = encoded.extra.get("words", np.zeros(0, np.int64))
            found += [np.asarray(encoded.ids, np.int64), words[words >= 0].ravel()]
        return found

    def _splits(self) -> Iterable[Split]:
        data = self.data
        return filter(None, [data.train, data.validation, data.test])


def choose_vocabulary(
    size: int, teacher: TeacherSpec, tokenizer: PreTrainedTokenizerFast, texts: Sequence[Texts]
) -> ReducedVocabulary:
    """Return a vocabulary in which the texts of a run are split as in the teacher's.

    Args:
        size: The number of tokens.
        teacher: The teacher that the student is made from.
        tokenizer: Its tokenizer.
        texts: All that the run reads.

    Raises:
        ConfigError: The size is too small, or a text would be split otherwise.
    """
    whole = [ids for one in texts for ids in one.read(tokenizer)]
    used = {int(one) for ids in whole for one in np.unique(ids)}
    made = reduce_vocabulary(tokenizer, teacher.config, used, size, teacher.setting)
    kept = np.array(made.kept)
    reduced = (ids for one in texts for ids in one.read(made.tokenizer))
    for before, after in zip(whole, reduced, strict=True):
        if not np.array_equal(before, kept[after]):
            raise ConfigError(
                f"{SETTING}: with fewer tokens, the tokenizer of {teacher.setting} splits texts "
                "of the run differently than before, so it cannot be cut. Omit the setting"
            )
    return made


def read_through(
    vocabulary: ReducedVocabulary, teachers: Sequence[TeacherSpec]
) -> list[TeacherSpec]:
    """Return teachers of which those that have all tokens read rows in the ids of the student."""
    return [_read_through(vocabulary, teacher) for teacher in teachers]


def _read_through(vocabulary: ReducedVocabulary, teacher: TeacherSpec) -> TeacherSpec:
    if tokenizer_mismatch(teacher.tokenizer, vocabulary.tokenizer) is None:
        return replace(teacher, tokenizer=vocabulary.tokenizer)
    if tokenizer_mismatch(teacher.tokenizer, vocabulary.origin) is not None:
        return teacher
    config = copy.deepcopy(teacher.config)
    renumber_settings(config, vocabulary.kept)
    own = vocabulary.tokenizer
    return replace(teacher, tokenizer=own, own_tokenizer=own, vocabulary=vocabulary, config=config)


def check_vocabulary_use(spec: StageSpec) -> None:
    """Reject what cannot be meant together with a smaller vocabulary.

    Raises:
        ConfigError: Says what, and where it was set.
    """
    if spec.vocabulary is None:
        return
    config, size = spec.config, len(spec.vocabulary.kept)
    wanted = f"{SETTING} = {size} ({spec.origin('student.vocabulary')})"
    if config.student.lora is not None:
        raise ConfigError(
            f"{wanted} cuts the embedding, but adapters (student.lora) need the teacher's weights "
            "as they are, since only the adapters are saved. Remove one of the two"
        )
    if spec.layout.tensor > 1 or any(teacher.tensor > 1 for teacher in spec.teachers):
        raise ConfigError(
            f"{wanted} changes the order of a teacher's tokens, which parallel.tensor divides over "
            "processes. Set parallel.tensor = 1, for teachers too; ZeRO shards weights as well"
        )
    for teacher in spec.teachers:
        if teacher.source is not None:
            raise ConfigError(
                f"{wanted}: the answers of the teacher '{teacher.info.name}' come from elsewhere "
                "(source), in ids of all its tokens. Use the teacher itself, or leave "
                f"{SETTING} out"
            )
    if config.writing is not None or (config.rollout is not None and config.rollout.uses_teacher):
        table = "writing" if config.writing is not None else "rollout"
        raise ConfigError(
            f"{wanted} has the tokens of the rows, but a teacher writes other text ({table}). "
            "Write it first, and name the file as task.train; or let only the student write"
        )
    if copies(config, spec.kind):
        raise ConfigError(
            f"{wanted} has the tokens of the rows, but task.augment puts other words into them. "
            "Remove one of the two"
        )
    for member in spec.members:
        if member.methods[0].aligns:
            raise ConfigError(
                f"{wanted} lets teacher and student read the same tokens, but {member.name} aligns "
                f"those of different tokenizers. Choose another method, or leave {SETTING} out"
            )
