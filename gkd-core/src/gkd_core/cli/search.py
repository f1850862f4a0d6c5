"""`gkd search`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.json_output import json_option
from gkd_core.cli.numeric import WholeRange
from gkd_core.cli.options import RunOptions, assignment, study_options

if TYPE_CHECKING:
    from rich.console import Console

    from gkd_core.studies.budget import Budget
    from gkd_core.studies.search import StudentSearch
    from gkd_core.studies.search_result import SearchResult
    from gkd_core.studies.search_space import SearchedRecipe, SearchSpace
    from gkd_core.studies.shapes import MeasuredShape, Shape
    from gkd_core.training.stage_spec import StageSpec

FOLDER = Path("searches/search")


@click.command()
@study_options
@click.option("--max-latency", metavar="TIME", help="Median time for one sample: 5ms, or 0.5x.")
@click.option("--max-size", metavar="SIZE", help="Size of the weights in fp32, such as 20MB.")
@click.option("--max-weights", metavar="NUMBER", help="Number of weights, such as 10M.")
@click.option(
    "--min-kept", metavar="SHARE", help="Share of the teacher's quality that is sufficient: 97%."
)
@click.option("--time", "duration", default="1h", help="Time for the search, such as 20min. [1h]")
@click.option("--method", "methods", multiple=True, help="A method to try; repeatable.")
@click.option("--recipe", "recipes", multiple=True, help="A recipe to try; repeatable.")
@click.option("--seeds", type=WholeRange(1), default=1, help="Seeds of the final student. [1]")
@click.option("--threads", type=WholeRange(1), default=1, help="Threads of each model. [1]")
@click.option("--output", type=click.Path(path_type=Path), help="Folder. [searches/search]")
@json_option()
def search(
    settings: tuple[str, ...],
    max_latency: str | None,
    max_size: str | None,
    max_weights: str | None,
    min_kept: str | None,
    duration: str,
    methods: tuple[str, ...],
    recipes: tuple[str, ...],
    seeds: int,
    threads: int,
    output: Path | None,
    as_json: bool,
    **flags: Any,
) -> dict[str, Any] | None:
    """Search for the best student within a budget.

    Shapes that exceed the budget are dropped before anything is trained: the time for one sample is
    measured on validation rows, and again at the end. Candidates of the other shapes are trained
    with methods or recipes, initial teacher blocks and learning rates that optuna proposes; those
    that fall behind are stopped. The best candidate on validation rows is compared with the same
    student trained on labels alone. Repeat the command to continue an interrupted search.
    """
    import torch
    from rich.console import Console

    from gkd_core.cli.launching import stoppable
    from gkd_core.plugins import registry
    from gkd_core.studies.budget import SECONDS, Budget, amount
    from gkd_core.studies.search import StudentSearch
    from gkd_core.studies.shapes import measure_slice, shapes_of_search

    until = time.monotonic() + (amount(duration, SECONDS, "--time") or 0.0)
    budget = Budget.read(max_latency, max_size, max_weights, min_kept)
    torch.set_num_threads(threads)
    console = Console(highlight=False, stderr=as_json)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    shared, spec = _stage(flags, settings)
    searched = [_searched(name, shared) for name in recipes]
    tried = methods or _default_methods(spec, recipes)
    folder, shapes = output or FOLDER, _shapes(spec, tried, searched)
    if folder.exists() and not folder.is_dir():
        raise click.UsageError(f"--output {folder} is a file; name a folder")
    say(f"times the teacher and {len(shapes)} shapes")
    before = shapes_of_search(folder, spec, shapes, budget, threads)
    _say_shapes(console, before[0], before[1])
    space = _space(spec, before, budget, tried, searched, shared)

    def missed(shape: Shape, student: Path) -> str:
        return measure_slice(spec, shape, student, budget, threads).reason

    found = StudentSearch(folder, space, registry(), threads, say, missed)
    with stoppable():
        found.run(until)
        result = _result(found, spec, before, budget, seeds)
    page = result.write(found.folder.path / "report")
    if as_json:
        return result.to_json()
    for grid in result.grids():
        console.print(grid.shown())
    for line in result.sentences():
        console.print(line, markup=False)
    console.print(f"student {result.directory}", markup=False, soft_wrap=True)
    console.print(f"report  {page}", markup=False, soft_wrap=True)
    return None


def _result(
    found: StudentSearch,
    spec: StageSpec,
    before: tuple[float, Sequence[MeasuredShape]],
    budget: Budget,
    seeds: int,
) -> SearchResult:
    """Return the result of a search that has ended, with the cost of the best student."""
    from gkd_core.plugins import registry
    from gkd_core.studies.search_result import SearchResult
    from gkd_core.studies.shapes import measure_student

    best = found.finalists()[0].cell
    shape = found.space.shape(best.axes).shape
    after = measure_student(spec, shape, found.student(best), budget)
    numbers = range(found.space.seed, found.space.seed + seeds)
    return SearchResult.of(found, numbers, registry(), before, after)


def _shapes(
    spec: StageSpec, methods: Sequence[str], recipes: Sequence[SearchedRecipe]
) -> list[Shape]:
    """Return the shapes that students of methods and recipes may have."""
    from gkd_core.studies.shapes import shapes_of, slices_of

    teacher = spec.teachers[0].info
    whole = methods or any(not recipe.slices for recipe in recipes)
    sliced = any(recipe.slices for recipe in recipes)
    return [*(shapes_of(teacher) if whole else ()), *(slices_of(teacher) if sliced else ())]


def _stage(flags: dict[str, Any], settings: tuple[str, ...]) -> tuple[dict[str, Any], StageSpec]:
    """Return the settings of all candidates, and the stage that they make."""
    from gkd_core.errors import ConfigError

    options = RunOptions((), None, (), flags)
    shared = {key: value for key, (value, _) in options.flagged.items()}
    shared |= dict(assignment(text, "--set") for text in settings)
    if not flags.get("teacher"):
        raise ConfigError("a search needs a teacher that is trained already: add --teacher MODEL")
    if flags.get("student") or flags.get("student_layers"):
        raise ConfigError("a search chooses the student; remove --student and --student-layers")
    shared["baseline"] = False
    return shared, _stages(shared)[-1]


def _stages(settings: Mapping[str, Any]) -> Sequence[StageSpec]:
    """Return the stages of a run with these settings."""
    from gkd_core.plugins import registry
    from gkd_core.runs.resolved import resolve_run
    from gkd_core.runs.run import prepare_run

    flags = {key: (value, "gkd search") for key, value in settings.items()}
    return prepare_run(resolve_run(flags=flags), registry())


def _searched(recipe: str, shared: Mapping[str, Any]) -> SearchedRecipe:
    """Return a recipe with the steps of its stages.

    Raises:
        ConfigError: It cannot be run with the settings that all candidates share.
    """
    from gkd_core.errors import ConfigError, GkdError
    from gkd_core.studies.cells import total_steps
    from gkd_core.studies.search_space import SearchedRecipe

    try:
        stages = _stages({**shared, "recipe": recipe})
    except GkdError as error:
        raise ConfigError(f"--recipe {recipe}: {error}") from error
    steps = {spec.name: total_steps(spec) for spec in stages}
    return SearchedRecipe(recipe, steps, slices=stages[-1].scale is not None)


def _default_methods(spec: StageSpec, recipes: Sequence[str]) -> Sequence[str]:
    """Return the methods that are tried if none is named."""
    from gkd_core.studies.search_space import METHODS, UNLABELED

    if recipes:
        return ()
    return UNLABELED if spec.is_unlabeled(spec.data.train) else METHODS


def _space(
    spec: StageSpec,
    before: tuple[float, Sequence[MeasuredShape]],
    budget: Budget,
    methods: Sequence[str],
    recipes: Sequence[SearchedRecipe],
    shared: Mapping[str, Any],
) -> SearchSpace:
    """Return the space of candidates.

    Raises:
        ConfigError: No shape is within the budget, or there is no floor of such a metric.
    """
    from gkd_core.studies.cells import total_steps
    from gkd_core.studies.search_space import SearchSpace

    teacher, shapes = before
    _refuse_small_budget([each for each in shapes if each.shape.scale is None], "shape")
    _refuse_small_budget([each for each in shapes if each.shape.scale is not None], "slice")
    return SearchSpace(
        shapes,
        methods,
        recipes,
        shared,
        spec.metric_on(spec.data.validation),
        spec.config.training.lr,
        total_steps(spec),
        None if budget.kept is None else _floor(spec, budget.kept),
        teacher,
    )


def _refuse_small_budget(shapes: Sequence[MeasuredShape], kind: str) -> None:
    """Reject a budget that none of the shapes of one kind meets, if there are any."""
    from gkd_core.errors import ConfigError

    if shapes and all(each.reason for each in shapes):
        smallest = min(shapes, key=lambda each: each.weights)
        raise ConfigError(
            f"no {kind} is within the budget; the smallest, {smallest.shape}, has {smallest.reason}"
        )


def _floor(spec: StageSpec, kept: float) -> float:
    """Return the metric from which on only the latency of a student counts."""
    from gkd_core.errors import ConfigError
    from gkd_core.studies.shapes import teacher_quality

    quality, metric = teacher_quality(spec)
    if not metric.higher_is_better:
        raise ConfigError(
            f"--min-kept needs a metric that is better the larger it is, which {metric.name} is "
            "not; limit the latency, the size or the weights instead"
        )
    return kept * quality


def _say_shapes(console: Console, teacher: float, shapes: Sequence[MeasuredShape]) -> None:
    fitting = [each for each in shapes if not each.reason]
    console.print(
        f"teacher: {teacher:.2f} ms for one sample; {len(fitting)} of {len(shapes)} shapes are "
        f"within the budget: {', '.join(str(each.shape) for each in fitting)}",
        markup=False,
        soft_wrap=True,
    )
