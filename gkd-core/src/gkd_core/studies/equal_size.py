"""Students of different depth with the same number of weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gkd_core.config.schema import StudentConfig
from gkd_core.models.save import count_parameters
from gkd_core.planning.shapes import build_shape
from gkd_core.students.shape import student_config
from gkd_core.training.stage_spec import StageSpec

TOLERANCE = 0.02
"""Share of the weights by which a student may differ before it gets one head more."""

FFN_MULTIPLE = 8
"""Feed-forward widths are multiples of this, as hardware likes them."""


def equal_width(spec: StageSpec, layers: Any) -> Mapping[str, int]:
    """Return the widths with which a student of another depth has as many weights.

    The hidden size keeps the heads of the teacher's size; the feed-forward width makes up for the
    rest, as far as the teacher's weights can fill it.

    Args:
        spec: The stage that makes the student that it is to equal in size.
        layers: The depth: a number of blocks, `half` or `all`.

    Returns:
        The settings `student.hidden_size` and `student.ffn_size`.
    """
    teacher = spec.teachers[0].info
    head = teacher.hidden_size // teacher.heads
    ratio = teacher.ffn_size / teacher.hidden_size
    most = None if spec.config.student.init == "random" else teacher.ffn_size
    size = _sizes(spec, layers)
    wanted = _sizes(spec, spec.config.student.layers)(spec.student.hidden_size, None)
    heads = _largest(lambda heads: size(heads * head, None), wanted)
    widths = [
        (hidden, _ffn_size(functools.partial(size, hidden), round(ratio * hidden), wanted, most))
        for hidden in (heads * head, (heads + 1) * head)
    ]
    by_distance = sorted(widths, key=lambda width: abs(size(*width) - wanted))
    near = [width for width in widths if abs(size(*width) - wanted) <= TOLERANCE * wanted]
    hidden, ffn = (near or by_distance)[0]
    return {"student.hidden_size": hidden, "student.ffn_size": ffn}


def _ffn_size(size: Callable[[int], int], usual: int, wanted: int, most: int | None) -> int:
    """Return the feed-forward width, from half to twice the usual, whose size is nearest.

    Args:
        size: Counts the weights of a student with a feed-forward width.
        usual: The width with the proportions of the teacher.
        wanted: The number of weights.
        most: The largest width; None if there is no limit.
    """
    low, high = max(usual // 2, FFN_MULTIPLE) // FFN_MULTIPLE, usual * 2 // FFN_MULTIPLE
    steps = _largest(lambda step: size((low + step) * FFN_MULTIPLE), wanted, high - low)
    candidates = [(low + step) * FFN_MULTIPLE for step in (steps, steps + 1)]
    nearest = min(candidates, key=lambda each: abs(size(each) - wanted))
    return nearest if most is None else min(nearest, most)


def _sizes(spec: StageSpec, layers: Any) -> Callable[[int, int | None], int]:
    """Return a function that counts the weights of a student by hidden and feed-forward width."""
    teacher, kind, classes = spec.teachers[0], spec.kind, spec.data.classes

    def _size(hidden: int, ffn: int | None) -> int:
        # Random weights may be wider than the teacher's; whether they can be is checked later.
        shape = StudentConfig(layers=layers, hidden_size=hidden, ffn_size=ffn, init="random")
        config = student_config(shape, teacher.config, kind, classes)
        with torch.device("meta"):
            return count_parameters(
                build_shape(config, kind, classes, teacher.trust_remote_code, True)
            )

    return _size


def _largest(size: Callable[[int], int], wanted: int, most: int = 4096) -> int:
    """Return the largest number, from 1, whose size is at most as wanted; 1 if there is none."""
    low, high = 1, 2
    while high < most and size(high) <= wanted:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= wanted else (low, middle)
    return low
