"""Requirements of methods on the shapes of the models, for `Method.check`."""

from __future__ import annotations

from gkd_core.contract.model_info import Models
from gkd_core.errors import MethodError

KEYS_AND_VALUES = "student.config.num_key_value_heads"
"""Setting of the student's number of key and value heads."""


def same_width(models: Models, owner: str, advice: str = "") -> None:
    """Require that student and teacher have the same hidden size.

    Args:
        models: Shapes of the models; without a teacher, nothing is required.
        owner: Name of the method, for the message.
        advice: What the user can do. Default: give the student the teacher's hidden size.

    Raises:
        MethodError: The hidden sizes differ.
    """
    student, teacher = models.student, models.teacher
    if teacher is None or student.hidden_size == teacher.hidden_size:
        return
    raise MethodError(
        f"{owner} compares hidden states, but the student has hidden size {student.hidden_size} "
        f"and the teacher '{teacher.name}' {teacher.hidden_size}. "
        f"{advice or f'Set student.hidden_size={teacher.hidden_size}'}"
    )


def same_heads(models: Models, owner: str, advice: str = "", *, values: bool = False) -> None:
    """Require that student and teacher have the same number of attention heads.

    Args:
        models: Shapes of the models; without a teacher, nothing is required.
        owner: Name of the method, for the message.
        advice: What the user can do. Default: give the student as many heads as the teacher.
        values: Whether their numbers of key and value heads must be the same, too.

    Raises:
        MethodError: The numbers of heads differ.
    """
    student, teacher = models.student, models.teacher
    if teacher is None:
        return
    for what, setting, learned, known in (
        ("attention heads", "student.heads", student.heads, teacher.heads),
        ("value heads", KEYS_AND_VALUES, student.kv_heads, teacher.kv_heads),
    )[: 2 if values else 1]:
        if learned != known:
            raise MethodError(
                f"{owner} compares head by head, but the student has {learned} {what} and the "
                f"teacher '{teacher.name}' {known}. {advice or f'Set {setting}={known}'}"
            )
