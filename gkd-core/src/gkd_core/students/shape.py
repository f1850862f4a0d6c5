"""The shape of a student: the configuration of a smaller copy of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from gkd_core.config.schema import StudentConfig
from gkd_core.contract.model_info import FFN_SIZES, ModelInfo
from gkd_core.errors import ConfigError, suggest
from gkd_core.kinds.task_kind import TaskKind
from gkd_core.models.layer_map import init_layers
from gkd_core.models.slicing.widths import SLICES_KEY, WIDTHS_KEY, Widths, is_sliced

HIDDEN_SIZES = ("embedding_size", "word_embed_proj_dim", "pooler_hidden_size")
"""Widths that follow hidden_size in a student if they equal it in the teacher."""

EXPERT_SIZE = "moe_intermediate_size"
"""Width of the experts among which a router chooses."""

DERIVED = ("true_hidden_size",)
"""Settings that a configuration derives from others, and does not derive again once stored."""

OWN = {
    "num_hidden_layers": "student.layers",
    "hidden_size": "student.hidden_size",
    "num_attention_heads": "student.heads",
    "vocab_size": "student.vocabulary",
    **dict.fromkeys(FFN_SIZES, "student.ffn_size"),
}
"""Settings of a configuration that a run file sets under another name."""

WIDTHS = {
    "hidden_size": "hidden size",
    "heads": "number of heads",
    "head_size": "head size",
    "ffn_size": "feed-forward width",
}


def student_config(
    spec: StudentConfig, teacher_config: PretrainedConfig, kind: TaskKind, classes: Sequence[str]
) -> PretrainedConfig:
    """Return the configuration of a smaller copy of the teacher, without touching weights.

    Heads keep the teacher's size if only `hidden_size` is given, and always in architectures whose
    head size is a separate setting (Llama, Qwen3, GLM): there, `heads` widens or narrows the
    attention. Query heads keep sharing key/value heads in groups of the teacher's size. The
    feed-forward width scales with `hidden_size`.

    Args:
        spec: The configuration of the student; its `model` is ignored.
        teacher_config: The (first) teacher's.
        kind: The kind of task.
        classes: Names of the classes in the order of their ids; empty unless classification.

    Raises:
        ConfigError: A size is impossible, or larger than the teacher's although weights are to be
            copied from it.
    """
    teacher = ModelInfo.read("teacher", teacher_config, teacher_config.num_labels)
    try:
        config = type(teacher_config).from_dict(_settings(spec, teacher_config, teacher))
    except StrictDataclassError as error:
        raise ConfigError(f"student.config does not suit {teacher.family}: {error}") from error
    kind.configure(config, classes)
    if spec.init != "random":
        copied = ("hidden_size",) if spec.init == "none" else tuple(WIDTHS)
        _refuse_wider(ModelInfo.read("student", config, config.num_labels), teacher, copied)
    return config


def _settings(
    spec: StudentConfig, teacher_config: PretrainedConfig, teacher: ModelInfo
) -> dict[str, Any]:
    """Return the settings of the student's configuration: the teacher's, with other sizes."""
    hidden_size = spec.hidden_size or teacher.hidden_size
    data = teacher_config.to_dict()
    keys = teacher_config.attribute_map
    free_head_size = data.get(keys.get("head_dim", "head_dim")) is not None
    blocks = _blocks(spec, teacher)
    heads = _heads(spec, teacher, hidden_size)
    shape = {
        "num_hidden_layers": len(blocks),
        "hidden_size": hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(heads, teacher),
    }
    if not free_head_size and hidden_size % heads:
        raise ConfigError(
            f"student.heads = {heads} does not divide the hidden size {hidden_size}; set "
            "student.heads or student.hidden_size so that it does"
        )
    data |= {keys.get(n, n): value for n, value in shape.items() if keys.get(n, n) in data}
    data |= _ffn_size(data, spec, teacher, hidden_size)
    if spec.vocabulary is not None:
        data[keys.get("vocab_size", "vocab_size")] = spec.vocabulary
    data |= {n: hidden_size for n in HIDDEN_SIZES if data.get(n) == teacher.hidden_size}
    data |= _layer_lists(data, blocks, teacher.layers)
    data |= _sliced_widths(spec, teacher_config, blocks)
    data |= _other_settings(spec, data)
    return {name: value for name, value in data.items() if name not in (*DERIVED, SLICES_KEY)}


def _blocks(spec: StudentConfig, teacher: ModelInfo) -> list[int]:
    """Return, for each student block, the teacher block it is derived from."""
    listed = len(spec.init) if isinstance(spec.init, list) else None
    named = {"half": max(teacher.layers // 2, 1), "all": teacher.layers, None: listed}
    given = spec.layers if isinstance(spec.layers, int) else named[spec.layers]
    layers = given or teacher.layers
    if spec.init == "random" or spec.init == "none":
        return [block % teacher.layers + 1 for block in range(layers)]
    return init_layers(spec.init, layers, teacher.layers)


def _heads(spec: StudentConfig, teacher: ModelInfo, hidden_size: int) -> int:
    if spec.heads is not None:
        return spec.heads
    heads, rest = divmod(teacher.heads * hidden_size, teacher.hidden_size)
    if rest or not heads:
        raise ConfigError(
            f"student.hidden_size = {hidden_size} is not a whole number of heads of the teacher's "
            f"size ({teacher.hidden_size // teacher.heads} of {teacher.hidden_size} for each of "
            f"{teacher.heads}); choose a multiple, or set student.heads"
        )
    return heads


def _kv_heads(heads: int, teacher: ModelInfo) -> int:
    group, rest = divmod(teacher.heads, teacher.kv_heads)
    if rest or not group:
        raise ConfigError(
            f"the teacher's configuration has {teacher.heads} query heads, which "
            f"{teacher.kv_heads} key/value heads cannot share evenly; correct its config.json"
        )
    if heads > group and heads % group:
        raise ConfigError(
            f"student.heads = {heads} must be a multiple of {group}, or less: in the teacher "
            f"{group} query heads share a key/value head"
        )
    return max(heads // group, 1)


def _ffn_size(
    data: dict[str, Any], spec: StudentConfig, teacher: ModelInfo, hidden_size: int
) -> dict[str, int]:
    key = next((name for name in FFN_SIZES if name in data), None)
    if key is None and spec.ffn_size is not None:
        raise ConfigError(
            f"student.ffn_size = {spec.ffn_size} cannot be set: {teacher.family} models have no "
            "separate setting of the feed-forward width; leave it out"
        )
    if spec.ffn_size is not None and EXPERT_SIZE in data:
        raise ConfigError(
            f"student.ffn_size = {spec.ffn_size} cannot be set: {teacher.family} models have "
            f"experts, whose width is student.config.{EXPERT_SIZE}; set that"
        )
    # GPT-2 leaves the width unset to mean four times the hidden size.
    if key is None or (spec.ffn_size is None and data[key] is None):
        return {}
    return {key: spec.ffn_size or round(data[key] * hidden_size / teacher.hidden_size)}


def _layer_lists(data: dict[str, Any], blocks: Sequence[int], layers: int) -> dict[str, list[Any]]:
    """Return the per-block settings (`layer_types`) for the teacher blocks in use."""
    return {
        name: [value[block - 1] for block in blocks]
        for name, value in data.items()
        if "layer" in name and isinstance(value, list) and len(value) == layers
    }


def _other_settings(spec: StudentConfig, data: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of `student.config`, if the architecture has them."""
    for name in spec.config:
        if name in OWN:
            raise ConfigError(f"student.config.{name} is not for student.config; set {OWN[name]}")
        if name not in data or name in DERIVED:
            raise ConfigError(
                f"student.config.{name} is not a setting of models of type {data['model_type']!r}."
                f"{suggest(name, data)}"
            )
    return spec.config


