"""The export of a run's student: converted, verified, and only then given its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from gkd_core.analysis.subjects import alone, without_trust
from gkd_core.atomic import replace_directory, restore_directory, write_file
from gkd_core.deploy.card import model_card
from gkd_core.deploy.lineage import LINEAGE, exported_files, lineage
from gkd_core.deploy.loading_code import code_of_export
from gkd_core.deploy.onnx_graph import GRAPH, write_decoder, write_graph
from gkd_core.deploy.onnx_model import OnnxDecoder, OnnxModel
from gkd_core.deploy.quantization import quantize_graph
from gkd_core.deploy.verification import Verification, VerifiedRows, differing_continuations, verify
from gkd_core.errors import ConfigError
from gkd_core.evaluation.predictions import STUDENT
from gkd_core.lease import hold
from gkd_core.models.load import load_teacher
from gkd_core.models.quiet import quiet
from gkd_core.runs.spec_builder import SpecBuilder
from gkd_core.strict_json import json_text
from gkd_core.training.stage_models import prepare_model

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from gkd_core.analysis.finished_run import FinishedRun
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec

Format = Literal["hf", "onnx"]
Step = Callable[[str], AbstractContextManager[None]]
"""Shows what is being done while it lasts."""

CARD = "README.md"
CALLED = "the student of the run"


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export.

    Attributes:
        format: A Hugging Face directory, or an ONNX graph.
        int8: Whether the graph is quantized.
        accept: Whether to keep what the verification rejects.
        rows: Largest number of rows to verify on.
        opset: Version of the ONNX operators. Default: the newest.
        license: Name of the license in the model card. Default: none is named.
    """

    format: Format
    int8: bool = False
    accept: bool = False
    rows: int = 1000
    opset: int | None = None
    license: str | None = None


def export_student(
    run: FinishedRun, registry: Registry, place: Path, options: ExportOptions, step: Step
) -> Verification:
    """Export the student of a run.

    Everything is written beside `place`, and renamed once it is verified. If it is rejected, or
    the process is interrupted, what was there before stays.

    Args:
        run: The run.
        registry: The plugins.
        place: The directory to write.
        options: How.
        step: Shows what is being done.

    Returns:
        What the verification found.

    Raises:
        ConfigError: The directory is something other than an export, another process writes it,
            the student cannot be converted, or the verification rejects it.
    """
    place = place.resolve() if place.is_symlink() else place  # the link stays
    _refuse_foreign(place)
    with step("reading the student and the rows"):
        exporter = _Exporter(run, registry, options)
    with hold(place, "--to"), _written_beside(place) as aside:
        found = exporter.write(aside, step)
        if found.problems and not options.accept:
            kept = " and the export that was there stays" if place.exists() else ""
            raise ConfigError(
                f"the export of {run.directory} was rejected{kept}: {'; '.join(found.problems)}. "
                "Keep it anyway with --accept"
            )
        known = lineage(run, registry, aside, options, found, exporter.spec)
        code = code_of_export(exporter.spec.kind, options.format == "onnx")
        write_file(aside / LINEAGE, json_text(known, indent=1))
        write_file(aside / CARD, model_card(known, code))
    return found


