"""Building of a student as a smaller copy of a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from gkd_core.config.schema import StudentConfig
from gkd_core.contract.model_info import ModelInfo
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.layer_map import init_layers
from gkd_core.models.load import seeded
from gkd_core.models.quiet import quiet
from gkd_core.models.save import count_embedding_parameters, count_parameters
from gkd_core.models.sites import Sites, find_sites
from gkd_core.models.slicing.select import build, narrow
from gkd_core.models.slicing.widths import Widths, is_sliced
from gkd_core.models.transfer import Transfer, transfer
from gkd_core.students.shape import student_config


@dataclass(frozen=True)
class Student:
    """A student ready for training.

    Attributes:
        model: The model, fp32, in training mode.
        summary: Rows (property, value) to display.
        sites: Its sites, if they were found to make it.
        initialized: Names of its weights that were drawn at random.
    """

    model: PreTrainedModel
    summary: list[tuple[str, str]]
    sites: Sites | None = None
    initialized: tuple[str, ...] = ()


def build_student(
    spec: StudentConfig,
    teacher: Sites,
    kind: TaskKind,
    classes: Sequence[str],
    seed: int,
    adapters: Iterable[type[Sites]] = (),
    weights: Mapping[str, Tensor] | None = None,
) -> Student:
    """Build a student that is a smaller copy of a teacher.

    Args:
        spec: Its shape; `model` is ignored.
        teacher: The (first) teacher.
        kind: The kind of task.
        classes: Names of the classes in the order of their ids; empty unless classification.
        seed: Seed of the weights that are not copied.
        adapters: Site adapters registered by plugins.
        weights: The teacher's weights by name, if it has none itself.

    Raises:
        ConfigError: The configuration does not suit the teacher or the task.
    """
    origin = teacher.model
    config = student_config(spec, origin.config, kind, classes)
    with seeded(seed), quiet():
        model = build(type(origin), config)
    if spec.init == "random":
        return Student(model.train(), [*describe(model, origin), ("start", "random weights")])
    layers = config.num_hidden_layers, origin.config.num_hidden_layers
    blocks = [] if spec.init == "none" else init_layers(spec.init, *layers)
    sites = find_sites(model, adapters)
    done = transfer(sites, teacher, blocks, weights)
    start = [("start", _copied(done)), *_fresh(done.initialized)]
    return Student(model.train(), describe(model, origin) + start, sites, tuple(done.initialized))


def fresh_student(
    config: PretrainedConfig, kind: TaskKind, seed: int, trust_remote_code: bool = False
) -> Student:
    """Build a student with random weights.

    Args:
        config: Its configuration.
        kind: The kind of task.
        seed: Seed of the weights.
        trust_remote_code: Whether to run code that comes with the configuration.
    """
    with seeded(seed), quiet():
        model = kind.auto.from_config(config, trust_remote_code=trust_remote_code)
        narrow(model)
    return Student(model.train(), [*describe(model, None), ("start", "random weights")])


def describe(student: PreTrainedModel, teacher: PreTrainedModel | None) -> list[tuple[str, str]]:
    """Return (property, value) rows on the student's size, compared with a teacher's if given."""
    total = count_parameters(student)
    body = total - count_embedding_parameters(student)
    parameters = f"{total:,} ({body:,} without embeddings)"
    if teacher is None:
        return [("shape", shape(student)), ("parameters", parameters)]
    reference = count_parameters(teacher)
    return [
        ("shape", shape(student)),
        ("teacher's shape", shape(teacher)),
        ("parameters", f"{parameters}, {total / reference:.1%} of the teacher's {reference:,}"),
    ]


def shape(model: PreTrainedModel) -> str:
    """Return a model's family, depth and widths as text."""
    info = ModelInfo.read("", model.config, model.config.num_labels)
    shared = f" ({info.kv_heads} key/value)" if info.kv_heads < info.heads else ""
    heads, neurons = f"{info.heads}{shared}", str(info.ffn_size)
    if is_sliced(model.config):
        widths, group = Widths.read(model.config), info.heads // info.kv_heads
        heads = f"{group * min(widths.heads)} to {group * max(widths.heads)}"
        neurons = f"{min(widths.neurons)} to {max(widths.neurons)}"
    return (
        f"{info.family}, {info.layers} blocks, hidden {info.hidden_size}, "
        f"{heads} heads of {info.head_size}, feed-forward {neurons}"
    )


def _copied(done: Transfer) -> str:
    blocks = ", ".join(map(str, done.blocks))
    what = f"teacher blocks {blocks}" if blocks else "the teacher's embedding and head"
    return (
        f"{what}: {done.parameters:,} parameters, {done.copied} tensors whole and {done.sliced} cut"
    )


def _fresh(initialized: Sequence[str]) -> list[tuple[str, str]]:
    return [("random weights", ", ".join(initialized))] if initialized else []
