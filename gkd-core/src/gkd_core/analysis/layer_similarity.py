"""Similarity of every layer of a student to every layer of its teacher, on the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gkd_core.analysis.finished_run import FinishedRun
from gkd_core.data.collate import EVALUATION_EPOCH
from gkd_core.data.holdout import take
from gkd_core.distributed.device import pick_device
from gkd_core.errors import DataError
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import Capture
from gkd_core.losses.similarity import unbiased_cka_table
from gkd_core.models.load import load_teacher
from gkd_core.models.sites import Sites, find_sites
from gkd_core.plugins import Registry
from gkd_core.runs.locations import Locations
from gkd_core.runs.run import build_specs
from gkd_core.runs.spec_builder import SpecBuilder
from gkd_core.training.stage_models import prepare_model
from gkd_core.training.stage_spec import StageSpec
from gkd_core.vocabulary.weights import renumber

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gkd_core.data.encode import Encoded
    from gkd_core.vocabulary.reduced import ReducedVocabulary

ROWS, TOKENS = 64, 1024
"""The first rows are compared, at about so many of their tokens."""

BATCH = 4
"""Rows of which the states of all layers are held at once."""


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

    @property
    def title(self) -> str:
        """The content of the figure, and its rows."""
        return (
            f"Unbiased CKA of the layers of student and {self.teacher} on {self.rows} "
            f"{self.split} rows (0: embedding)"
        )


def layer_similarity(run: FinishedRun, registry: Registry) -> LayerSimilarity:
    """Compare the layers of a run's student with those of its first teacher.

    Args:
        run: The run, whose models are loaded.
        registry: The plugins.

    Returns:
        The similarities on the first test rows (validation rows if there are none).

    Raises:
        DataError: The run has no teacher whose layers could be compared.
        GkdError: Its rows or models are no longer there.
    """
    builder = SpecBuilder(registry, [stage.config.task for stage in run.resolved.stages])
    specs = list(build_specs(run.resolved, builder).values())
    places = Locations(run.directory, specs)
    spec = places.ready(specs[-1])
    if reason := no_similarity(spec):
        raise DataError(reason)
    teacher = spec.teachers[0]
    models = [
        _load(spec, str(places.final), spec.trusts_student, None),
        _load(spec, teacher.trained, teacher.trust_remote_code, teacher.vocabulary),
    ]
    return compare_layers(spec, models[0], models[1], registry.sites)


def no_similarity(spec: StageSpec) -> str:
    """Return the reason that layers cannot be compared with the teacher's; empty if they can be."""
    teacher = spec.teachers[0] if spec.teachers else None
    if teacher is None or teacher.source is not None:
        return "the run has no teacher whose model could be read"
    if teacher.tokenizer is not spec.tokenizer:
        return "student and teacher read different tokens"
    return ""


def compare_layers(
    spec: StageSpec,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    adapters: Iterable[type[Sites]],
) -> LayerSimilarity:
    """Compare the layers of a student with those of the first teacher, in this process alone.

    Args:
        spec: The stage, with the rows.
        student: The student, on the device on which it is to run.
        teacher: The teacher.
        adapters: Site adapters registered by plugins.

    Raises:
        MethodError: The layers of a model cannot be found.
    """
    adapters = tuple(adapters)
    name, split = spec.judged
    encoded = spec.encode(take(split, range(min(ROWS, len(split)))), spec.tokenizer)
    own, known = (_states(spec, model, encoded, adapters) for model in (student, teacher))
    values = unbiased_cka_table(own, known).tolist()
    return LayerSimilarity(spec.teachers[0].called, values, min(ROWS, len(encoded)), name)


def _load(
    spec: StageSpec, place: str, trusts: bool, vocabulary: ReducedVocabulary | None
) -> PreTrainedModel:
    model = load_teacher(place, spec.kind, spec.data.classes, trusts, place)
    if vocabulary is not None:
        renumber(model, vocabulary.kept)
    prepare_model(model, spec, spec.tokenizer)
    device = pick_device(spec.config.parallel.device)
    return model.to(device)


def _states(
    spec: StageSpec,
    model: PreTrainedModel,
    encoded: Encoded,
    adapters: Iterable[type[Sites]],
) -> list[Tensor]:
    """Return the hidden states of each layer at some tokens that are not padding: `[N, D]`."""
    device = pick_device(spec.config.parallel.device)
    reader = Extractor(model, find_sites(model, adapters))
    captures = [Capture("hidden", layer) for layer in range(len(reader.sites.blocks) + 1)]
    collator = spec.collator(spec.tokenizer)
    rows = range(min(ROWS, len(encoded)))
    every = max(1, -(-int(encoded.offsets[encoded.starts[len(rows)]]) // TOKENS))
    parts: list[list[Tensor]] = [[] for _ in captures]
    with torch.no_grad():
        for start in rows[::BATCH]:
            chosen = rows[start : start + BATCH]
            batch = collator.collate(encoded, chosen, EVALUATION_EPOCH).to(device)
            features = reader.run(frozenset(captures), batch.inputs)
            for part, capture in zip(parts, captures, strict=True):
                part.append(features[capture].flatten(0, 1)[batch.tokens.index[::every]])
    return [torch.cat(part) for part in parts]
