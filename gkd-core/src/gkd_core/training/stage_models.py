"""Models of a stage, loaded, prepared for its kind of task and placed."""

from __future__ import annotations

import torch
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gkd_core.distributed.groups import Groups
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.padding import follow_mask
from gkd_core.models.load import WeightReader, load_teacher
from gkd_core.models.sites import Sites, find_sites
from gkd_core.parallel.placement import place_teacher
from gkd_core.plugins import Registry
from gkd_core.training.stage_spec import StageSpec, TeacherSpec
from gkd_core.vocabulary.weights import renumber


def load_live_teacher(
    spec: StageSpec, number: int, registry: Registry, device: torch.device
) -> Extractor:
    """Load a teacher alone, whole and in this process."""
    source = spec.teachers[number]
    sites = load_source(spec, source, registry, None)
    settle_teacher(sites, source, spec.config.teachers[number].dtype, None, device)
    prepare_model(sites.model, spec, source.tokenizer)
    return Extractor(sites.model, sites)


def prepare_model(
    model: PreTrainedModel, spec: StageSpec, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Make a model return the logits of a stage's kind of task, wherever its rows are padded.

    Args:
        model: The model.
        spec: The stage.
        tokenizer: The tokenizer whose rows it reads.
    """
    reads_rows = spec.kind.predicted == "sample" and spec.kind.pools
    follow_mask(model, tokenizer.padding_side == "left", reads_rows)
    spec.kind.prepare(model, spec.data.classes)


def settle_teacher(
    teacher: Sites,
    source: TeacherSpec,
    dtype: str,
    groups: Groups | None,
    device: torch.device,
) -> None:
    """Convert the weights of a loaded teacher to `dtype` and place them.

    Args:
        teacher: The teacher.
        source: The source it was loaded from.
        dtype: `fp32` or `bf16`.
        groups: The process groups, if models are sharded.
        device: The device it runs on.
    """
    copies = None if groups is None else groups.copies[source.info.name]
    if dtype == "bf16":
        for weight in teacher.model.parameters():
            weight.data = weight.data.bfloat16()  # buffers, such as rotary angles, stay exact
    place_teacher(teacher.model, teacher.blocks, source.placement, device, copies)


def load_source(
    spec: StageSpec, source: TeacherSpec, registry: Registry, groups: Groups | None
) -> Sites:
    """Load a teacher; under tensor parallelism, this rank's shard."""
    model = load_teacher(
        source.trained,
        spec.kind,
        spec.data.classes,
        source.trust_remote_code,
        source.setting,
        None if groups is None else shard_reader(groups.teachers[source.info.name]),
    )
    if source.vocabulary is not None:
        renumber(model, source.vocabulary.kept)
    return find_sites(model, registry.sites)


def shard_reader(group: ProcessGroup) -> WeightReader | None:
    """Return a sharded checkpoint reader, or None if one process holds the whole model."""
    if group.size() == 1:
        return None
    from gkd_core.parallel.loading import ShardReader

    return ShardReader(group, torch.device("cpu"))
