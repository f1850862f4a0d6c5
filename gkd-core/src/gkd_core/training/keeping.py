"""Which teachers are asked about each training row once, and not in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gkd_core import digest
from gkd_core.errors import ConfigError
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import LOGITS, MAIN
from gkd_core.models.content import weights_hash
from gkd_core.optim.engine import autocast
from gkd_core.teachers.answer_file import answer_file
from gkd_core.teachers.kept import ROWS, KeptAnswers, ask_once

if TYPE_CHECKING:
    from gkd_core.config.schema import TeacherConfig
    from gkd_core.data.collate import Collator
    from gkd_core.data.encode import Encoded
    from gkd_core.training.stage import Stage
    from gkd_core.training.stage_spec import StageSpec

LIMIT = 2**28
"""Bytes of a teacher's answers that are kept unasked. The same everywhere: a run that goes on in
another place must keep what it kept."""


def teachers_to_keep(stage: Stage) -> list[str]:
    """Return the names of the teachers whose answers a new run keeps.

    Raises:
        ConfigError: `teacher.keep` asks for what cannot be kept.
    """
    return [
        teacher.name
        for number, teacher in enumerate(stage.config.teachers)
        if number < len(stage.teachers) and _keeps(stage, teacher, number)
    ]


def keep_answers(
    stage: Stage, names: Iterable[str], say: Callable[[str], None]
) -> dict[int, KeptAnswers]:
    """Ask teachers about all training rows; every rank calls it.

    Args:
        stage: The stage.
        names: Their names.
        say: Told of what is kept.

    Returns:
        Their answers by the number of the teacher.
    """
    numbers = {teacher.info.name: n for n, teacher in enumerate(stage.spec.teachers)}
    caches = stage.config.parallel.zero < 3
    kept = {}
    with torch.no_grad(), autocast(stage.config.training, stage.engine.device, caches):
        for name in names:
            encoded, collator = _reading(stage, name)
            answers = ask_once(
                stage.live(numbers[name]),
                stage.student,
                encoded,
                collator,
                stage.engine.device,
                stage.kind.predicted,
                _file(stage, numbers[name], encoded),
            )
            if answers is not None:
                kept[numbers[name]] = answers
            say(f"{name}: {_said(answers, len(encoded))}")
    return kept


def _keeps(stage: Stage, teacher: TeacherConfig, number: int) -> bool:
    if teacher.keep == "none":
        return False
    obstacle = next(_obstacles(stage, number), None)
    if teacher.keep == "auto":
        repeats = stage.total_steps > stage.sampler.steps_per_epoch
        return repeats and obstacle is None and not stage.kind.is_lm and _fits(stage, number)
    if obstacle is not None:
        raise ConfigError(
            f"teacher.keep = '{teacher.keep}', but the answers of the teacher '{teacher.name}' "
            f"cannot be kept: {obstacle}. Set teacher.keep = 'auto'"
        )
    return True


def _obstacles(stage: Stage, number: int) -> Iterator[str]:
    """Yield why what a teacher answers in one epoch is no answer in the next, or not read."""
    if not isinstance(stage.teachers[number], Extractor):
        yield "they come from its source already (teacher.source)"
    if stage.rollouts is not None:
        yield "models write new text in each step (rollout)"
    if _changes_rows(stage):
        yield f"models see other tokens of {stage.kind} rows in each epoch"
    if stage.config.teachers[number].keep == "disk" and _is_divided(stage, number):
        yield "its weights are divided over processes (use 'memory')"
    if not any(_reads_logits(stage.spec, number)):
        yield f"{stage.spec.expression} reads more of it than its logits, or nothing"


def _is_divided(stage: Stage, number: int) -> bool:
    teacher = stage.spec.teachers[number]
    return teacher.tensor > 1 or teacher.placement == "zero3"


def _changes_rows(stage: Stage) -> bool:
    """Return whether models read something else in the next epoch."""
    rows = range(min(len(stage.train), stage.config.training.batch_size))
    before, after = (stage.collator.collate(stage.train, rows, epoch).inputs for epoch in (0, 1))
    return any(not torch.equal(before[name], after[name]) for name in before)


def _reads_logits(spec: StageSpec, number: int) -> Iterator[bool]:
    """Yield for some steps of a stage whether all that is read of a teacher is its logits."""
    for plan in spec.sampled_steps:
        reads = {p.name: p.captures("teacher", number) for p in plan.passes}
        changed = any(True for p in plan.passes for _ in p.writes("teacher", number))
        yield reads[MAIN] == {LOGITS} and not changed


def _fits(stage: Stage, number: int) -> bool:
    """Return whether the logits of all rows take at most `LIMIT` bytes."""
    info = stage.spec.teachers[number].info
    by_token = stage.kind.predicted in ("token", "span")
    answers = len(stage.train.ids) if by_token else len(stage.train)
    return answers * info.labels * torch.float32.itemsize <= LIMIT


def _file(stage: Stage, number: int, encoded: Encoded) -> Path | None:
    """Return where other runs find the answers about rows too; None if they are not to.

    Its name is a hash of all that the answers depend on.
    """
    if stage.config.teachers[number].keep != "disk":
        return None
    tokens = (encoded.ids, encoded.type_ids, encoded.offsets, encoded.positions)
    data = stage.spec.data
    return answer_file(
        digest.of_value(
            [
                weights_hash(stage.live(number).model),
                digest.of_bytes(part.tobytes() for part in tokens if part is not None),
                [data.rows_hash, data.kind, list(data.classes), len(encoded), ROWS],
                [stage.config.training.precision, stage.engine.device.type],
                [torch.__version__, version("transformers")],
            ]
        )
    )


def _reading(stage: Stage, name: str) -> tuple[Encoded, Collator]:
    """Return the training rows in the tokens of a teacher, and what makes batches of them."""
    own = ((one.encoded, one.collator) for one in stage.readings if name in one.models)
    return next(own, (stage.train, stage.collator))


def _said(answers: KeptAnswers | None, rows: int) -> str:
    if answers is None:
        return "its logits are nan or inf, or their shape varies: it is asked in every step"
    return f"its logits of {rows:,} rows are kept ({answers.size / 2**20:,.1f} MiB; teacher.keep)"
