"""`resolve`: merge files, recipe and command line into a complete configuration per stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_core.config.build import as_tree, build, build_procedure
from gkd_core.config.formats import dotted
from gkd_core.config.graph import Links, link_stages
from gkd_core.config.overlay import Values, split_stages, stage_name, with_stage
from gkd_core.config.problems import origins, refuse
from gkd_core.config.schema import RunConfig
from gkd_core.config.settings import (
    DEFAULT,
    Level,
    Origin,
    Setting,
    origin_of,
    read_assignment,
    read_file,
    read_flag,
    read_table,
)
from gkd_core.config.task_settings import (
    Adjustment,
    TaskAdjustments,
    TaskDefaults,
    TaskSettings,
    adjusted_recipe,
    value_of,
)
from gkd_core.config.unused import unused_options, unused_shape, unused_stages, unused_tables
from gkd_core.errors import ConfigError

if TYPE_CHECKING:
    from gkd_core.contract.model_info import Models
    from gkd_core.plugins import Registry

Shapes = Callable[["ResolvedStage"], "Models"]
"""Returns the shapes of the student and the (first) teacher of a run of one stage."""

ABOUT = ("title", "paper", "description")
"""Keys with which a run file or a recipe describes itself."""

WHOLE_RUN = (
    *("recipe", "paper_values", "procedure", "stages", "output", "tracking", "baseline"),
    *ABOUT,
)
"""Keys that cannot differ between stages."""

ONLY_STAGE = "distil"
"""Name of the single stage of a run without `stages`."""


def path_in(stage: str, path: str) -> str:
    """Return the user-facing key of a setting of a stage: `stages.NAME.training.lr`.

    Args:
        stage: Name of the stage.
        path: The setting, such as `training.lr`.
    """
    return path if stage == ONLY_STAGE else f"stages.{stage}.{path}"


@dataclass(frozen=True)
class ResolvedStage:
    """One stage with all its settings.

    Attributes:
        name: Name of the stage.
        config: Its complete configuration; `stages` is empty.
        origins: Origin of each setting that was given, by dotted key.
        adjusted: The settings of the recipe that the task changes.
        called: What messages call settings that a command has made itself, by path.
    """

    name: str
    config: RunConfig
    origins: Mapping[str, Origin]
    adjusted: tuple[Adjustment, ...] = ()
    called: Mapping[str, str] = field(default_factory=dict)

    def origin(self, path: str) -> str:
        """Return the origin of a setting such as `training.lr`."""
        return str(origin_of(path, self.origins))

    def with_method(self, method: str, chosen_by: str) -> ResolvedStage:
        """Return the stage with a method that is taken as if it were given.

        Args:
            method: The method expression.
            chosen_by: What chooses it, such as a command.
        """
        return replace(
            self,
            config=self.config.model_copy(update={"method": method}),
            origins={**self.origins, "method": Origin(Level.DEFAULT, chosen_by)},
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """The changes that the task makes to the recipe, as a sentence."""
        if not self.adjusted:
            return ()
        changed = ", ".join(map(str, self.adjusted))
        origin = self.adjusted[0].setting.origin
        return (f"{changed}: {origin}; the recipe's own with --paper-values",)

    def path(self, path: str) -> str:
        """Return the user-facing key of a setting of this stage: `stages.NAME.training.lr`."""
        if path in self.called:
            return self.called[path]
        return path_in(self.name, path)

    def as_tree(self) -> dict[str, Any]:
        """Return the settings that a run file can give a stage, in its form."""
        tree = as_tree(self.config)
        return {name: value for name, value in tree.items() if name not in WHOLE_RUN}


@dataclass(frozen=True)
class Resolved:
    """A run with all its settings and their origins.

    Attributes:
        config: The configuration of the run. Its `stages` only name the stages; its `recipe` is
            None, because the recipe's values are merged in.
        stages: The stages in order; a single one, `distil`, with the run's configuration if none
            is given.
        origins: Origin of each setting of the run that was given, by dotted key.
        warnings: Messages about settings without effect.
        recipe: The recipe that the run is based on, or None.
        about: `title`, `paper` and `description`, if given.
    """

    config: RunConfig
    stages: tuple[ResolvedStage, ...]
    origins: Mapping[str, Origin]
    warnings: tuple[str, ...]
    recipe: str | None
    about: Mapping[str, str]

    @property
    def title(self) -> str:
        """The title that the file or recipe gives the run, or an empty string."""
        return self.about.get("title", "")

    @property
    def links(self) -> Mapping[str, Links]:
        """The links from each stage to others, by name."""
        return link_stages(self.config, self.stages)

    def origin(self, path: str) -> str:
        """Return the origin of a setting such as `training.lr` or `stages.NAME.training.lr`."""
        for stage in self.stages:
            prefix = f"stages.{stage.name}."
            if path.startswith(prefix):
                return stage.origin(path.removeprefix(prefix))
        return str(origin_of(path, self.origins))

    def differences(self, other: Resolved, ignore: Collection[str] = ()) -> list[str]:
        """Return the sorted dotted keys whose values differ in another run.

        Args:
            other: The other run.
            ignore: Keys that may differ.
        """
        before, after = self.values(), other.values()
        keys = before.keys() | after.keys()
        return sorted(key for key in keys - set(ignore) if before.get(key) != after.get(key))

    def unsaid(self, settings: Sequence[Setting]) -> list[Setting]:
        """Return the settings whose values differ from this run's."""
        said = {leaf.key: leaf.value for leaf in read_table(as_tree(self.config), DEFAULT)}
        last = {setting.key: setting.value for setting in settings}
        # A list that replaces another is kept as a whole, because it may be shorter.
        lists = {setting.key[0] for setting in settings if setting.value == []}
        return [s for s in settings if s.key[0] in lists or said.get(s.key, []) != last[s.key]]

    def values(self) -> dict[str, Any]:
        """Return the settings that have a value, by dotted key, each stage with all of its own."""
        tree = as_tree(self.config)
        if self.config.stages:
            # The stages hold the other settings, each with the defaults of its own task.
            tree = {name: value for name, value in tree.items() if name in WHOLE_RUN}
            tree["stages"] = {stage.name: stage.as_tree() for stage in self.stages}
        return {dotted(leaf.key): leaf.value for leaf in read_table(tree, DEFAULT)}


