"""The arithmetic of a model for one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel

from gkd_core.contract.batch import Batch
from gkd_core.planning.memory_tracker import FLOPS


def forward_flops(model: PreTrainedModel, samples: Sequence[Batch]) -> float:
    """Return the floating-point operations of a forward pass of one sample, on average.

    Counted are matrix products and attention, as the kernels compute them.

    Args:
        model: The model, on the device of the samples, in eval mode.
        samples: Batches of one sample each.
    """
    counter = _Counter()
    with torch.no_grad(), counter:
        for sample in samples:
            model(**sample.inputs)
    return counter.total / len(samples)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations. PyTorch's own counter also follows modules, which DeBERTa's do not allow.

    Attributes:
        total: Floating-point operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute an operation, and count it."""
        given = kwargs or {}
        out = func(*args, **given)
        packet = func._overloadpacket
        if packet in FLOPS:
            self.total += FLOPS[packet](*args)
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **given, out_val=out)
        return out
