"""Teacher assistants: models between teacher and student, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from gkd_core.api import ConfigError, ModelInfo, Models, Procedure, RunConfig

FIELDS = ("layers", "hidden_size", "heads", "ffn_size")

Dimensions = Mapping[str, int]


class AssistantSize(BaseModel):
    """The size of an assistant; omitted dimensions are the teacher's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: PositiveInt | None = Field(None, description="Transformer blocks.")
    hidden_size: PositiveInt | None = Field(
        None, description="Width of the residual stream; heads and ffn_size follow it."
    )
    heads: PositiveInt | None = Field(None, description="Attention heads.")
    ffn_size: PositiveInt | None = Field(None, description="Feed-forward width.")


class AssistantsConfig(Procedure.Config):
    """Options of a procedure with assistants."""

    assistants: Annotated[int, Field(ge=0)] | list[AssistantSize] = Field(
        1,
        description="Number of assistants, with evenly spaced sizes between teacher and student; "
        "or the size of each, from large to small.",
    )


def shrink(
    assistants: int | Sequence[AssistantSize], config: RunConfig, models: Models
) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and the `student` table of each assistant and, last, of the student.

    The table is empty for a student that starts from its own checkpoint.

    Args:
        assistants: Number or sizes of the assistants; the result is empty if there are none.
        config: The run.
        models: The teacher and the final student.

    Raises:
        ConfigError: A model is not smaller than the one before it, or there is no teacher.
    """
    if not assistants:
        return []
    teacher, student = models.teacher, models.student
    if teacher is None:
        raise ConfigError(
            "assistants stand between a teacher and a student, but the run has no teacher: its "
            f"method {config.method} uses none. Choose a method such as kd"
        )
    sizes = [_dimensions(teacher), *_sizes(assistants, teacher, student), _dimensions(student)]
    _check_decreasing(sizes)
    tables = _tables(sizes, config)
    if config.student.model is not None:
        tables[-1] = {}
    names = [*(f"assistant-{number}" for number in range(1, len(sizes) - 1)), "student"]
    return list(zip(names, tables, strict=True))


def _sizes(
    assistants: int | Sequence[AssistantSize], teacher: ModelInfo, student: ModelInfo
) -> list[dict[str, int]]:
    """Return the size of each assistant, from large to small."""
    if isinstance(assistants, int):
        return [_between(teacher, student, n, assistants) for n in range(1, assistants + 1)]
    return [_dimensions(teacher) | _given(teacher, size) for size in assistants]


def _tables(sizes: Sequence[Dimensions], config: RunConfig) -> list[dict[str, Any]]:
    """Return the `student` table of each model but the first: the run's, with the model's size."""
    changing = [name for name in FIELDS if len({size[name] for size in sizes}) > 1]
    apart = {"model", "new_student", *FIELDS}
    rest = config.student.model_dump(mode="json", exclude=apart, exclude_none=True)
    rest = {name: value for name, value in rest.items() if value != {}} | {"init": _init(config)}
    return [{name: size[name] for name in changing} | rest for size in sizes[1:]]


def _dimensions(model: ModelInfo) -> dict[str, int]:
    return {name: getattr(model, name) for name in FIELDS}


def _given(teacher: ModelInfo, size: AssistantSize) -> dict[str, int]:
    given = size.model_dump(exclude_none=True)
    if "hidden_size" in given:
        scale = given["hidden_size"] / teacher.hidden_size
        follow = {
            "heads": round(teacher.heads * scale),
            "ffn_size": round(teacher.ffn_size * scale),
        }
        return follow | given
    return given


def _between(teacher: ModelInfo, student: ModelInfo, number: int, count: int) -> dict[str, int]:
    """Return the size of an assistant, interpolated linearly from teacher to student."""

    def mean(field: str, multiple: int = 1) -> int:
        start: int = getattr(teacher, field)
        end: int = getattr(student, field)
        return multiple * round((start + (end - start) * number / (count + 1)) / multiple)

    size = {name: mean(name) for name in FIELDS}
    if (teacher.hidden_size, teacher.heads) != (student.hidden_size, student.heads):
        if teacher.hidden_size * student.heads != student.hidden_size * teacher.heads:
            raise ConfigError(
                f"assistants cannot be spaced between {teacher.heads} heads in a width of "
                f"{teacher.hidden_size} and {student.heads} in {student.hidden_size}, because the "
                "heads differ in width. Name the sizes: procedure.assistants=[{layers = N}]"
            )
        size["heads"] = mean("heads", teacher.heads // teacher.kv_heads)
        size["hidden_size"] = size["heads"] * (teacher.hidden_size // teacher.heads)
    return size


def _check_decreasing(sizes: Sequence[Dimensions]) -> None:
    """Reject a model that is larger than the previous one in any dimension, or smaller in none."""
    count = len(sizes) - 2
    who = ["the teacher", *(f"assistant {n}" for n in range(1, count + 1)), "the student"]
    for (before, larger), (name, size) in pairwise(zip(who, sizes, strict=True)):
        grown = any(size[field] > larger[field] for field in FIELDS)
        if grown or size == larger:
            raise ConfigError(
                f"{name} ({_text(size)}) is not smaller than {before} ({_text(larger)}). Ask for "
                "fewer assistants, or name their sizes from large to small: "
                "procedure.assistants=[{layers = N}, ...]"
            )


def _text(size: Dimensions) -> str:
    return ", ".join(f"{name} {value}" for name, value in size.items())


def _init(config: RunConfig) -> str:
    if isinstance(config.student.init, str):
        return config.student.init
    raise ConfigError(
        f"student.init = {config.student.init} names blocks of one model, but with assistants each "
        "student starts from a model of a different depth. Use first, last, spaced or random"
    )
