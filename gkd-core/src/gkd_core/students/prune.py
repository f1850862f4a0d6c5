"""Pruning of a model: fewer blocks, heads and neurons, down to a number of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from transformers import PreTrainedModel

from gkd_core.config.schema import StudentConfig
from gkd_core.contract.batch import Batch
from gkd_core.errors import ConfigError
from gkd_core.hooks.extraction import Extractor
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.layer_map import init_layers
from gkd_core.models.save import count_parameters
from gkd_core.models.sites import Sites, find_sites
from gkd_core.models.slicing.select import sliced_copy
from gkd_core.models.slicing.widths import has_head_size, is_sliced
from gkd_core.students.budget import largest_widths
from gkd_core.students.build import build_student
from gkd_core.students.depth import measure_blocks, most_important
from gkd_core.students.importance import measure_importance
from gkd_core.students.ranking import Slicer

Blocks = Literal["influence", "first", "last", "spaced"]


@dataclass(frozen=True)
class PruneTarget:
    """The size that a model is pruned to.

    Attributes:
        parameters: Number of parameters, or a share if at most 1; embeddings count.
        width: Share of the heads and of the neurons, if `parameters` is not given.
        depth: Number of blocks; all if None.
        blocks: Which blocks: those of the largest influence, or by position.
        even: Whether all blocks are equally wide.
        multiple: The neurons of a block are a multiple of this number.
    """

    parameters: float | None
    width: float | None
    depth: int | None
    blocks: Blocks
    even: bool
    multiple: int


def prune(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    target: PruneTarget,
    kind: TaskKind,
    classes: Sequence[str],
    adapters: Iterable[type[Sites]] = (),
    prepare: Callable[[PreTrainedModel], None] | None = None,
) -> PreTrainedModel:
    """Return a smaller copy of a trained model: blocks are removed first, then widths are reduced.

    Args:
        model: The model, in eval mode, prepared for the batches.
        batches: Labeled calibration rows, on the model's device.
        target: The size to prune to.
        kind: The kind of task.
        classes: The classes in the order of their ids; empty unless classification.
        adapters: Site adapters registered by plugins.
        prepare: Prepares the model with fewer blocks for the batches, as `model` is.

    Raises:
        ConfigError: The target cannot be reached.
        MethodError: Slicing does not support the architecture.
    """
    adapters, whole = tuple(adapters), count_parameters(model)
    if target.depth is not None:
        model = _shallower(find_sites(model, adapters), batches, target, kind, classes, adapters)
    if target.width is None and target.parameters is None:
        return model
    if target.depth is not None and prepare is not None:
        prepare(model)
    sites = find_sites(model, adapters)
    slicer = _slicer(model, sites, batches, target)
    widths = slicer.widths
    if target.even:
        widths = partial(slicer.even_widths, heads=has_head_size(model.config))
    if target.parameters is not None:
        share = target.parameters <= 1
        budget = int(target.parameters * whole if share else target.parameters)
        chosen = largest_widths(sites, widths, budget, f"--parameters {target.parameters:g}")
    else:
        assert target.width is not None
        chosen = widths(target.width)
    return sliced_copy(model, slicer.kept(chosen))


def _shallower(
    sites: Sites,
    batches: Sequence[Batch],
    target: PruneTarget,
    kind: TaskKind,
    classes: Sequence[str],
    adapters: Sequence[type[Sites]],
) -> PreTrainedModel:
    model = sites.model
    depth, layers = target.depth or 0, model.config.num_hidden_layers
    if not 1 <= depth <= layers:
        raise ConfigError(
            f"--depth {depth} is not possible: the model has {layers} blocks; choose 1 to {layers}"
        )
    if target.blocks == "influence":
        extractor = Extractor(model, sites)
        influence = measure_blocks(extractor, batches, _device(model))
        extractor.remove()
        blocks = most_important(influence, depth)
    else:
        blocks = init_layers(target.blocks, depth, layers)
    made = build_student(StudentConfig(init=blocks), sites, kind, classes, 0, adapters)
    return made.model.to(_device(model)).eval()


def _slicer(
    model: PreTrainedModel, sites: Sites, batches: Sequence[Batch], target: PruneTarget
) -> Slicer:
    if target.even and is_sliced(model.config):
        raise ConfigError("--even needs a model of equal blocks; this one was pruned without it")
    extractor = Extractor(model, sites)
    importance = measure_importance(extractor, batches, _device(model))
    extractor.remove()
    return Slicer.of(importance, target.multiple)


def _device(model: PreTrainedModel) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
