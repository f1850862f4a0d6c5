"""Transfer of a teacher's weights to a student that is shallower, narrower, or both.

Weights outside the blocks (embeddings, final norm, pooler, head) are copied by name, and student
block j from the teacher block it starts from. A narrower tensor keeps the first entries of every
axis. If one axis holds several parts (the heads of a query projection; fused query, key and value;
fused gate and up projection), each part keeps its first entries: the student gets whole heads, the
first ones, and if its heads are narrower, the first channels of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gkd_core.contract.architectures import adapter_of
from gkd_core.contract.model_info import ModelInfo
from gkd_core.errors import ConfigError
from gkd_core.models.sites import Sites

AxisPart: TypeAlias = tuple[str | int, ...]
"""One part stored along an axis: its shape, in sizes of `ModelInfo` or plain numbers."""

QUERY: AxisPart = ("heads", "head_size")
KEY: AxisPart = ("kv_heads", "head_size")
FFN: AxisPart = ("ffn_size",)

OUTPUTS: dict[str, tuple[AxisPart, ...]] = {
    **dict.fromkeys(("query", "query_proj", "q_proj", "q_lin"), (QUERY,)),
    **dict.fromkeys(("key", "key_proj", "k_proj", "k_lin"), (KEY,)),
    **dict.fromkeys(("value", "value_proj", "v_proj", "v_lin"), (KEY,)),
    **dict.fromkeys(("c_attn", "Wqkv"), (QUERY, QUERY, QUERY)),
    "qkv_proj": (QUERY, KEY, KEY),
    "query_key_value": (("heads", 3, "head_size"),),
    **dict.fromkeys(("gate_up_proj", "Wi"), (FFN, FFN)),
}
"""Parts of a linear module's output features, by the end of its name."""

ATTENTION_OUTPUTS = ("o_proj", "out_lin", "out_proj", "attn.c_proj", "attn.Wo")
BERT_OUTPUTS = ("attention.dense", "attention.output.dense")
INPUTS: dict[str, tuple[AxisPart, ...]] = dict.fromkeys(ATTENTION_OUTPUTS + BERT_OUTPUTS, (QUERY,))
"""Parts of a linear module's input features, by the end of its name."""


@dataclass(frozen=True)
class Transfer:
    """Statistics of the weights copied from a teacher.

    Attributes:
        blocks: The teacher block, counted from 1, that each student block started from.
        copied: Number of tensors copied whole.
        sliced: Number of tensors copied in part.
        parameters: Number of the student's values that come from the teacher.
        initialized: Names of the tensors the teacher does not have; they stay random.
    """

    blocks: tuple[int, ...]
    copied: int
    sliced: int
    parameters: int
    initialized: tuple[str, ...]


def transfer(
    student: Sites,
    teacher: Sites,
    blocks: Sequence[int],
    weights: Mapping[str, Tensor] | None = None,
) -> Transfer:
    """Copy the teacher's weights into the student, in place; tied weights stay tied.

    Args:
        student: A model of the teacher's architecture.
        teacher: The model to copy from.
        blocks: The teacher block, counted from 1, for each student block; empty to leave the
            student's blocks as they are.
        weights: The teacher's weights by name, if it has none itself.

    Raises:
        ConfigError: A tensor of the student is wider than the teacher's.
        MethodError: The architecture's blocks cannot be found.
    """
    mine = [f"{name}." for name in _block_names(student)]
    theirs = [f"{name}." for name in _block_names(teacher)]
    sources = [theirs[block - 1] for block in blocks]
    renames = dict(zip(mine, sources, strict=True)) if blocks else {}
    fresh = () if blocks else tuple(mine)
    sizes = _sizes(student.model, teacher.model)
    source = teacher.model.state_dict() if weights is None else weights
    copied = sliced = parameters = 0
    initialized = []
    for name, target in _distinct(student.model).items():
        if name.startswith(fresh):
            continue
        weight = source.get(_rename(name, renames))
        if weight is None:
            initialized.append(name)
            continue
        cut = _cut(weight, target, name, _layout(student.model, name), sizes)
        with torch.no_grad():
            target.copy_(cut)
        parameters += target.numel()
        copied += target.shape == weight.shape
        sliced += target.shape != weight.shape
    return Transfer(tuple(blocks), copied, sliced, parameters, tuple(initialized))


