"""The bridge to lm-evaluation-harness: its tasks for the models of a run, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gkd_core.distributed.device import pick_device
from gkd_core.errors import ConfigError
from gkd_core.evaluation.predictions import About, Predictions, file_names
from gkd_core.evaluation.statistics import SampleEstimate, Statistic, paired_bootstrap
from gkd_core.models.load import load_teacher

if TYPE_CHECKING:
    from gkd_core.analysis.exam import ComparedModel
    from gkd_core.kinds.task_kind import TaskKind

BATCH = 16
YAML = (".yaml", ".yml")
HARNESS = "lm-evaluation-harness"


@dataclass(frozen=True)
class HarnessOptions:
    """The request to lm-evaluation-harness.

    Attributes:
        tasks: Names of tasks, or YAML files that define one each.
        num_fewshot: Number of examples in a prompt; None as each task says.
        limit: Number of rows of each task; None for all.
        apply_chat_template: Whether prompts have the form of a conversation.
        include_path: Folder with definitions of further tasks.
    """

    tasks: Sequence[str]
    num_fewshot: int | None = None
    limit: int | None = None
    apply_chat_template: bool = False
    include_path: str | None = None


@dataclass(frozen=True)
class HarnessMetric:
    """A metric of a task for every model.

    Attributes:
        task: Name of the task.
        metric: Name of the metric and of the filter of the answers, such as `acc,none`.
        values: Its value by the name of the model.
        errors: Its standard error likewise, where the harness knows it.
        differences: The value of each model but the first minus that of the first, with a paired
            bootstrap interval; empty unless the metric is a mean over the rows.
    """

    task: str
    metric: str
    values: Mapping[str, float]
    errors: Mapping[str, float]
    differences: Mapping[str, SampleEstimate]


@dataclass(frozen=True)
class HarnessFindings:
    """The result of the harness.

    Attributes:
        metrics: Every metric of every task.
        predictions: What each model says of each row, by task.
    """

    metrics: Sequence[HarnessMetric]
    predictions: Mapping[str, Predictions]

    def as_json(self) -> dict[str, Any]:
        """Return the metrics as JSON can hold them."""
        return {"metrics": [asdict(metric) for metric in self.metrics]}

    def write(self, folder: Path) -> None:
        """Write the predictions for each task to a folder of its name."""
        for task, predictions in self.predictions.items():
            predictions.write(folder / task.replace("/", "_"))

    def table(self) -> Table:
        """Return a table with a row per metric and a column per model."""
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("task", overflow="fold")
        table.add_column("metric", overflow="fold")
        for name in self.metrics[0].values if self.metrics else ():
            table.add_column(name, justify="right", overflow="fold")
        for metric in self.metrics:
            cells = [_shown(metric, name) for name in metric.values]
            table.add_row(metric.task, metric.metric.removesuffix(",none"), *cells)
        return table


def run_harness(
    models: Sequence[ComparedModel], kind: TaskKind, options: HarnessOptions
) -> HarnessFindings:
    """Evaluate causal language models on tasks of lm-evaluation-harness.

    Args:
        models: The models; the others are compared with the first, a teacher.
        kind: The kind of causal language models.
        options: The tasks, and how they are asked.

    Raises:
        ConfigError: The harness is not installed, or a task does not exist.
    """
    harness = _import_harness()
    names, places = _tasks(options)
    manager = harness.tasks.TaskManager(
        include_path=places or None, include_defaults=len(names) > len(places)
    )
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(
            f"--tasks: lm-evaluation-harness has no task '{unknown[0]}'; name the folder of its "
            "definition with --include-path, or the YAML file itself"
        )
    found = {
        one.name: harness.simple_evaluate(
            _harness_model(harness, one, kind),
            tasks=list(names),
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            apply_chat_template=options.apply_chat_template,
            task_manager=manager,
            log_samples=True,
        )
        for one in models
    }
    files = file_names(one.called or Path(one.model).name for one in models)
    return _findings(found, dict(zip(files, found, strict=True)))


def _import_harness() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise ConfigError(
            f"--tasks needs lm-evaluation-harness ({error}). Install it with "
            "pip install 'gkd-core[lm-eval]'"
        ) from error
    return lm_eval


def _tasks(options: HarnessOptions) -> tuple[list[str], list[str]]:
    """Return the names of the tasks, and the folders with definitions that the user named."""
    names, places = [], [] if options.include_path is None else [options.include_path]
    for task in options.tasks:
        if not task.endswith(YAML):
            names.append(task)
            continue
        path = Path(task)
        if not path.is_file():
            raise ConfigError(f"--tasks: there is no file {task}")
        named = yaml.load(path.read_text(), yaml.BaseLoader)
        if not isinstance(named, dict) or not isinstance(named.get("task"), str):
            raise ConfigError(f"--tasks: {task} does not define a task (it has no key 'task')")
        names.append(named["task"])
        places.append(str(path.parent))
    return names, places


def _harness_model(harness: Any, compared: ComparedModel, kind: TaskKind) -> Any:
    """Return a model as the harness sees it."""
    device = pick_device("auto")
    model = load_teacher(compared.model, kind, (), compared.trust_remote_code, compared.name, None)
    return harness.models.huggingface.HFLM(
        pretrained=model.to(device).eval(),
        tokenizer=compared.own_tokenizer,
        backend="causal",
        batch_size=BATCH,
        device=str(device),
        prefix_token_id=_prefix(compared),
    )


def _prefix(compared: ComparedModel) -> int | None:
    """Return the token that stands before a text which nothing precedes."""
    tokenizer = compared.own_tokenizer
    names = ("bos_token_id", "eos_token_id", "cls_token_id", "pad_token_id")
    return next((i for name in names if (i := getattr(tokenizer, name)) is not None), None)


def _findings(results: Mapping[str, Any], files: Mapping[str, str]) -> HarnessFindings:
    """Return the results of the harness, model by model, as metrics and predictions.

    Args:
        results: What `simple_evaluate` returned, by the name of the model.
        files: The name of each model by that of its file.
    """
    first = next(iter(results.values()))
    metrics = []
    for task, values in first["results"].items():
        for metric, value in values.items():
            if isinstance(value, float) and "_stderr" not in metric and "," in metric:
                metrics.append(_metric(task, metric, results))
    predictions = {
        task: _predictions(task, {n: found["samples"][task] for n, found in results.items()}, files)
        for task in first["samples"]
    }
    return HarnessFindings(metrics, predictions)


def _metric(task: str, metric: str, results: Mapping[str, Any]) -> HarnessMetric:
    name, answers = metric.split(",", 1)
    found = {model: each["results"][task] for model, each in results.items()}
    errors = {model: values.get(f"{name}_stderr,{answers}") for model, values in found.items()}
    rows = {model: _row_values(each, task, name, answers) for model, each in results.items()}
    values = {model: float(each[metric]) for model, each in found.items()}
    return HarnessMetric(
        task,
        metric,
        values,
        {model: error for model, error in errors.items() if isinstance(error, float)},
        dict(_differences(rows, values)),
    )


def _row_values(found: Any, task: str, metric: str, answers: str) -> list[Any]:
    """Return the metric of each row; a group of tasks has no rows of its own."""
    samples = found["samples"].get(task, ())
    return [one.get(metric) for one in samples if one["filter"] == answers]


def _differences(
    rows: Mapping[str, list[Any]], values: Mapping[str, float]
) -> Iterator[tuple[str, SampleEstimate]]:
    """Yield the difference of each model from the first, if the metric is a mean over the rows."""
    numbers = {}
    for model, each in rows.items():
        if not each or not all(isinstance(value, (int, float)) for value in each):
            return
        numbers[model] = np.array(each, np.float64)
        if not np.isclose(numbers[model].mean(), values[model]):
            return
    (_, first), *others = numbers.items()
    for model, own in others:
        yield model, paired_bootstrap(_mean_of(own), _mean_of(first), len(own))


def _mean_of(values: NDArray[np.float64]) -> Statistic:
    return lambda rows: float(values[rows].mean())


def _predictions(
    task: str, samples: Mapping[str, Sequence[Any]], files: Mapping[str, str]
) -> Predictions:
    """Return the samples of a task as predictions; with several filters, those of the first."""
    chosen = {
        name: sorted(
            (one for one in rows if one["filter"] == rows[0]["filter"]),
            key=lambda one: int(one["doc_id"]),
        )
        for name, rows in samples.items()
    }
    first = next(iter(chosen.values()))
    metric = str(first[0]["metrics"][0]) if first else ""
    rows = pa.table(
        {
            "row": [one["doc_id"] for one in first],
            "hash": [one["doc_hash"] for one in first],
            "text": [str(one["arguments"][0][0]) for one in first],
            "pair": [[str(request[-1]) for request in one["arguments"]] for one in first],
            "gold": [str(one["target"]) for one in first],
            "group": pa.nulls(len(first), pa.string()),
        }
    )
    models = {file: _model_table(chosen[name]) for file, name in files.items()}
    return Predictions(About(task, HARNESS, (), metric), rows, models, dict(files))


def _model_table(samples: Sequence[Any]) -> pa.Table:
    """Return a model's predictions: log-likelihoods as scores or text, with metrics."""
    columns: dict[str, Any] = {"hash": [one["doc_hash"] for one in samples]}
    answers = [list(one["filtered_resps"]) for one in samples]
    if all(isinstance(each, (list, tuple)) for row in answers for each in row):
        columns["scores"] = [[float(each[0]) for each in row] for row in answers]
    elif all(isinstance(each, (int, float)) for row in answers for each in row):
        columns["scores"] = [[float(each) for each in row] for row in answers]
    else:
        columns["prediction"] = [str(row[0]) if row else None for row in answers]
    for metric in samples[0]["metrics"] if samples else ():
        values = [one[metric] for one in samples]
        if all(isinstance(value, (int, float)) for value in values):
            columns[metric] = [float(value) for value in values]
    return pa.table(columns)


def _shown(metric: HarnessMetric, name: str) -> str:
    """Return the cell of a model: the value, and how far it is from the first model."""
    value = f"{metric.values[name]:.4f}"
    if name in metric.differences:
        apart = metric.differences[name]
        value += f" ({apart.value:+.4f})"
        if apart.interval is not None:
            value += f"\n[{apart.interval.low:+.4f}, {apart.interval.high:+.4f}]"
    elif name in metric.errors:
        value += f" ± {metric.errors[name]:.4f}"
    return value
