"""A description of a recipe's training and requirements, read from its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gkd_core.config.expression import Expression, parse_expression
from gkd_core.config.graph import stage_of
from gkd_core.config.resolve import resolve
from gkd_core.config.schema import LM

if TYPE_CHECKING:
    from gkd_core.config.resolve import ResolvedStage
    from gkd_core.plugins import Registry


@dataclass(frozen=True)
class RecipeStage:
    """A stage of a recipe.

    Attributes:
        name: Its name.
        expression: Its methods.
        predicts_tokens: Whether it trains a language model; otherwise the data decides.
        teachers: Number of teachers that the user gives and that its methods read.
        needs_labels: Whether a method reads labels of the data.
    """

    name: str
    expression: Expression
    predicts_tokens: bool
    teachers: int
    needs_labels: bool

    @property
    def task(self) -> str:
        """The prediction target, as text."""
        return "language modeling" if self.predicts_tokens else "that of the data"


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
        name: Its name.
        about: `title`, `paper` and `description`, as far as given.
        stages: Its stages; one if a procedure generates them.
        procedure: Name of that procedure, or None.
    """

    name: str
    about: Mapping[str, str]
    stages: Sequence[RecipeStage]
    procedure: str | None

    @property
    def summary(self) -> str:
        """The stages and their methods on one line."""
        if self.procedure is not None:
            return f"{self.stages[0].expression} in stages of the procedure {self.procedure}"
        return ", then ".join(str(stage.expression) for stage in self.stages)

    @property
    def needs(self) -> list[str]:
        """The requirements that the user provides: teachers, labels."""
        language = [stage for stage in self.stages if stage.teachers and stage.predicts_tokens]
        others = [stage for stage in self.stages if stage.teachers and not stage.predicts_tokens]
        found = [
            *self._teachers(language, "a language model", "language models"),
            *self._teachers(others, "a model of the task", "models of the task"),
        ]
        labeled = any(stage.needs_labels for stage in self.stages)
        return [*(found or ["a model to make the student of"]), *(["labels"] if labeled else [])]

    def _teachers(self, stages: Sequence[RecipeStage], one: str, several: str) -> Iterator[str]:
        """Yield the teachers of some of the stages, as text."""
        if stages:
            count = max(stage.teachers for stage in stages)
            teachers = f"{one} as teacher" if count == 1 else f"{count} {several} as teachers"
            names = " and ".join(stage.name for stage in stages)
            yield f"{teachers} of {names}" if len(stages) < len(self.stages) else teachers


def read_recipe(name: str, registry: Registry) -> Recipe:
    """Return a recipe.

    Raises:
        GkdError: There is none of this name, or its file is wrong.
    """
    resolved = resolve(registry, recipe=name)
    procedure = resolved.config.procedure
    stages = tuple(_stage(stage, registry) for stage in resolved.stages)
    return Recipe(name, resolved.about, stages, None if procedure is None else procedure.name)


def _stage(stage: ResolvedStage, registry: Registry) -> RecipeStage:
    config = stage.config
    expression = parse_expression(config.method, stage.origin("method"))
    methods = [registry.method(name) for name in expression.names]
    reads = bool(expression.groups) or any(method.teachers == "one" for method in methods)
    given = [teacher for teacher in config.teachers if stage_of(teacher.model) is None]
    predicts_tokens = config.task.kind is not None and (
        config.task.kind == LM or registry.kind(config.task.kind).is_lm
    )
    return RecipeStage(
        name=stage.name,
        expression=expression,
        predicts_tokens=predicts_tokens,
        teachers=len(given) if reads else 0,
        needs_labels=not predicts_tokens and any(method.needs_labels for method in methods),
    )
