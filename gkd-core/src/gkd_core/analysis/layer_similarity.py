"""Similarity of every layer of a student to every layer of its teacher, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.data.holdout import take
from gkd_core.data.loader import evaluation_batches
from gkd_core.distributed.device import pick_device
from gkd_core.evaluation.evaluate import EVALUATION_BATCH
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import Capture
from gkd_core.losses.similarity import unbiased_cka
from gkd_core.models.load import load_teacher
from gkd_core.models.sites import find_sites
from gkd_core.plugins import Registry
from gkd_core.runs.locations import Locations
from gkd_core.runs.run import build_specs
from gkd_core.runs.spec_builder import SpecBuilder
from gkd_core.training.stage import prepare_model
from gkd_core.training.stage_spec import StageSpec

ROWS = 256
"""Rows whose tokens are compared."""


@dataclass(frozen=True)
class LayerSimilarity:
    """Unbiased CKA of the hidden states of a student and its teacher.

    Attributes:
        teacher: Name of the teacher.
        values: A list for each layer of the student, from the embedding on, with a value for each
            layer of the teacher.
        rows: Number of rows.
        split: What the rows are.
    """

    teacher: str
    values: Sequence[Sequence[float]]
    rows: int
    split: str


def layer_similarity(run: FinishedRun, registry: Registry) -> LayerSimilarity | str:
    """Compare the layers of a run's student with those of its first teacher.

    Args:
        run: The run, whose models are loaded.
        registry: The plugins.

    Returns:
        The similarities on the first test rows (validation rows if there are none), or why there
        are none.
    """
    builder = SpecBuilder(registry, [stage.config.task for stage in run.resolved.stages])
    specs = list(build_specs(run.resolved, builder).values())
    places = Locations(run.directory, specs)
    spec = places.ready(specs[-1])
    teacher = spec.teachers[0] if spec.teachers else None
    if teacher is None or teacher.source is not None:
        return "the run has no teacher whose model could be read"
    if teacher.tokenizer is not spec.tokenizer:
        return "student and teacher read different tokens"
    student = _states(spec, str(places.final), spec.trusts_student, registry)
    known = _states(spec, teacher.trained, teacher.trust_remote_code, registry)
    values = [[float(unbiased_cka(own, other)) for other in known] for own in student]
    split = "validation" if spec.data.test is None else "test"
    return LayerSimilarity(teacher.called, values, _count(spec), split)


def _count(spec: StageSpec) -> int:
    return min(ROWS, len(spec.data.test or spec.data.validation))


def _states(spec: StageSpec, place: str, trusts: bool, registry: Registry) -> list[Tensor]:
    """Return the hidden states of each layer at all tokens that are not padding: `[N, D]`."""
    device = pick_device(spec.config.parallel.device)
    model = load_teacher(place, spec.kind, spec.data.classes, trusts, place)
    prepare_model(model, spec, spec.tokenizer)
    reader = Extractor(model.to(device), find_sites(model, registry.sites))
    captures = [Capture("hidden", layer) for layer in range(len(reader.sites.blocks) + 1)]
    rows = take(spec.data.test or spec.data.validation, range(_count(spec)))
    batches = evaluation_batches(
        spec.encode(rows, spec.tokenizer), spec.collator(spec.tokenizer), EVALUATION_BATCH
    )
    parts: list[list[Tensor]] = [[] for _ in captures]
    with torch.no_grad():
        for batch in (each.to(device) for each in batches):
            features = reader.run(frozenset(captures), batch.inputs)
            for part, capture in zip(parts, captures, strict=True):
                part.append(features[capture].flatten(0, 1)[batch.tokens.index])
    return [torch.cat(part) for part in parts]