def resolve(
    registry: Registry,
    *,
    files: Sequence[str | Path] = (),
    recipe: str | None = None,
    settings: Sequence[str] = (),
    flags: Mapping[str, tuple[Any, str]] | None = None,
    task_defaults: TaskDefaults | None = None,
    task_adjustments: TaskAdjustments | None = None,
    shapes: Shapes | None = None,
    before: Resolved | None = None,
) -> Resolved:
    """Read, merge and validate all sources.

    Precedence: default < task < recipe < what the task adjusts in the recipe < file < command line;
    later files override earlier ones. At equal level, the value of a stage overrides that of the
    run. Stages generated by a procedure have lower precedence than those in files.

    Args:
        registry: The registered plugins.
        files: Run files (TOML, YAML, JSON), lowest precedence first.
        recipe: Name of a recipe; if None, the key `recipe` is used.
        settings: Arguments of `--set`; later ones win.
        flags: Named flags: dotted key to the value and the flag as typed; None means not given.
        task_defaults: Returns the default settings of a task.
        task_adjustments: Returns the settings of a recipe's stage that a task changes, unless the
            setting `paper_values` is true.
        shapes: Returns the models of a run without stages; required by procedures.
        before: The run to resume. Command-line values that only repeat its settings do not override
            its stages, for which a procedure may have chosen other values.

    Raises:
        ConfigError: A setting is wrong; the message lists all problems.
    """
    problems: list[str] = []
    given = [setting for file in files for setting in read_file(Path(file))]
    typed = _command_line(settings, flags or {}, problems)
    given += typed if before is None else before.unsaid(typed)
    recipe, given = _with_recipe(registry, recipe, given)
    about, given = _split_about(given, problems)
    if shapes is not None:
        given = _with_procedure(registry, given, task_defaults, shapes, problems)
    run, stages = split_stages(given, problems)
    stages = [list(_stage_settings(stage, problems)) for stage in stages]
    tasks = TaskSettings(task_defaults, task_adjustments, adjusted_recipe(recipe, run))

    only = None if stages else ONLY_STAGE
    values, adjusted = _values(run, [], only, tasks, problems)
    for index, stage in enumerate(stages):
        for setting in stage:
            if setting.key == ("name",):
                values["stages", index, "name"] = setting
    config = build(registry, values, problems)
    done = [_stage(registry, run, stage, tasks, problems) for stage in stages]
    refuse(problems)
    assert config is not None, "settings that build nothing have a problem"
    given_by = _origins(values)
    alone = ResolvedStage(ONLY_STAGE, config, given_by, adjusted)
    resolved = tuple(filter(None, done)) or (alone,)
    warnings = (
        *_unused(registry, [run, *stages], resolved),
        *unused_shape(run, values),
        *unused_stages(config, resolved),
    )
    return Resolved(config, resolved, given_by, warnings, recipe, about)


def _unused(
    registry: Registry, parts: list[list[Setting]], stages: tuple[ResolvedStage, ...]
) -> Iterator[str]:
    """Yield a warning for each table of options that no stage uses; `parts` as they have them."""
    optimizers, sinks = registry.optimizers, registry.sinks
    yield from unused_tables(registry, parts, stages)
    yield from unused_options("optim", optimizers, lambda each: [each.optim.name], parts, stages)
    yield from unused_options("tracking", sinks, lambda each: each.trackers, parts, stages)


