"""The predicted cost of a study, from a short run for each method and shape."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gkd_core.atomic import write_file
from gkd_core.contract.launcher import Launcher
from gkd_core.lease import hold
from gkd_core.strict_json import json_text
from gkd_core.studies.cell import Cell, CellState
from gkd_core.studies.cost import STUDENT, Cost, read_cost
from gkd_core.studies.design import AxisPoint
from gkd_core.studies.execution import Room, Watcher, launch_cells
from gkd_core.studies.predicted_time import Seconds, save_forecast
from gkd_core.studies.study import Study
from gkd_core.studies.study_config import Keep, TuneConfig
from gkd_core.studies.study_folder import StudyFolder

COSTS = "costs.json"


@dataclass(frozen=True)
class GroupForecast:
    """The cost of the cells that differ only by seed.

    Attributes:
        label: Their values on the axes.
        group: A hash of these.
        cells: How many are not finished.
        task: Their task, if the study has several.
        trials: How many trials of learning rates are not finished.
        cost: What one costs; None if its short run has failed.
        seconds: Duration of all of them, one after the other, with the trials.
        each: Duration of one, by the share of the steps that it is trained for.
        failure: Why the short run has failed.
    """

    label: str
    group: str
    cells: int
    task: str = ""
    trials: int = 0
    cost: Cost | None = None
    seconds: float = 0.0
    each: Seconds = field(default_factory=dict)
    failure: str = ""


def time_cells(study: Study, launcher: Launcher, room: Room, watcher: Watcher) -> None:
    """Run the short runs of a study that are missing, and keep what they have cost.

    Args:
        study: The study.
        launcher: Starts them.
        room: What they may take.
        watcher: Sees how they proceed.
    """
    folder = study.open_timing()
    cells = [cell for cell in folder.cells if folder.state(cell) is not CellState.FINISHED]
    if cells:
        with watcher.of(cells):
            for cell in launch_cells(folder, cells, launcher, room, watcher):
                _keep(folder, cell, study)


def forecast(study: Study, folder: StudyFolder) -> list[GroupForecast]:
    """Return the cost of a study's unfinished cells, by group, and store it.

    Args:
        study: The study, whose short runs are over.
        folder: Its folder.
    """
    timing = study.open_timing()
    costs = _costs(timing)
    found = [_group(study, folder, timing, costs, point) for point in study.possible]
    save_forecast(folder, ((each.group, each.each) for each in found))
    return found


def _group(
    study: Study,
    folder: StudyFolder,
    timing: StudyFolder,
    costs: Mapping[str, Cost],
    point: AxisPoint,
) -> GroupForecast:
    values = {name: value for name, value in point.values.items() if name != "seed"}
    label = ", ".join(f"{axis}={value}" for axis, value in values.items())
    own = [cell for cell in folder.cells if _is_of(cell, point)]
    left = len(folder.config.seeds) - sum(folder.is_over(c) for c in own if c.role == "report")
    trials = trials_left(study.config.tune, folder, own)
    short = study.maker.make_timing(point).cell
    found = GroupForecast(label, short.group, left, str(point.task or ""), len(trials))
    if short.name not in costs:
        return replace(found, failure=timing.failure(short) or "was not timed")
    cost, specs = costs[short.name], study.maker.prepare(point).specs
    each = {share: cost.trial_seconds(specs, share) for share in trial_shares(study.config.tune)}
    each[1.0] = cost.seconds(specs)
    seconds = left * each[1.0] + sum(each[share] for share in trials)
    return replace(found, cost=cost, seconds=seconds, each=each)


def trials_left(
    tune: TuneConfig | None, folder: StudyFolder, cells: Sequence[Cell]
) -> Sequence[float]:
    """Return the share of the steps of each trial of learning rates that is not over.

    Args:
        tune: How rates are tuned, if they are.
        folder: The folder of the study.
        cells: The cells so far that differ by seed, or serve to tune them.
    """
    if any(cell.role == "report" for cell in cells):
        return ()  # their rate is settled
    over = Counter(cell.share for cell in cells if folder.is_over(cell))
    return list((Counter(trial_shares(tune)) - over).elements())


def trial_shares(tune: TuneConfig | None) -> Iterator[float]:
    """Yield the share of the steps of each trial by which a learning rate is tuned."""
    if tune is None:
        return
    count = len(tune.lr_factors)
    for share in tune.shares:
        yield from [share] * count
        count = math.ceil(count / 2)


def _is_of(cell: Cell, point: AxisPoint) -> bool:
    return dict(cell.axes) == dict(point.axes) and point.task in (None, cell.task)


def _keep(folder: StudyFolder, cell: Cell, study: Study) -> None:
    """Note what a short run has cost, and remove its student."""
    if folder.is_over(cell):
        with hold(folder.path / COSTS, wait=True):
            costs = {**_costs(folder), cell.name: read_cost(folder, cell, study.registry)}
            content = {name: cost.to_json() for name, cost in costs.items()}
            write_file(folder.path / COSTS, json_text(content, indent=1))
        shutil.rmtree(folder.run_directory(cell) / STUDENT, ignore_errors=True)


def _costs(folder: StudyFolder) -> dict[str, Cost]:
    path = folder.path / COSTS
    if not path.exists():
        return {}
    return {name: Cost.from_json(each) for name, each in json.loads(path.read_text()).items()}


def disk(groups: Sequence[GroupForecast], keep: Keep) -> int:
    """Return the bytes that the cells will take on the disk, with the trials.

    Args:
        groups: The forecasts.
        keep: Which students stay: the `best` of each task, `all` or `none`.
    """
    known = [(each, each.cost, each.cells + each.trials) for each in groups if each.cost]
    every = sum(runs * cost.disk for _, cost, runs in known)
    if keep == "all":
        return every + sum(runs * cost.student for _, cost, runs in known)
    best: dict[str, int] = {}
    for group, cost, runs in known:
        if runs:
            best[group.task] = max(best.get(group.task, 0), cost.student)
    return every + (sum(best.values()) if keep == "best" else 0)