@contextmanager
def _written_beside(place: Path) -> Iterator[Path]:
    """Yield an empty directory, which takes its place when the block ends without error.

    What a killed process has left is removed, or put back.
    """
    restore_directory(place)
    _refuse_foreign(place)  # another process may have written there
    aside = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        yield aside
        replace_directory(aside, place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Exporter:
    """Writes and verifies the student of a run.

    Args:
        run: The run.
        registry: The plugins.
        options: How it is exported.
    """

    def __init__(self, run: FinishedRun, registry: Registry, options: ExportOptions) -> None:
        self._options = options
        self._student = run.directory / STUDENT
        # The run may be somebody else's: code of its models does not run.
        resolved = without_trust(run.resolved)
        found = alone(SpecBuilder(registry), resolved, [str(self._student)], CALLED)
        self._spec = found.spec
        self._tokenizer = found.models[0].tokenizer
        self._model = self._load()
        prepare_model(self._model, self._spec, self._tokenizer)
        self._rows = VerifiedRows.of(self._spec, self._tokenizer, self._model, options.rows)

    @property
    def spec(self) -> StageSpec:
        """The last stage of the run."""
        return self._spec

    def write(self, directory: Path, step: Step) -> Verification:
        """Write the export to an empty directory; return what its verification found."""
        if self._options.format == "hf":
            shutil.copytree(self._student, directory, dirs_exist_ok=True)
            return self._verify(self._plain(directory), True, step)
        with step("converting to ONNX"):
            self._write_graph(directory)
            self._copy_settings(directory)
        exact = self._verify(self._graph(directory), True, step)
        if not self._options.int8 or (exact.problems and not self._options.accept):
            return exact
        with step("quantizing to int8"):
            quantize_graph(directory)
        return self._verify(self._graph(directory), False, step)

    def _write_graph(self, directory: Path) -> None:
        opset, model = self._options.opset, self._load()
        if self._spec.kind.generates:
            token = int(self._rows.encoded.row(0)["input_ids"][-1])
            write_decoder(model, token, directory, opset)
        else:
            write_graph(model, self._example(), directory, self._longest, opset)

    def _graph(self, directory: Path) -> OnnxModel:
        made = OnnxDecoder if self._spec.kind.generates else OnnxModel
        return made(directory / GRAPH)

    @property
    def _longest(self) -> int:
        """Largest number of tokens that the student reads."""
        return self._spec.teachers[0].info.max_length

    def _load(self) -> PreTrainedModel:
        spec = self._spec
        return load_teacher(str(self._student), spec.kind, spec.data.classes, False, CALLED)

    def _plain(self, directory: Path) -> PreTrainedModel:
        """Return a saved model as those who have no gkd load it."""
        try:
            with quiet():
                model: PreTrainedModel = self._spec.kind.auto.from_pretrained(directory).eval()
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"transformers alone cannot load the student ({reason}). A student pruned with "
                "uneven blocks is read by gkd only; prune it with --even"
            ) from error
        return model

    def _verify(self, exported: nn.Module, exact: bool, step: Step) -> Verification:
        self._spec.kind.prepare(exported, self._spec.data.classes)
        with step(f"comparing on {len(self._rows.split):,} {self._rows.name} rows"):
            found = verify(self._model, exported, self._rows, self._tokenizer, exact)
            if not exact or not isinstance(exported, OnnxDecoder):
                return found
            apart = differing_continuations(self._model, exported, self._rows, self._longest)
            problem = f"{apart} texts are continued differently"
            return replace(found, problems=(*found.problems, *[problem] * bool(apart)))

    def _example(self) -> Mapping[str, torch.Tensor]:
        """Return the inputs of the student's forward pass for a batch."""
        seen: dict[str, Any] = {}

        def note(_model: nn.Module, _args: Any, inputs: dict[str, Any]) -> None:
            seen.update(inputs)

        handle = self._model.register_forward_pre_hook(note, with_kwargs=True)
        batch = next(iter(self._rows.batches(self._tokenizer)))
        with torch.no_grad():
            self._model(**batch.inputs)
        handle.remove()
        return {name: value for name, value in seen.items() if isinstance(value, torch.Tensor)}

    def _copy_settings(self, directory: Path) -> None:
        """Copy configuration and tokenizer of the student."""
        for file in self._student.iterdir():
            if file.is_file() and ".safetensors" not in file.name:
                shutil.copy(file, directory)


def _refuse_foreign(place: Path) -> None:
    """Reject a directory with anything but an export, which would be replaced with it."""
    if place.is_mount():
        raise ConfigError(
            f"--to {place} is a mount point, which cannot be replaced. Name a folder in it"
        )
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    if not (place / LINEAGE).is_file():
        raise ConfigError(
            f"--to {place} already exists and is not an export (it has no {LINEAGE}); name "
            "another directory"
        )
    found = (path for path in place.rglob("*") if not path.is_dir())
    names = {path.relative_to(place).as_posix() for path in found}
    others = sorted(names - {*exported_files(place), LINEAGE, CARD})
    if others:
        raise ConfigError(
            f"--to {place} has {others[0]}, which does not belong to the export and would be "
            "removed with it; move it away, or name another directory"
        )