def _command_line(
    settings: Sequence[str], flags: Mapping[str, tuple[Any, str]], problems: list[str]
) -> list[Setting]:
    """Return the settings of the command line; a key may not be set by a flag and by `--set`."""
    given = [setting for text in settings for setting in read_assignment(text)]
    assigned = {setting.key for setting in given}
    flagged = []
    for name, (value, flag) in flags.items():
        for setting in () if value is None else read_flag(name, value, flag):
            if setting.key in assigned:
                problems.append(f"`{setting}` is given twice, by {flag} and by --set; remove one")
            flagged.append(setting)
    return [*flagged, *given]


def _with_recipe(
    registry: Registry, recipe: str | None, given: list[Setting]
) -> tuple[str | None, list[Setting]]:
    """Prepend the settings of the recipe, if one is named, with the lowest precedence."""
    named = [setting for setting in given if setting.key == ("recipe",)]
    given = [setting for setting in given if setting.key != ("recipe",)]
    origin = "--recipe"
    if recipe is None and named:
        recipe, origin = named[-1].value, str(named[-1].origin)
        if not isinstance(recipe, str):
            raise ConfigError(f"recipe must be a string, got {recipe!r} ({origin})")
    if recipe is None:
        return None, given
    try:
        path = registry.recipe(recipe)
    except ConfigError as error:
        raise ConfigError(f"recipe ({origin}): {error}") from error
    below = read_file(path, Level.RECIPE)
    if any(setting.key == ("recipe",) for setting in below):
        raise ConfigError(f"recipe {recipe} ({path}) itself names a recipe; write out its values")
    return recipe, [*below, *given]


def _with_procedure(
    registry: Registry,
    given: list[Setting],
    task_defaults: TaskDefaults | None,
    shapes: Shapes,
    problems: list[str],
) -> list[Setting]:
    """Prepend the stages that the procedure, if one is named, generates."""
    if not any(setting.key[0] == "procedure" for setting in given):
        return given
    tasks = TaskSettings(task_defaults)
    values = tasks.merge([s for s in given if s.key[0] != "stages"], problems)
    config = build(registry, values, problems)
    procedure = build_procedure(registry, config, values, problems) if config else None
    refuse(problems)
    assert config is not None, "settings that build nothing have a problem"
    assert procedure is not None, "so have options"
    alone = config.model_copy(update={"procedure": None})
    models = shapes(ResolvedStage(ONLY_STAGE, alone, _origins(values)))
    table = {"stages": [dict(stage) for stage in procedure.stages(alone, models)]}
    made = read_table(table, Origin(Level.PROCEDURE, f"procedure {procedure.name}"))
    return [*made, *(setting for setting in given if setting.key[0] != "procedure")]


def _split_about(given: list[Setting], problems: list[str]) -> tuple[dict[str, str], list[Setting]]:
    """Separate the keys with which files describe themselves from the settings."""
    about: dict[str, str] = {}
    rest = []
    for setting in given:
        if setting.key[0] not in ABOUT or setting.origin.level is Level.COMMAND_LINE:
            rest.append(setting)
        elif isinstance(setting.value, str):
            about[str(setting.key[0])] = setting.value
        else:
            problems.append(f"{setting} must be a string, got {setting.value!r} ({setting.origin})")
    return about, rest


def _stage_settings(stage: list[Setting], problems: list[str]) -> Iterator[Setting]:
    if stage_name(stage) is None:
        problems.append(f"every stage needs a name; one has none{origins(stage[:1])}")
    for setting in stage:
        if setting.key[0] in WHOLE_RUN:
            problems.append(
                f"`{setting}` ({setting.origin}) cannot differ between stages; set it for the run"
            )
        else:
            yield setting


def _values(
    run: list[Setting],
    stage: list[Setting],
    name: str | None,
    tasks: TaskSettings,
    problems: list[str],
) -> tuple[Values, tuple[Adjustment, ...]]:
    """Merge the settings of a stage, with what its task changes in the recipe.

    Args:
        run: The settings of the run.
        stage: Those of the stage.
        name: Its name; None for what stages have in common, which is not adjusted.
        tasks: The settings that come from tasks.
        problems: Receives a message for each problem.
    """
    before = tasks.merge(with_stage(run, stage), problems)
    adjusted = tasks.adjust(before, name)
    if not adjusted:
        return before, ()
    again: list[str] = []
    values = tasks.merge(with_stage([*run, *adjusted], stage), again)
    problems.extend(problem for problem in again if problem not in problems)
    changed = (s for s in values.values() if s.origin.level is Level.ADJUSTMENT)
    return values, tuple(Adjustment(setting, value_of(before, setting)) for setting in changed)


def _stage(
    registry: Registry,
    run: list[Setting],
    stage: list[Setting],
    tasks: TaskSettings,
    problems: list[str],
) -> ResolvedStage | None:
    name = stage_name(stage)
    values, adjusted = _values(run, stage, name, tasks, problems)
    values.pop(("name",), None)
    config = build(registry, values, problems)
    if config is None or name is None:
        return None
    return ResolvedStage(name, config, _origins(values), adjusted)


def _origins(values: Values) -> dict[str, Origin]:
    return {dotted(key): setting.origin for key, setting in values.items()}
