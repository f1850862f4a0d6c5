"""The teacher block that a student block is compared with, and the one it starts from.

Blocks are counted from 1; 0 is the embedding. With L_s student and L_t teacher blocks, the named
strategies pair student block l with

first     l
last      l + L_t - L_s
spaced    floor(l * L_t / L_s), which ends at L_t

Others pair only some blocks, in order:

first3    the first 3 of both
last3     the last 3 of both
top       the last of both
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import Field

from gkd_core.errors import ConfigError, GkdError, MethodError, suggest

Strategy = Literal["first", "last", "spaced"]
NAMED = (*get_args(Strategy), "top")
ENDS = re.compile(r"(first|last)([1-9][0-9]*)")
Ends = Annotated[str, Field(pattern=rf"^{ENDS.pattern}$")]
BlockNumber = Annotated[int, Field(ge=1)]
LayerMap: TypeAlias = Strategy | Literal["top"] | Ends | list[tuple[BlockNumber, BlockNumber]]
"""The blocks to compare: a strategy, or `[student, teacher]` pairs of blocks counted from 1.

`first`, `last` and `spaced` pair every student block; `first3`, `last3` and `top` only some.
"""


def layer_pairs(
    layer_map: LayerMap, student_layers: int, teacher_layers: int
) -> list[tuple[int, int]]:
    """Return the (student, teacher) pairs of blocks to compare, in student order.

    Args:
        layer_map: A strategy, or pairs, which may omit student blocks.
        student_layers: Number of student blocks.
        teacher_layers: Number of teacher blocks.

    Raises:
        MethodError: A model has too few blocks for the strategy, or a pair is out of range or out
            of order.
    """
    if isinstance(layer_map, str):
        return _named_pairs(layer_map, student_layers, teacher_layers)
    if not layer_map:
        raise MethodError("the layer map is empty; give at least one [student, teacher] pair")
    _refuse_out_of_range(
        MethodError, "layer map", "student", [pair[0] for pair in layer_map], student_layers
    )
    _refuse_out_of_range(
        MethodError, "layer map", "teacher", [pair[1] for pair in layer_map], teacher_layers
    )
    for (before, _), (after, _) in pairwise(layer_map):
        if after <= before:
            raise MethodError(
                f"the layer map lists student block {after} after {before}; list every student "
                "block once, in rising order"
            )
    return [(student, teacher) for student, teacher in layer_map]


def layer_segments(student_layers: int, teacher_layers: int) -> list[range]:
    """Return, for each student block, the range of teacher blocks that it replaces.

    The ranges are consecutive and of nearly equal length; each ends at the block that `spaced`
    pairs with the student block.

    Args:
        student_layers: Number of student blocks.
        teacher_layers: Number of teacher blocks.

    Returns:
        One range of teacher blocks, counted from 1, per student block.

    Raises:
        MethodError: The student is deeper than the teacher.
    """
    ends = [0, *(end for _, end in layer_pairs("spaced", student_layers, teacher_layers))]
    return [range(before + 1, end + 1) for before, end in pairwise(ends)]


def init_layers(
    init: Strategy | Sequence[int], student_layers: int, teacher_layers: int
) -> list[int]:
    """Return the teacher block, counted from 1, that each student block starts from.

    Args:
        init: A strategy, or one teacher block per student block (repetitions are allowed).
        student_layers: Number of student blocks.
        teacher_layers: Number of teacher blocks.

    Raises:
        ConfigError: The student is deeper than the teacher (strategies), the list has a different
            length from the student, or names a block the teacher does not have.
    """
    if isinstance(init, str):
        if student_layers > teacher_layers:
            raise ConfigError(
                f"student.init = {init!r} needs a student no deeper than the teacher, but "
                f"student.layers is {student_layers} and the teacher has {teacher_layers} blocks; "
                "list one teacher block per student block, or set student.init = 'random'"
            )
        return _strategy(init, student_layers, teacher_layers)
    if len(init) != student_layers:
        raise ConfigError(
            f"student.init lists {len(init)} teacher blocks, but the student has {student_layers}; "
            "list one for each"
        )
    _refuse_out_of_range(ConfigError, "student.init", "teacher", init, teacher_layers)
    return list(init)


def _named_pairs(name: str, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    if name == "top":
        return [(student_layers, teacher_layers)]
    ends = ENDS.fullmatch(name)
    if ends is not None:
        return _ends(ends[1], int(ends[2]), student_layers, teacher_layers)
    if student_layers > teacher_layers:
        raise MethodError(
            f"the layer map {name!r} needs a student no deeper than the teacher, but the "
            f"student has {student_layers} blocks and the teacher {teacher_layers}; give the "
            "map as [student, teacher] pairs"
        )
    return list(enumerate(_strategy(name, student_layers, teacher_layers), start=1))


def _ends(
    side: str, blocks: int, student_layers: int, teacher_layers: int
) -> list[tuple[int, int]]:
    if blocks > min(student_layers, teacher_layers):
        raise MethodError(
            f"the layer map '{side}{blocks}' needs {blocks} blocks in both models, but the "
            f"student has {student_layers} and the teacher {teacher_layers}; request fewer"
        )
    skipped = (0, 0) if side == "first" else (student_layers - blocks, teacher_layers - blocks)
    return [(skipped[0] + block, skipped[1] + block) for block in range(1, blocks + 1)]


def _strategy(strategy: str, student_layers: int, teacher_layers: int) -> list[int]:
    blocks = range(1, student_layers + 1)
    if strategy == "first":
        return list(blocks)
    if strategy == "last":
        return [block + teacher_layers - student_layers for block in blocks]
    if strategy == "spaced":
        return [block * teacher_layers // student_layers for block in blocks]
    raise MethodError(f"{strategy!r} is not a layer map.{suggest(strategy, NAMED)}")


def _refuse_out_of_range(
    error: type[GkdError], setting: str, model: str, blocks: Sequence[int], layers: int
) -> None:
    for block in blocks:
        if not 1 <= block <= layers:
            raise error(
                f"{setting} names {model} block {block}, but the {model} has blocks 1 to {layers}"
            )
