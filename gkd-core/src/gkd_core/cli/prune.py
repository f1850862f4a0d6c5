"""`gkd prune`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.new_directory import new_directory, refuse_taken
from gkd_core.cli.numeric import Real, RealRange, Whole, WholeRange
from gkd_core.cli.options import RunOptions, file_options, show_warnings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gkd_core.analysis.comparison import Comparison
    from gkd_core.students.prune import PruneTarget
    from gkd_core.training.stage_spec import StageSpec


@click.command()
@file_options
@click.option("--model", required=True, help="Directory or hub id of a trained model.")
@click.option("--output", required=True, help="Directory for the result; must be new.")
@click.option("--data", help="Labeled rows: jsonl, csv, tsv, parquet, txt.")
@click.option(
    "--parameters", type=Real(), help="Parameters to keep: a share (0.5) or a number (3e7)."
)
@click.option("--width", type=RealRange(0, 1), help="Share of heads and neurons to keep, instead.")
@click.option("--depth", type=Whole(), help="Blocks to keep. [all]")
@click.option(
    "--blocks",
    type=click.Choice(["influence", "first", "last", "spaced"]),
    default="influence",
    show_default=True,
    help="Which blocks to keep: those that change their input most, or by position.",
)
@click.option(
    "--even", is_flag=True, help="Prune all blocks equally, so that any tool can load the result."
)
@click.option(
    "--multiple",
    type=WholeRange(1),
    default=8,
    show_default=True,
    help="Keep the number of neurons in a block a multiple of this.",
)
@click.option(
    "--rows",
    type=WholeRange(1),
    default=512,
    show_default=True,
    help="Training rows on which importance is measured.",
)
def prune(
    files: tuple[Path, ...],
    model: str,
    output: str,
    data: str | None,
    settings: tuple[str, ...],
    rows: int,
    **target: Any,
) -> None:
    """Prune blocks, heads and neurons of a trained model.

    The parts least important for the labels of the training rows are removed first. The result is
    saved as a model and compared with the original. It is meant to be trained further, as the
    student of a run.
    """
    from rich.console import Console

    from gkd_core.models.load import load_teacher
    from gkd_core.students.build import shape
    from gkd_core.students.prune import PruneTarget

    _check_target(target)
    place = new_directory(output)
    spec = _draw(files, model, data, settings)
    trust = spec.teachers[0].trust_remote_code
    whole = load_teacher(model, spec.kind, spec.data.classes, trust, "--model")
    made = _pruned(whole, spec, rows, PruneTarget(**target))
    _save(made, model, spec, place)
    console = Console(highlight=False)
    console.print(f"before  {shape(whole)}\nafter   {shape(made)}", markup=False)
    console.print(_compared(spec, model, place, trust).table())


def _pruned(
    whole: PreTrainedModel, spec: StageSpec, rows: int, target: PruneTarget
) -> PreTrainedModel:
    """Return a smaller copy of a model, by what it does with some rows of a stage."""
    from gkd_core.models.tokenizer import set_padding
    from gkd_core.plugins import registry
    from gkd_core.students.prune import prune as smaller
    from gkd_core.training.calibration import calibration_batches
    from gkd_core.training.stage_models import prepare_model

    def prepare(loaded: PreTrainedModel) -> None:
        set_padding(loaded, spec.tokenizer)
        prepare_model(loaded, spec, spec.tokenizer)

    prepare(whole)
    batches = calibration_batches(spec, rows)
    kind, classes = spec.kind, spec.data.classes
    return smaller(whole, batches, target, kind, classes, registry().sites, prepare)


def _save(made: PreTrainedModel, model: str, spec: StageSpec, place: Path) -> None:
    """Save a pruned model with the tokenizer and the settings of generation of the whole one."""
    from gkd_core.lease import hold
    from gkd_core.models.generation import adopt_generation_config
    from gkd_core.models.save import save_model

    adopt_generation_config(made, model, "--model")
    with hold(place):
        refuse_taken(place)  # it may have been written meanwhile
        save_model(made, spec.tokenizer, place)


def _compared(spec: StageSpec, model: str, place: Path, trust: bool) -> Comparison:
    """Compare the pruned model with the whole one, on the rows of a stage."""
    from gkd_core.analysis.compare import compare_models
    from gkd_core.analysis.exam import ComparedModel

    both = (model, str(place))
    models = [ComparedModel(name, name, spec.tokenizer, trust) for name in both]
    return compare_models(spec, models, model)


def _check_target(target: dict[str, Any]) -> None:
    if target["parameters"] is not None and target["width"] is not None:
        raise click.UsageError("--parameters and --width are mutually exclusive")
    if all(target[name] is None for name in ("parameters", "width", "depth")):
        raise click.UsageError("say what to keep: --parameters, --width or --depth")
    if target["parameters"] is not None and target["parameters"] <= 0:
        raise click.UsageError("--parameters must be above 0")


def _draw(
    files: tuple[Path, ...], model: str, data: str | None, settings: tuple[str, ...]
) -> StageSpec:
    """Return the spec of a stage with the model and the rows."""
    from gkd_core.config.schema import StudentConfig, TeacherConfig
    from gkd_core.plugins import registry
    from gkd_core.runs.default_method import LABELS
    from gkd_core.runs.spec_builder import SpecBuilder

    resolved = RunOptions(files, None, settings, {"data": data}).resolve()
    show_warnings(resolved)
    stage = resolved.stages[-1]
    trust = stage.config.teachers[0].trust_remote_code
    alone = {
        "teachers": [TeacherConfig(model=model, trust_remote_code=trust)],
        "student": StudentConfig(),
    }
    settled = replace(stage, config=stage.config.model_copy(update=alone))
    return SpecBuilder(registry()).build(settled.with_method(LABELS, "gkd prune"))
