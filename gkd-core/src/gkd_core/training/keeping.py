"""Which teachers are asked about each training row once, and not in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gkd_core.data.array_spool import IN_MEMORY
from gkd_core.data.cache import cache_dir
from gkd_core.data.disk_space import check_space
from gkd_core.errors import ConfigError
from gkd_core.hooks.paths import LOGITS, MAIN, Capture
from gkd_core.optim.engine import autocast
from gkd_core.teachers.answer_form import Size
from gkd_core.teachers.cached import Cached
from gkd_core.teachers.captured_states import size_of, unit_of
from gkd_core.teachers.kept import KeptAnswers, ask_once, shared_file

if TYPE_CHECKING:
    from gkd_core.config.schema import TeacherConfig
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.data.collate import Collator
    from gkd_core.data.encode import Encoded
    from gkd_core.training.stage import Stage
    from gkd_core.training.stage_spec import StageSpec

ROOM = (
    "Free some space, set GKD_CACHE to a folder on another disk, or set teacher.keep = 'none' to "
    "run the teacher in every step"
)

LIMIT = 2**28
"""Bytes of a teacher's answers that are kept unasked. The same everywhere: a run that goes on in
another place must keep what it kept."""


def check_keep(spec: StageSpec) -> None:
    """Reject a `teacher.keep` that asks for what cannot be kept.

    Raises:
        ConfigError: Says which teacher, and why.
    """
    for number, teacher in enumerate(spec.config.teachers if spec.reads_teachers else ()):
        if teacher.keep not in ("memory", "disk"):
            continue
        obstacle = next(_obstacles(spec, number), None)
        if obstacle is not None:
            raise ConfigError(
                f"teacher.keep = '{teacher.keep}', but the answers of the teacher '{teacher.name}' "
                f"cannot be kept: {obstacle}. Set teacher.keep = 'auto'"
            )


def check_stored(stage: Stage) -> None:
    """Reject caches of answers (`gkd cache`) that lack some of the training rows.

    Raises:
        DataError: Says how many.
    """
    for teacher in stage.spec.teachers if stage.spec.reads_teachers else ():
        if isinstance(teacher.source, Cached):
            teacher.source.check_rows(*_reading(stage, teacher.info.name))


def teachers_to_keep(stage: Stage) -> list[str]:
    """Return the names of the teachers whose answers a new run keeps."""
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
            number = numbers[name]
            encoded, collator = _reading(stage, name)
            captures = _kept(stage.spec, number)
            for size in _sizes_of_maps(stage.spec.teachers[number].info, captures, encoded):
                say(f"{name}: {size}")
            answers = ask_once(
                stage.live(number),
                stage.student,
                encoded,
                collator,
                stage.engine.device,
                stage.kind.predicted,
                _file(stage, number, encoded),
                captures,
                _size(stage, number, captures).of_rows(encoded),
                _check_disk(stage, number),
            )
            if answers is not None:
                kept[number] = answers
            say(f"{name}: {_outcome(answers, len(encoded))}")
    return kept


def _keeps(stage: Stage, teacher: TeacherConfig, number: int) -> bool:
    if teacher.keep not in ("auto", "share"):
        return teacher.keep != "none"
    repeats = stage.total_steps > stage.sampler.steps_per_epoch
    pays = repeats or _is_shared(stage.spec, number)
    if not pays or stage.kind.is_lm or any(_obstacles(stage.spec, number)):
        return False
    return _fits(stage, number) and not _changes_rows(stage)


def _obstacles(spec: StageSpec, number: int) -> Iterator[str]:
    """Yield the reasons that what a teacher answers in one epoch is no answer in the next."""
    if spec.teachers[number].source is not None:
        yield "they come from its source (teacher.source)"
    if spec.config.rollout is not None:
        yield "models write new text in each step (rollout)"
    if spec.kind.masks:
        yield f"{spec.kind} masks other tokens in each epoch"
    if spec.config.teachers[number].keep == "disk" and _is_divided(spec, number):
        yield "its weights are divided over processes, for which there is only 'memory'"
    if not _kept(spec, number):
        yield _unkept(spec, number)


def _kept(spec: StageSpec, number: int) -> frozenset[Capture]:
    """Return what is kept of a teacher: all that it is asked for in steps in which all can be."""
    wanted = (each for each in _wanted(spec, number) if not any(_too_much(spec, number, each)))
    return frozenset[Capture]().union(*wanted)


def _unkept(spec: StageSpec, number: int) -> str:
    """Return the reason that nothing is kept of a teacher in any step."""
    wanted = next(_wanted(spec, number), None)
    if wanted is None:
        return f"{spec.expression} reads nothing of it, or changes its forward pass"
    return f"{spec.expression} {next(_too_much(spec, number, wanted))}"


def _wanted(spec: StageSpec, number: int) -> Iterator[frozenset[Capture]]:
    """Yield what some steps ask a teacher about the training rows as they are."""
    for plan in spec.sampled_steps:
        for planned in plan.passes:
            wanted = planned.captures("teacher", number)
            changed = any(True for _ in planned.writes("teacher", number))
            if planned.name == MAIN and wanted and not changed:
                yield wanted


def _too_much(spec: StageSpec, number: int, wanted: frozenset[Capture]) -> Iterator[str]:
    """Yield the reasons that not all that a step asks a teacher for can be kept."""
    if wanted == {LOGITS}:
        return
    if spec.config.teachers[number].keep not in ("memory", "disk"):
        yield "reads more of it than its logits"
    if spec.kind.markers:
        yield f"reads more of it than its logits, and a row of {spec.kind} is not one text"
    if _is_divided(spec, number):
        yield "reads more of it than its logits, and its weights are divided over processes"


def _is_shared(spec: StageSpec, number: int) -> bool:
    """Return whether other runs find what a teacher answers."""
    keep = spec.config.teachers[number].keep
    return keep == "disk" or (keep == "share" and not _is_divided(spec, number))


def _is_divided(spec: StageSpec, number: int) -> bool:
    teacher = spec.teachers[number]
    return teacher.tensor > 1 or teacher.placement == "zero3"


def _changes_rows(stage: Stage) -> bool:
    """Return whether the kind of task gives models other tokens in the next epoch."""
    rows = range(min(len(stage.train), stage.config.training.batch_size))
    before, after = (stage.collator.collate(stage.train, rows, epoch).inputs for epoch in (0, 1))
    return any(not torch.equal(before[name], after[name]) for name in before)


def _fits(stage: Stage, number: int) -> bool:
    """Return whether the logits of all rows take at most `LIMIT` bytes."""
    return float(_size(stage, number, [LOGITS]).of_rows(stage.train).sum()) <= LIMIT


def _size(stage: Stage, number: int, captures: Iterable[Capture]) -> Size:
    """Return the bytes of what is kept of a teacher, in fp32."""
    info, width, of_logits = stage.spec.teachers[number].info, torch.float32.itemsize, Size(0)
    if LOGITS in captures:
        by_token = stage.kind.predicted in ("token", "span")
        own = width * (info.hidden_size if stage.kind.is_lm else info.labels)
        of_logits = Size(own) if by_token else Size(0, own)
    states = (size_of(each, info, width) for each in captures if each != LOGITS)
    return sum(states, of_logits)


def _check_disk(stage: Stage, number: int) -> Callable[[float], None] | None:
    """Return what rejects answers that are to be on the disk, but do not fit there."""
    teacher = stage.config.teachers[number]
    if teacher.keep != "disk":
        return None
    what = f"teacher.keep = 'disk' (the answers of the teacher '{teacher.name}')"

    def check(size: float) -> None:
        if size > IN_MEMORY:  # they are put together in a file without a name, and then copied
            check_space(cache_dir(), 2 * size, what, ROOM)

    return check


def _file(stage: Stage, number: int, encoded: Encoded) -> Path | None:
    """Return the file in which other runs find the answers; None if they are not to find them."""
    if not _is_shared(stage.spec, number):
        return None
    model, precision = stage.live(number).model, stage.config.training.precision
    captures = _kept(stage.spec, number)
    return shared_file(model, encoded, stage.spec.data, precision, stage.engine.device, captures)


def _reading(stage: Stage, name: str) -> tuple[Encoded, Collator]:
    """Return the training rows in the tokens of a teacher, and what makes batches of them."""
    own = ((one.encoded, one.collator) for one in stage.readings if name in one.models)
    return next(own, (stage.train, stage.collator))


def _sizes_of_maps(info: ModelInfo, captures: Iterable[Capture], encoded: Encoded) -> Iterator[str]:
    """Yield how large what is kept by pair of tokens will be, in words."""
    maps = sorted((each for each in captures if unit_of(each) == "pair"), key=str)
    if maps:
        width = sum(size_of(each, info, torch.float32.itemsize).pair for each in maps)
        size = width * int(np.square(encoded.lengths).sum()) / 2**20
        yield (
            f"its {', '.join(map(str, maps))} will take {size:,.1f} MiB: they grow with the square "
            "of a text's length"
        )


def _outcome(answers: KeptAnswers | None, rows: int) -> str:
    if answers is None:
        return "what it answers is nan or inf, or its shape varies: it is asked in every step"
    names = "logits" if answers.have([LOGITS]) else ""
    states = ", ".join(str(each) for each in sorted(answers.answers, key=str) if each != LOGITS)
    what = " and ".join(filter(None, [names, states]))
    return f"its {what} of {rows:,} rows are kept ({answers.size / 2**20:,.1f} MiB; teacher.keep)"
