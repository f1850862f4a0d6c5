"""`Widths`: the number of heads and neurons of each block, and its keys in `config.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gkd_core.contract.model_info import FFN_SIZES, ModelInfo

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WIDTHS_KEY = "gkd_widths"
"""Key of `config.json` with the widths of a checkpoint whose blocks differ."""

SLICES_KEY = "gkd_slices"
"""Key of `config.json` with the widths of the smaller slices a checkpoint is ordered for."""


@dataclass(frozen=True)
class Widths:
    """The number of heads and neurons in each block.

    Attributes:
        heads: Key/value heads of each block, each with the query heads that share it; without
            grouped-query attention, all heads.
        neurons: Feed-forward neurons of each block.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    @classmethod
    def read(cls, config: PretrainedConfig) -> Widths:
        """Return the widths of a model, equal in all blocks unless its configuration lists them."""
        if is_sliced(config):
            return cls.parse(getattr(config, WIDTHS_KEY))
        info = ModelInfo.read("", config, 0)
        return cls((info.kv_heads,) * info.layers, (info.ffn_size,) * info.layers)

    @classmethod
    def parse(cls, tree: Mapping[str, Sequence[int]]) -> Widths:
        """Return the widths written by `as_tree`."""
        return cls(tuple(tree["heads"]), tuple(tree["neurons"]))

    def as_tree(self) -> dict[str, list[int]]:
        """Return the widths as JSON-serializable lists."""
        return {name: list(counts) for name, counts in asdict(self).items()}

    def of(self, blocks: Sequence[int]) -> Widths:
        """Return the widths of some blocks, counted from 1."""
        heads, neurons = self.heads, self.neurons
        return Widths(
            tuple(heads[block - 1] for block in blocks),
            tuple(neurons[block - 1] for block in blocks),
        )

    def within(self, other: Widths) -> bool:
        """Whether no block is wider than in `other`."""
        mine, theirs = self.heads + self.neurons, other.heads + other.neurons
        return all(a <= b for a, b in zip(mine, theirs, strict=True))


def is_sliced(config: PretrainedConfig) -> bool:
    """Whether a model has widths that a stock configuration cannot express."""
    return getattr(config, WIDTHS_KEY, None) is not None


def write_widths(config: PretrainedConfig, widths: Widths) -> None:
    """Write widths into a configuration, in its stock settings where possible."""
    own = own_words(config, widths)
    if own is None:
        setattr(config, WIDTHS_KEY, widths.as_tree())
        return
    if is_sliced(config):
        delattr(config, WIDTHS_KEY)
    for name, value in own.items():
        setattr(config, name, value)


def own_words(config: PretrainedConfig, widths: Widths) -> dict[str, int] | None:
    """Return the stock settings that express widths, or None if there are none.

    All blocks must be equal, and fewer heads require the head size to be a separate setting.
    """
    info = ModelInfo.read("", config, 0)
    heads, neurons = set(widths.heads), set(widths.neurons)
    if len(heads) > 1 or len(neurons) > 1 or 0 in heads | neurons:
        return None
    (kv_heads,), (ffn_size,) = heads, neurons
    settings: dict[str, int] = {}
    if kv_heads != info.kv_heads:
        if not has_head_size(config):
            return None
        settings["num_attention_heads"] = kv_heads * (info.heads // info.kv_heads)
        settings["num_key_value_heads"] = kv_heads
    if ffn_size != info.ffn_size:
        key = next((name for name in FFN_SIZES if hasattr(config, name)), None)
        if key is None:
            return None
        settings[key] = ffn_size
    return settings


def has_head_size(config: PretrainedConfig) -> bool:
    """Whether the head size is a separate setting, not the hidden size divided by the heads."""
    return config.to_dict().get("head_dim") is not None


def read_slices(config: PretrainedConfig) -> dict[float, Widths]:
    """Return the widths of the slices that a checkpoint is ordered for, by scale."""
    stored: Mapping[str, Any] = getattr(config, SLICES_KEY, None) or {}
    return {float(scale): Widths.parse(tree) for scale, tree in stored.items()}


def write_slices(config: PretrainedConfig, slices: Mapping[float, Widths]) -> None:
    """Write the widths of the slices that a checkpoint is ordered for, by scale."""
    setattr(
        config, SLICES_KEY, {f"{scale:g}": widths.as_tree() for scale, widths in slices.items()}
    )


def lost_heads(config: PretrainedConfig, layer: int) -> str | None:
    """Return the difference of a block's attention from a whole model's; None if there is none.

    Args:
        config: The model's configuration.
        layer: Number of the block.
    """
    left, whole = Widths.read(config).heads[layer - 1], ModelInfo.read("", config, 0).kv_heads
    return None if left == whole else f"that block has {left} of {whole} heads left: it was pruned"