def _sliced_widths(
    spec: StudentConfig, teacher: PretrainedConfig, blocks: Sequence[int]
) -> dict[str, Any]:
    """Return the widths of the teacher blocks in use, if the teacher's blocks differ in width."""
    if not is_sliced(teacher):
        return {}
    given = [name for name in ("hidden_size", "heads", "ffn_size") if getattr(spec, name)]
    if given:
        raise ConfigError(
            f"student.{given[0]} cannot be set: the teacher's blocks differ in width (gkd prune "
            "made them so), and the student takes them as they are. Leave it out, or prune the "
            "teacher further"
        )
    return {WIDTHS_KEY: Widths.read(teacher).of(blocks).as_tree()}


def _refuse_wider(student: ModelInfo, teacher: ModelInfo, copied: Sequence[str]) -> None:
    """Reject a student wider than its teacher in a dimension whose weights are copied."""
    for name in copied:
        what, mine, theirs = WIDTHS[name], getattr(student, name), getattr(teacher, name)
        if mine > theirs:
            raise ConfigError(
                f"the student's {what} {mine} (student.hidden_size, student.heads, "
                f"student.ffn_size) is larger than the teacher's {theirs}, which cannot fill it; "
                f"make it at most {theirs}, or set student.init = 'random'"
            )
