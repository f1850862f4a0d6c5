"""`lineage.json`: what an exported student was made from, who taught it, and how good it is.

It is written to be sent on: of paths of the machine it has what `public_name` tells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_core import __version__, digest
from gkd_core.config.expression import parse_expression
from gkd_core.config.graph import STAGE
from gkd_core.config.schema import task_name
from gkd_core.contract.run_info import STAGES
from gkd_core.contract.task import SPLITS
from gkd_core.deploy.onnx_graph import GRAPH, opset_of, package_versions
from gkd_core.errors import ConfigError, GkdError
from gkd_core.runs.public_names import public_name, without_folders
from gkd_core.runs.result import StageResult
from gkd_core.runs.run_files import DONE
from gkd_core.training.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from gkd_core.analysis.finished_run import FinishedRun
    from gkd_core.config.resolve import ResolvedStage
    from gkd_core.config.schema import TaskConfig, TeacherConfig
    from gkd_core.deploy.export import ExportOptions
    from gkd_core.deploy.verification import Verification
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec

LINEAGE = "lineage.json"
FORMAT = 2
"""Version of the form of the file: since 2, teachers have an origin."""


def lineage(
    run: FinishedRun,
    registry: Registry,
    directory: Path,
    options: ExportOptions,
    found: Verification,
    spec: StageSpec,
) -> dict[str, Any]:
    """Return the lineage of an export, as JSON has it.

    Args:
        run: The run.
        registry: The plugins, which know the papers of their methods.
        directory: The export, written but for its card.
        options: How it was exported.
        found: What its verification found.
        spec: The last stage, with its rows.
    """
    made_from, last = _made_from(run), run.resolved.stages[-1]
    content = _content(made_from, last.name)
    known: dict[str, Any] = {
        "format": FORMAT,
        "gkd": __version__,
        "license": options.license,
        "export": _export(directory, options),
        "verification": asdict(found),
        "student": _student(run, directory, spec.kind.has_classes),
        "task": _task(last, spec.kind.name),
        "data": _data(spec, content),
        "teachers": _teachers(last, content),
        "about": dict(run.resolved.about),
        "stages": [_stage(stage, run, registry) for stage in run.resolved.stages],
        "results": _results(run),
        "made_from": made_from,
    }
    public: dict[str, Any] = _public(known)
    return public


def exported_files(directory: Path) -> frozenset[str]:
    """Return the names of the files that the export in a directory was made of.

    Raises:
        ConfigError: Its lineage cannot be read.
    """
    path = directory / LINEAGE
    try:
        return frozenset(json.loads(path.read_text())["export"]["files"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} cannot be read, so it is unknown whether it is an export; move the directory "
            "away, or name another"
        ) from error


def _export(directory: Path, options: ExportOptions) -> dict[str, Any]:
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    files = {path.relative_to(directory).as_posix(): path for path in paths}
    hashes = digest.of_each_named(files)
    graph = directory / GRAPH
    return {
        "format": options.format,
        "quantization": "int8, dynamic, per channel" if options.int8 else None,
        "accepted": options.accept,
        "opset": opset_of(graph) if graph.is_file() else None,
        "packages": package_versions(),
        "files": {
            name: {"bytes": files[name].stat().st_size, "sha256": hashes[name]} for name in hashes
        },
    }


def _student(run: FinishedRun, directory: Path, has_classes: bool) -> dict[str, Any]:
    """Return what the exported model is."""
    config = json.loads((directory / "config.json").read_text())
    return {
        "architecture": config.get("model_type"),
        "classes": list((config.get("id2label") or {}).values()) if has_classes else [],
        "parameters": run.results["rows"][-1].get("parameters"),
    }


def _task(stage: ResolvedStage, kind: str) -> dict[str, Any]:
    task = stage.config.task
    named = {"name": task_name(task), "kind": kind}
    rows = {name: getattr(task, name) for name in SPLITS}
    return named | {name: None if value is None else str(value) for name, value in rows.items()}


def _data(spec: StageSpec, content: Mapping[str, str]) -> dict[str, Any]:
    """Return where the rows are from, and how many the last stage has learned from."""
    found: dict[str, Any] = {"source": spec.data.source}
    for name in ("training", "validation"):
        known = (text for key, text in content.items() if key.startswith(f"{name} rows"))
        count, _, _ = next(known, "").partition(", SHA-256")
        found[name] = int(count.replace(",", "")) if count else None
    return found


def _stage(stage: ResolvedStage, run: FinishedRun, registry: Registry) -> dict[str, Any]:
    config = stage.config
    path = run.directory / STAGES / stage.name / DONE
    names = parse_expression(config.method, stage.origin("method")).names
    return {
        "name": stage.name,
        "method": config.method,
        "papers": {name: paper for name in names if (paper := _paper(name, registry))},
        "seed": config.seed,
        "steps": StageResult.load(path).steps if path.is_file() else None,
        "settings": stage.as_tree(),
    }


def _paper(method: str, registry: Registry) -> str:
    """Return the publication of a method; an empty text if its plugin is no longer installed."""
    try:
        return registry.method(method).paper
    except GkdError:
        return ""


def _results(run: FinishedRun) -> dict[str, Any]:
    """Return the comparison of the models of the run."""
    names = ("name", "metrics", "interval", "parameters", "bytes", "kept", "agreement")
    rows = [{name: row.get(name) for name in names} for row in run.results["rows"]]
    return {**{name: run.results[name] for name in ("metric", "split", "samples")}, "models": rows}


def _made_from(run: FinishedRun) -> dict[str, Any]:
    """Return the hashes of rows and models, and the versions, that every stage was made from."""
    found = {}
    for stage in run.resolved.stages:
        path = run.directory / STAGES / stage.name / MANIFEST
        if path.is_file():
            inputs = Manifest.load(path).inputs
            found[stage.name] = {name: inputs.get(name) for name in ("content", "versions")}
    return found


def _content(made_from: Mapping[str, Any], stage: str) -> Mapping[str, str]:
    """Return the digests of the rows and models that a stage was made from."""
    return (made_from.get(stage) or {}).get("content") or {}


def _teachers(stage: ResolvedStage, content: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the teachers of a stage by name; a task's own only if the stage was made from it."""
    has_teacher = any(name.startswith("teacher") for name in content)
    return {
        each.name: _teacher(each, stage.config.task, content)
        for each in stage.config.teachers
        if has_teacher or each.model
    }


def _teacher(
    teacher: TeacherConfig, task: TaskConfig, content: Mapping[str, str]
) -> dict[str, str]:
    """Return what a teacher is called, and where it is from.

    Args:
        teacher: The teacher.
        task: The task, which may have a default teacher.
        content: What the stage was made from: of a hub model its id and revision.
    """
    model = teacher.model
    if model is None and teacher.source is not None:
        return {"model": teacher.source.name, "origin": "source"}
    if model is None:
        return {"model": f"{task_name(task)}, {teacher.size}", "origin": "task"}
    if model.startswith(STAGE):
        return {"model": model.removeprefix(STAGE), "origin": "stage"}
    if any(text.startswith(f"{model} ") for text in content.values()):
        return {"model": model, "origin": "hub"}
    return {"model": public_name(model), "origin": "directory"}


def _public(value: Any) -> Any:
    """Return a value without the folders of this machine in its texts."""
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, Mapping):
        return {_public(name): _public(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_public, value))
    return value if isinstance(value, (int, float, bool, type(None))) else str(value)


def papers(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each method of a lineage with the paper to cite for it, once.

    Args:
        known: The lineage.
    """
    found = {name: paper for stage in known["stages"] for name, paper in stage["papers"].items()}
    yield from found.items()
