"""Division of a Hugging Face model over the ranks of a tensor group."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from torch.distributed import ProcessGroup
from torch.nn import Parameter
from transformers.pytorch_utils import Conv1D

from gkd_core.contract.architectures import adapter_of
from gkd_core.contract.model_info import ModelInfo
from gkd_core.distributed.collectives import all_reduce
from gkd_core.distributed.megatron import set_tensor_model_parallel_attributes
from gkd_core.distributed.rng import RngTracker
from gkd_core.distributed.shards import Sharding, ShardSpec
from gkd_core.errors import ConfigError
from gkd_core.models.slicing.select import COUNTS
from gkd_core.parallel.divisibility import check_divisible
from gkd_core.parallel.layers import (
    ColumnLinear,
    ParallelLayer,
    RepeatedLinear,
    RowLinear,
    VocabularyEmbedding,
    VocabularyHead,
)
from gkd_core.parallel.tp_plans import (
    GROUPS,
    KEYS_AND_VALUES,
    ColumnParallel,
    Style,
    Summed,
    find_plan,
    generic,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard_model(model: PreTrainedModel, group: ProcessGroup) -> PreTrainedModel:
    """Divide a model over a tensor group, in place.

    Every rank continues with the same batch and gets whole hidden states and logits; queries, keys
    and values are those of its own heads. Attention heads, feed-forward units and the vocabulary
    are divided; norms, position embeddings and classifiers are replicated, and stay equal. Weights
    keep their names.

    The ranks of a group must draw random numbers from equal seeds: different dropout of the hidden
    states would make the ranks diverge. Dropout of a rank's own heads has its own generator
    (`RngTracker`).

    Args:
        model: The whole model, equal on all ranks; on the meta device only shapes are divided.
        group: The tensor group; with one rank, nothing changes.

    Raises:
        ConfigError: The architecture cannot be divided by this degree.
    """
    if group.size() == 1:
        return model
    check_divisible(model.config, group.size(), "size of the tensor group")
    sharder = _Sharder(model, group)
    sharder.divide_blocks()
    sharder.divide_vocabulary()
    model.sharding = sharder.finish()
    mark_parameters(model)
    return model


def mark_parameters(model: PreTrainedModel) -> None:
    """Mark shards for megatron-core and DeepSpeed, and register sums of partial gradients.

    To be called again when the weights of a divided model have been replaced.
    """
    sharding: Sharding = model.sharding
    for name, parameter in model.named_parameters():
        if name in sharding.splits:
            set_tensor_model_parallel_attributes(parameter, True, sharding.splits[name].dim, 1)
        if name in sharding.summed and not parameter.is_meta and parameter.requires_grad:
            parameter.register_hook(partial(all_reduce, group=sharding.group))


class _Sharder:
    """Replaces modules of a model with parallel ones."""

    def __init__(self, model: PreTrainedModel, group: ProcessGroup) -> None:
        self.model = model
        self.group = group
        self.ranks = group.size()
        self.info = ModelInfo.read("", model.config, 0)
        self.names = {module: name for name, module in model.named_modules()}
        self.shards: dict[Parameter, Parameter] = {}
        self.splits: dict[Parameter, ShardSpec] = {}
        self.summed: set[Parameter] = set()
        self.rng = RngTracker(group.rank())
        adapter = adapter_of(model.config.model_type)
        self.counts = dict.fromkeys((*COUNTS, *(adapter.counts if adapter else ())))

    def divide_blocks(self) -> None:
        """Divide the modules named in the architecture's plan."""
        plan = find_plan(self.model.config)
        for name, module in list(self.model.base_model.named_modules()):
            style = plan.get(generic(name))
            if style is not None:
                self._divide(name, module, style)
            self._adjust_counts(module)

    def divide_vocabulary(self) -> None:
        """Divide the embedding and, in a language model, the head."""
        embedding = self.model.get_input_embeddings()
        head = self.model.get_output_embeddings()
        # Embeddings that do more, such as scaling, are subclasses.
        if type(embedding) is not nn.Embedding or type(head) not in (nn.Linear, type(None)):
            return
        words = ShardSpec(tuple(embedding.weight.shape), 0, self.ranks)
        self._replace(embedding, VocabularyEmbedding(words, embedding.padding_idx, self.group))
        if head is not None:
            self._replace(head, VocabularyHead(words, self._cut_bias(head), self.group))

    def finish(self) -> Sharding:
        """Replace all tied weights with their shards, and return how the model is divided."""
        for module in self.model.modules():
            for leaf, weight in list(module.named_parameters(recurse=False)):
                if weight in self.shards:
                    setattr(module, leaf, self.shards[weight])
        named = dict(self.model.named_parameters(remove_duplicate=False))
        return Sharding(
            group=self.group,
            splits={name: self.splits[w] for name, w in named.items() if w in self.splits},
            summed=frozenset(name for name, w in named.items() if w in self.summed),
        )

    def _divide(self, name: str, module: nn.Module, style: Style) -> None:
        if isinstance(style, Summed):
            self.summed.update(module.parameters())
            return
        if not isinstance(module, nn.Linear | Conv1D):
            raise ConfigError(
                f"{name} of {type(self.model).__name__} is a {type(module).__name__}, which "
                "cannot be divided over a tensor group. Keep the tensor degree at 1"
            )
        if name.endswith(KEYS_AND_VALUES) and self.info.kv_heads % self.ranks:
            self.summed.update(module.parameters())
            repeated = RepeatedLinear(module, self.info.head_size, self.group)
            self.model.set_submodule(self.names[module], repeated)
        elif isinstance(style, ColumnParallel):
            weight, bias = self._cut(module, 0, style.parts), self._cut_bias(module, style.parts)
            self._replace(module, ColumnLinear(weight, bias, self.group), self.rng)
        else:
            weight = self._cut(module, 1)
            row = RowLinear(weight, module.bias is not None, self.group)
            self._replace(module, row, self.rng)
            self.rng = RngTracker(self.group.rank())

    def _cut(self, module: nn.Linear, dim: int, parts: int = 1) -> ShardSpec:
        """Return the division of a linear layer's weight along outputs (0) or inputs (1)."""
        transposed = isinstance(module, Conv1D)
        shape = tuple(module.weight.shape)
        return ShardSpec(shape, 1 - dim if transposed else dim, self.ranks, parts, transposed)

    def _cut_bias(self, module: nn.Linear, parts: int = 1) -> ShardSpec | None:
        if module.bias is None:
            return None
        return ShardSpec(tuple(module.bias.shape), 0, self.ranks, parts)

    def _replace(
        self, module: nn.Module, layer: ParallelLayer, rng: RngTracker | None = None
    ) -> None:
        """Give a parallel layer its shards of a module's weights, and put it in its place."""
        for leaf, whole in module.named_parameters(recurse=False):
            split = layer.splits.get(leaf)
            setattr(layer, leaf, whole if split is None else self._shard(whole, split))
        layer.train(module.training)
        layer.rng = rng
        self.model.set_submodule(self.names[module], layer)

    def _shard(self, whole: Parameter, split: ShardSpec) -> Parameter:
        """Return this rank's shard of a weight, the same object wherever the weight is tied."""
        if whole not in self.shards:
            shard = split.shard(whole.detach(), self.group.rank())
            self.shards[whole] = Parameter(shard, whole.requires_grad)
            self.splits[self.shards[whole]] = split
        return self.shards[whole]

    def _adjust_counts(self, module: nn.Module) -> None:
        """Adjust a module's attributes that count units to its shard."""
        for name in self.counts:
            if hasattr(module, name):
                setattr(module, name, getattr(module, name) // self.ranks)
        if hasattr(module, GROUPS):
            queries = self.info.heads // self.ranks
            setattr(module, GROUPS, queries // max(self.info.kv_heads // self.ranks, 1))