def _block_names(sites: Sites) -> list[str]:
    names = {module: name for name, module in sites.model.named_modules()}
    return [names[block] for block in sites.blocks]


def _rename(name: str, renames: dict[str, str]) -> str:
    for mine, theirs in renames.items():
        if name.startswith(mine):
            return theirs + name.removeprefix(mine)
    return name


def _distinct(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the parameters and saved buffers by name, tied ones once."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), (name, tensor))
    return dict(tensors.values())


def _sizes(student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[ModelInfo, ModelInfo]:
    """Return the shapes of teacher and student, in this order."""
    return (
        ModelInfo.read("teacher", teacher.config, teacher.config.num_labels),
        ModelInfo.read("student", student.config, student.config.num_labels),
    )


def _layout(model: PreTrainedModel, name: str) -> dict[int, tuple[AxisPart, ...]]:
    """Return the parts along the axes of a parameter, for axes with known parts."""
    path, _, kind = name.rpartition(".")
    is_stack = kind not in ("weight", "bias")  # of the matrices of all experts
    outputs, inputs = axis_parts(model.config.model_type, name if is_stack else path)
    transposed = isinstance(model.get_submodule(path), Conv1D)
    if kind == "bias":
        axes = {0: outputs}
    elif is_stack:
        axes = {1: outputs, 2: inputs}
    else:
        axes = {0: inputs, 1: outputs} if transposed else {0: outputs, 1: inputs}
    return {axis: parts for axis, parts in axes.items() if parts is not None}


def axis_parts(
    family: str, path: str
) -> tuple[tuple[AxisPart, ...] | None, tuple[AxisPart, ...] | None]:
    """Return the parts of the output features and of the input features of a linear module.

    Args:
        family: Hugging Face model type; an adapter may say what its layers mean.
        path: Name of the module.

    Returns:
        The parts of each, or None where they are not known.
    """
    adapter = adapter_of(family)
    if adapter is not None and adapter.outputs:
        return _lookup(adapter.outputs, path), _lookup(adapter.inputs, path)
    return _lookup(OUTPUTS, path), _lookup(INPUTS, path)


def _lookup(table: Mapping[str, tuple[AxisPart, ...]], path: str) -> tuple[AxisPart, ...] | None:
    return next((parts for end, parts in table.items() if f".{path}".endswith(f".{end}")), None)


def _cut(
    weight: Tensor,
    target: Tensor,
    name: str,
    layout: dict[int, tuple[AxisPart, ...]],
    sizes: tuple[ModelInfo, ModelInfo],
) -> Tensor:
    """Return the part of a teacher's tensor that a student's tensor starts from."""
    for axis, (old, new) in enumerate(zip(weight.shape, target.shape, strict=True)):
        parts = layout.get(axis, ())
        olds, news = (_shapes(parts, size) for size in sizes)
        if (sum(map(prod, olds)), sum(map(prod, news))) != (old, new):
            # Experts have another width than the feed-forward part of `ModelInfo`. Any other name
            # has another meaning in this architecture: its axis is then cut as a whole.
            count = len(parts) if set(parts) == {FFN} else 1
            olds, news = [(old // count,)] * count, [(new // count,)] * count
        if any(mine > theirs for mine, theirs in zip(chain(*news), chain(*olds), strict=True)):
            raise ConfigError(
                f"the student is wider than the teacher: {name} is {tuple(target.shape)} in the "
                f"student (axis {axis} made of {news}), {tuple(weight.shape)} in the teacher "
                f"({olds}); make it no wider, or set student.init = 'random'"
            )
        pieces = torch.split(weight, [prod(shape) for shape in olds], axis)
        cuts = [_cut_part(*part, axis) for part in zip(pieces, olds, news, strict=True)]
        weight = torch.cat(cuts, axis)
    return weight


def _shapes(parts: tuple[AxisPart, ...], info: ModelInfo) -> list[tuple[int, ...]]:
    return [
        tuple(size if isinstance(size, int) else getattr(info, size) for size in part)
        for part in parts
    ]


def _cut_part(piece: Tensor, old: tuple[int, ...], new: tuple[int, ...], axis: int) -> Tensor:
    shape = piece.shape
    piece = piece.reshape(*shape[:axis], *old, *shape[axis + 1 :])
    for inner, size in enumerate(new):
        piece = piece.narrow(axis + inner, 0, size)
    return piece.flatten(axis, axis + len(new) - 1)
