"""Low-rank adapters (LoRA): students of which few weights are trained.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. PEFT provides the
layers. They are put into the model itself, so that whatever reads its sites finds it as before.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gkd_core.config.schema import LoraConfig
from gkd_core.errors import ConfigError, suggest
from gkd_core.models.adapters import trained_weights
from gkd_core.models.load import seeded
from gkd_core.models.sites import Sites
from gkd_core.students.build import Student

PACKAGE = "peft"


@dataclass(frozen=True)
class Trained:
    """The number of a student's weights that are trained.

    Attributes:
        weights: Number of trained weights: those of the adapters, and perhaps of the head.
        total: Number of all weights of the student, without the adapters.
        layers: Number of layers with an adapter.
    """

    weights: int
    total: int
    layers: int

    def __str__(self) -> str:
        share = self.weights / self.total
        return f"{self.weights:,} of {self.total:,} weights are trained ({share:.2%})"


def add_lora(
    student: Student, sites: Sites, lora: LoraConfig, is_lm: bool, seed: int, base: str | None
) -> Student:
    """Return a student with adapters in its layers and all else frozen.

    Args:
        student: The student; its model is changed in place.
        sites: Its sites.
        lora: The settings of the adapters.
        is_lm: Whether it is a language model, whose head stays frozen by default.
        seed: Seed of the adapters' weights.
        base: Directory or hub id of the model as it is now; None if it is saved nowhere.

    Raises:
        ConfigError: No layer is meant, or another than a linear layer of a block.
    """
    with seeded(seed):
        trained = adapt(student.model, sites, lora, is_lm, student.initialized, base)
    given = f"rank {lora.rank}, alpha {lora.scale:g}, in {trained.layers} layers; {trained}"
    return replace(student, summary=[*student.summary, ("lora", given)], sites=None)


def adapt(
    model: PreTrainedModel,
    sites: Sites,
    lora: LoraConfig,
    is_lm: bool,
    initialized: Collection[str] = (),
    base: str | None = None,
) -> Trained:
    """Put adapters into a model and freeze its other weights; return how many are trained.

    Args:
        model: The model.
        sites: Its sites.
        lora: The settings of the adapters.
        is_lm: Whether it is a language model, whose head stays frozen by default.
        initialized: Names of weights that were drawn at random, which are trained in any case.
        base: Directory or hub id of the model as it is now; None if it is saved nowhere.
    """
    peft = _import_peft()
    total = sum(weight.numel() for weight in model.parameters())
    layers = target_layers(sites, lora)
    unfrozen = list(_unfrozen(model, lora, is_lm, initialized))
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in layers)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scale,
        lora_dropout=lora.dropout,
        target_modules=list(layers),
        fan_in_fan_out=transposed,
        base_model_name_or_path=base,
    )
    peft.inject_adapter_in_model(config, model)
    # Said only now: PEFT would train copies of these layers and keep their first values beside.
    config.modules_to_save = sorted({name.rpartition(".")[0] for name, _ in unfrozen}) or None
    for _, weight in unfrozen:
        weight.requires_grad_(True)
    trained = sum(weight.numel() for weight in trained_weights(model))
    return Trained(trained, total, len(layers))


def copy_sharing(model: PreTrainedModel, lora: LoraConfig, is_lm: bool) -> PreTrainedModel:
    """Return a copy of a model to put adapters into, with the same tensors as frozen weights.

    What is trained whole, such as the head of a classifier, is copied.

    Args:
        model: The model, on which nothing listens yet.
        lora: The settings of the adapters.
        is_lm: Whether it is a language model.
    """
    own = {weight for _, weight in _unfrozen(model, lora, is_lm, ())}
    # Every tensor is given to `deepcopy`, which could not copy those of a simulation.
    memo: dict[int, Tensor] = {
        id(w): nn.Parameter(w.detach().clone()) if w in own else w for w in model.parameters()
    }
    memo |= {id(buffer): buffer.clone() for buffer in model.buffers()}
    return copy.deepcopy(model, memo).train()


def target_layers(sites: Sites, lora: LoraConfig) -> Sequence[str]:
    """Return the names of the layers that get an adapter.

    Raises:
        ConfigError: A target is the name of no linear layer of a block.
    """
    known = list(_linear_layers(sites))
    if lora.targets == "all":
        if not known:
            raise ConfigError(
                f"student.lora: the blocks of {sites.model.config.model_type} have no linear "
                "layers, which adapters are put into. Train the student whole"
            )
        return known
    wanted = {target: [n for n in known if _ends_with(n, target)] for target in lora.targets}
    for target, names in wanted.items():
        if not names:
            last = sorted({name.rpartition(".")[2] for name in known})
            raise ConfigError(
                f"student.lora.targets names {target!r}, which is not a linear layer of the "
                f"blocks of {sites.model.config.model_type}.{suggest(target, last)} They have "
                f"{', '.join(last)}"
            )
    found = {name for names in wanted.values() for name in names}
    return [name for name in known if name in found]


def _import_peft() -> ModuleType:
    """Import PEFT, which imports DeepSpeed if that is installed, without what the latter says."""
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    import peft

    return peft


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a message is not that there is no GPU."""
    return "Setting accelerator" not in record.getMessage()


def check_lora_here() -> None:
    """Reject adapters where PEFT is missing.

    Raises:
        ConfigError: It is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(
            f"student.lora needs {PACKAGE}, which is not installed. Install gkd-core[lora]"
        )


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _linear_layers(sites: Sites) -> Iterator[str]:
    """Yield the names of the linear layers of all blocks."""
    inside = {module for block in sites.blocks for module in block.modules()}
    for name, module in sites.model.named_modules():
        if module in inside and isinstance(module, nn.Linear | Conv1D):
            yield name


def _unfrozen(
    model: PreTrainedModel, lora: LoraConfig, is_lm: bool, initialized: Collection[str]
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the weights that are trained whole: those of the head, and those without values."""
    head = not is_lm if lora.head is None else lora.head
    body = set(model.base_model.parameters())
    for name, weight in model.named_parameters():
        if name in initialized or (head and weight not in body):
            yield name, weight
