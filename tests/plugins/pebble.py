"""An architecture that neither core nor transformers knows: models, sites and a tensor plan."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gkd_core.api import ColumnParallel, ModelInfo, RowParallel, Sites, hookimpl


class PebbleConfig(PretrainedConfig):
    """The settings of an encoder, under names of its own."""

    model_type = "pebble"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "n_heads",
    }

    def __init__(
        self,
        vocab_size: int = 64,
        width: int = 32,
        depth: int = 4,
        n_heads: int = 4,
        expansion: int = 2,
        positions: int = 64,
        **settings: object,
    ) -> None:
        self.vocab_size, self.width, self.depth, self.n_heads = vocab_size, width, depth, n_heads
        self.expansion, self.positions = expansion, positions
        super().__init__(**settings)


class PebbleAttention(nn.Module):
    """Self-attention that counts its heads."""

    def __init__(self, config: PebbleConfig) -> None:
        super().__init__()
        self.config = config
        self.head_count, self.head_size = config.n_heads, config.width // config.n_heads
        self.to_query = nn.Linear(config.width, config.width)
        self.to_key = nn.Linear(config.width, config.width)
        self.to_value = nn.Linear(config.width, config.width)
        self.back = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Attend to the positions that are not masked."""
        rows, length, _ = hidden.shape
        query, key, value = (
            layer(hidden).view(rows, length, self.head_count, self.head_size).transpose(1, 2)
            for layer in (self.to_query, self.to_key, self.to_value)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)
        context, _ = attend(self, query, key, value, mask, is_causal=False)
        projected: Tensor = self.back(context.reshape(rows, length, -1))
        return projected


class PebbleBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: PebbleConfig) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = PebbleAttention(config)
        self.rise = nn.Linear(config.width, config.expansion * config.width)
        self.fall = nn.Linear(config.expansion * config.width, config.width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return the residual stream."""
        hidden = hidden + self.attention(self.attention_norm(hidden), mask)
        added: Tensor = self.fall(torch.relu(self.rise(self.ffn_norm(hidden))))
        return hidden + added


class PebblePreTrainedModel(PreTrainedModel):
    """What the models share."""

    config_class = PebbleConfig
    base_model_prefix = "pebble"
    _supports_sdpa = True


class PebbleModel(PebblePreTrainedModel):
    """The encoder."""

    def __init__(self, config: PebbleConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.places = nn.Embedding(config.positions, config.width)
        self.blocks = nn.ModuleList(PebbleBlock(config) for _ in range(config.depth))
        self.last = nn.LayerNorm(config.width)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of words."""
        return self.words

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of words."""
        self.words = value

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object
    ) -> BaseModelOutput:
        """Return the last hidden states."""
        hidden = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        mask = create_bidirectional_mask(self.config, hidden, attention_mask)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return BaseModelOutput(last_hidden_state=self.last(hidden))


class PebbleForSequenceClassification(PebblePreTrainedModel):
    """The encoder with a head on the first position."""

    def __init__(self, config: PebbleConfig) -> None:
        super().__init__(config)
        self.pebble = PebbleModel(config)
        self.verdict = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object
    ) -> SequenceClassifierOutput:
        """Return the logits of the classes."""
        hidden = self.pebble(input_ids, attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.verdict(hidden[:, 0]))


class PebbleSites(Sites):
    """Where the parts of a Pebble are, and what its layers mean."""

    families = ("pebble",)
    config_class = PebbleConfig
    heads: ClassVar = {
        "classification": PebbleForSequenceClassification,
        "regression": PebbleForSequenceClassification,
    }
    tensor_plan: ClassVar = {
        "blocks.*.attention.to_query": ColumnParallel(),
        "blocks.*.attention.to_key": ColumnParallel(),
        "blocks.*.attention.to_value": ColumnParallel(),
        "blocks.*.attention.back": RowParallel(),
        "blocks.*.rise": ColumnParallel(),
        "blocks.*.fall": RowParallel(),
    }
    outputs: ClassVar = dict.fromkeys(("to_query", "to_key", "to_value"), (("heads", "head_size"),))
    inputs: ClassVar = {"attention.back": (("heads", "head_size"),)}
    counts = ("head_count",)

    @classmethod
    def read_info(cls, name: str, config: PretrainedConfig, labels: int) -> ModelInfo:
        """Read the feed-forward width and the positions, which have names of their own."""
        return ModelInfo(
            name=name,
            family=config.model_type,
            layers=config.depth,
            hidden_size=config.width,
            heads=config.n_heads,
            kv_heads=config.n_heads,
            head_size=config.width // config.n_heads,
            ffn_size=config.expansion * config.width,
            vocab_size=config.vocab_size,
            labels=labels,
            max_length=config.positions,
        )

    def find_attentions(self) -> list[nn.Module]:
        """Return the attention of each block."""
        return [block.attention for block in self.blocks]

    def find_final_norm(self) -> nn.Module:
        """Return the norm after the blocks."""
        return self.model.base_model.last


@hookimpl
def gkd_register_sites() -> list[type[Sites]]:
    """Register the sites."""
    return [PebbleSites]
