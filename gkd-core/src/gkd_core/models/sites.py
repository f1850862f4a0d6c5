"""`Sites`: locations of the blocks, attention modules and final norm of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_FAMILIES,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED_FAMILIES,
)

from gkd_core.contract.architectures import adapter_of
from gkd_core.contract.model_info import ModelInfo
from gkd_core.errors import MethodError, PluginError
from gkd_core.models.adapters import is_adapted
from gkd_core.models.slicing.empty import Headless
from gkd_core.models.slicing.widths import Widths

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from gkd_core.models.transfer import AxisPart
    from gkd_core.parallel.layers import VocabularyHead
    from gkd_core.parallel.tp_plans import Style

EXPERTS = "experts"
"""Transformers' name for the feed-forward parts of a block among which a router chooses."""

RELATIVE = "norm_rel_ebd"
"""Attribute of the encoders of DeBERTa, whose norm is one of relative positions."""

PLUGIN_HINT = "A plugin can name them with a `Sites` class, registered through gkd_register_sites"


class Sites:
    """The places of a transformers encoder or decoder that can be read.

    Most transformers models name the classes of their blocks and attention modules, which is
    enough. For any other architecture, a plugin registers a subclass, an adapter, that overrides
    `find_blocks`, `find_attentions` or `find_final_norm`. For one that transformers does not know
    either, it also sets the attributes up to `counts`.

    Attributes:
        families: Hugging Face model types that a subclass supports.
        config_class: The configuration class, if transformers does not know the model type.
        heads: The model class for each kind of task that transformers does not know, such as
            `classification`.
        tensor_plan: How the linear layers are divided under tensor parallelism, by their names in
            the base model with `*` for the block number. Empty: as core or transformers knows it.
        outputs: Meaning of a linear layer's outputs, by the end of its name: parts of sizes of
            `ModelInfo`, such as `(("heads", "head_size"),)`. With `inputs`, heads and neurons can
            be sliced, and narrower students take whole heads.
        inputs: Meaning of the inputs of the attention's output projection, in the same form.
        counts: Attributes of attention modules that count their heads, or features of all heads.
        model: The model, with whatever head it has.
        blocks: The transformer blocks in order, L of them.
        attentions: The self-attention module of each block: the first argument of transformers'
            attention functions. Empty if attention cannot be captured.
        ffns: The last linear layer of each block's feed-forward part; empty if there is none.
        final_norm: The norm after the last block; None in post-norm models.
        classifier: The last linear layer of a head that classifies whole rows, or None.
        head: The linear layer to the vocabulary of a language model, whole or divided, or None.
        causal: Whether a position sees only those before it.
        obstacle: Why attention sites cannot be captured, or None if they can.

    Raises:
        MethodError: The structure of the model is not understood; the message says why.
    """

    families: ClassVar[tuple[str, ...]] = ()
    config_class: ClassVar[type[PretrainedConfig] | None] = None
    heads: ClassVar[Mapping[str, type[PreTrainedModel]]] = {}
    tensor_plan: ClassVar[Mapping[str, Style]] = {}
    outputs: ClassVar[Mapping[str, tuple[AxisPart, ...]]] = {}
    inputs: ClassVar[Mapping[str, tuple[AxisPart, ...]]] = {}
    counts: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def read_info(cls, name: str, config: PretrainedConfig, labels: int) -> ModelInfo:
        """Return the shape of a model, given its configuration.

        Default: the settings that configurations usually have. Override it if they have other
        names, unless the `attribute_map` of the configuration class translates them.

        Args:
            name: `student`, or the teacher's name.
            config: The model's configuration.
            labels: Width of the logits.
        """
        return ModelInfo.from_settings(name, config, labels)

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        config = model.config
        if config.is_encoder_decoder:
            raise self._unknown("it is an encoder-decoder; encoders and decoders are supported")
        self.blocks: Sequence[nn.Module] = self.find_blocks()
        if len(self.blocks) != config.num_hidden_layers:
            raise self._unknown(
                f"its configuration counts {config.num_hidden_layers} blocks, "
                f"but {len(self.blocks)} were found"
            )
        if len(set(self.blocks)) < len(self.blocks):
            raise self._unknown("its layers share one block and cannot be told apart")
        self.attentions: Sequence[nn.Module] = self.find_attentions()
        self.ffns: Sequence[nn.Module] = self.find_ffns()
        self.final_norm: nn.Module | None = self.find_final_norm()
        self.classifier: nn.Module | None = self.find_classifier()
        self.head: nn.Linear | VocabularyHead | None = self.find_head()
        self.obstacle: str | None = self._find_obstacle()
        self.causal: bool = self.find_causal()

    def find_blocks(self) -> Sequence[nn.Module]:
        """Return the transformer blocks in order."""
        base = self.model.base_model
        return self._recorded("hidden_states", base) or self._only_list(base)

    def find_attentions(self) -> Sequence[nn.Module]:
        """Return the self-attention module of each block; nothing if any block has none."""
        found = [
            self._recorded("attentions", block)
            or [module for module in block.modules() if isinstance(module, Headless)]
            for block in self.blocks
        ]
        return [modules[0] for modules in found] if all(len(m) == 1 for m in found) else []

    def find_ffns(self) -> Sequence[nn.Module]:
        """Return the last linear layer of each block's feed-forward part.

        Nothing if some block has none, or several experts.
        """
        if any(EXPERTS in name for block in self.blocks for name, _ in block.named_modules()):
            return []
        width = self.model.config.hidden_size
        sizes = Widths.read(self.model.config).neurons
        pairs = zip(self.blocks, sizes, strict=True)
        found = [_last_matrix(block, {size, width}) for block, size in pairs]
        return [module for module in found if module is not None] if all(found) else []

    def find_classifier(self) -> nn.Module | None:
        """Return the last linear layer of a head that classifies whole rows, or None."""
        if self.model.get_output_embeddings() is not None:
            return None
        body = set(self.model.base_model.modules())
        outside = [m for m in self.model.modules() if isinstance(m, nn.Linear) and m not in body]
        return outside[-1] if outside else None

    def find_head(self) -> nn.Linear | VocabularyHead | None:
        """Return the linear layer to the vocabulary, if the head ends in one."""
        head = self.model.get_output_embeddings()
        # `VocabularyHead` cannot be imported without megatron-core.
        return head if isinstance(head, nn.Linear) or hasattr(head, "words") else None

    def find_final_norm(self) -> nn.Module | None:
        """Return the norm after the last block, or None if there is none.

        It is a sibling of the list of blocks, or of a module that contains the list.
        """
        norms = {
            name: child
            for parent in self._parents(self.blocks[0])
            for name, child in parent.named_children()
            if type(child).__name__.lower().endswith("norm") and not hasattr(parent, RELATIVE)
        }
        if len(norms) > 1:
            norms = {name: child for name, child in norms.items() if "emb" not in name}
        if len(norms) > 1:
            raise self._unknown(f"any of {', '.join(norms)} could be its final norm")
        return next(iter(norms.values()), None)

    def _recorded(self, output: str, root: nn.Module) -> list[nn.Module]:
        """Return the modules under `root` from whose class transformers records `output`."""
        recordable = getattr(self.model.base_model, "_can_record_outputs", None) or {}
        entries = recordable.get(output, [])
        entries = entries if isinstance(entries, list) else [entries]
        return [
            module
            for name, module in root.named_modules()
            if any(_matches(entry, f".{name}.", module) for entry in entries)
        ]

    def _only_list(self, root: nn.Module) -> list[nn.Module]:
        """Return the only module list of as many modules as there are blocks, or nothing."""
        count = self.model.config.num_hidden_layers
        lists = [m for m in root.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        return list(lists[0]) if len(lists) == 1 else []

    def _parents(self, block: nn.Module) -> list[nn.Module]:
        """Return the modules around `block`, from the base model inwards."""
        base = self.model.base_model
        name = next(name for name, module in base.named_modules() if module is block)
        parts = name.split(".")
        return [base.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]

    def find_causal(self) -> bool:
        """Return whether a position sees only those before it."""
        family, modules = self.model.config.model_type, self.blocks[0].modules()
        if not getattr(self.model.config, "is_causal", True):
            return False
        if any(getattr(module, "is_causal", False) for module in modules):
            return True
        if getattr(self.model.config, "use_bidirectional_attention", False):
            return False
        return family in CAUSAL_FAMILIES and family not in MASKED_FAMILIES

    def _find_obstacle(self) -> str | None:
        name = type(self.model).__name__
        if not self.attentions:
            return f"transformers does not name the self-attention module of each block of {name}"
        if not (self.model._supports_sdpa and self.model._can_set_attn_implementation()):
            return f"{name} does not use transformers' scaled-dot-product attention"
        return None

    def _unknown(self, problem: str) -> MethodError:
        model = f"{type(self.model).__name__} (model type {self.model.config.model_type!r})"
        return MethodError(f"the sites of {model} are unknown: {problem}. {PLUGIN_HINT}")


def find_sites(model: PreTrainedModel, adapters: Iterable[type[Sites]] = ()) -> Sites:
    """Return the sites of a model.

    Args:
        model: The model.
        adapters: Subclasses registered by plugins; one that lists the model's type is used.

    Raises:
        MethodError: The structure of the model is not understood.
        PluginError: Two adapters are for the same model type.
    """
    family = model.config.model_type
    fitting = [adapter for adapter in adapters if family in adapter.families]
    if len(fitting) > 1:
        names = " and ".join(f"{a.__module__}.{a.__qualname__}" for a in fitting)
        raise PluginError(f"{names} are all sites of {family!r}. Disable a plugin")
    return fitting[0](model) if fitting else Sites(model)


def own_sites(model: PreTrainedModel) -> Sites:
    """Return the sites of a model by the adapter that describes its model type, if there is one."""
    return (adapter_of(model.config.model_type) or Sites)(model)


def _last_matrix(block: nn.Module, shape: set[int]) -> nn.Module | None:
    """Return the last module of a block whose weight is a matrix of this shape or its transpose.

    GPT-2 stores its matrices transposed, so that the orientation is no clue; the layer from the
    feed-forward width back to the hidden size comes after the one that leads to it.
    """
    found = None
    for module in _layers(block):
        weight = getattr(module, "weight", None)
        # A layer that is divided over several ranks holds a shard of its matrix.
        whole = getattr(module, "whole_shape", getattr(weight, "shape", ()))
        if isinstance(weight, nn.Parameter) and len(whole) == 2 and set(whole) == shape:
            found = module
    return found


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and those inside, but not the parts of a layer with an adapter."""
    yield module
    if not is_adapted(module):
        for child in module.children():
            yield from _layers(child)


def _matches(entry: Any, name: str, module: nn.Module) -> bool:
    """Return whether an entry of `_can_record_outputs` refers to a module.

    An entry is a class, or an `OutputRecorder` with a class and a part of the module's name.
    """
    target = getattr(entry, "target_class", entry)
    part = getattr(entry, "layer_name", None)
    if not isinstance(target, type) or not isinstance(module, target):
        return False
    return part is None or f".{part.strip('.')}." in name
