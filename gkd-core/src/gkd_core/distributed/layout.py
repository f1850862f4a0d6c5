"""`Layout`: the number of processes that share one copy of the student and of each teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

from gkd_core.errors import ConfigError

STUDENT = "parallel.tensor"


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism; the ranks of a tensor group are consecutive.

    With 8 ranks and a student of degree 2, ranks 0 and 1 share a copy of the student, 2 and 3 the
    next, and so on; the even ranks form one data group, the odd ranks the other. A teacher of
    degree 4 on the same ranks is shared by ranks 0 to 3, and by 4 to 7.

    Attributes:
        world: Number of processes.
        tensor: Processes that share one copy of the student.
        teachers: Processes that share one copy of a teacher, by teacher name.

    Raises:
        ConfigError: The degrees are incompatible; the message names the relation.
    """

    world: int
    tensor: int = 1
    teachers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for origin, degree in self.degrees().items():
            if degree < 1 or self.world % degree:
                raise ConfigError(
                    f"{origin} = {degree} does not divide the number of processes "
                    f"({self.world} % {degree} = {self.world % max(degree, 1)}); choose one of "
                    f"{listed(divisors(self.world))}, or start more (--nproc)"
                )
        for (origin, degree), (other, second) in combinations(self.degrees().items(), 2):
            wide, narrow = max(degree, second), min(degree, second)
            if wide % narrow:
                raise ConfigError(
                    f"{other} = {second} and {origin} = {degree} do not fit each other ({wide} % "
                    f"{narrow} = {wide % narrow}): groups that share a model must be nested. "
                    "Choose degrees of which one divides the other"
                )

    @property
    def is_whole(self) -> bool:
        """Whether every process holds whole models."""
        return set(self.degrees().values()) == {1}

    @property
    def data(self) -> int:
        """Number of copies of the student, each of which sees its own rows of a batch."""
        return self.world // self.tensor

    def degrees(self) -> dict[str, int]:
        """Return the tensor degree of every model, by the setting that determines it."""
        several = len(self.teachers) > 1
        teachers = {
            f"teachers.{name}.tensor" if several else "teacher.tensor": degree
            for name, degree in self.teachers.items()
        }
        return {STUDENT: self.tensor, **teachers}


def divisors(number: int) -> list[int]:
    """Return the divisors of a number."""
    return [d for d in range(1, number + 1) if number % d == 0]


def listed(numbers: list[int]) -> str:
    """Return numbers as a comma-separated list for messages."""
    return ", ".join(map(str, numbers))
