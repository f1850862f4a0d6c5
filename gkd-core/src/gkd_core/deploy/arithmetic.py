"""The arithmetic of a model for one sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedModel

from gkd_core.contract.batch import Batch


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    flops: int = sdpa_flop_count(q, k, v)  # type: ignore[no-untyped-call]
    return flops


UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""Formulas of operations that PyTorch does not count, from the shapes of their arguments."""


def forward_flops(model: PreTrainedModel, samples: Sequence[Batch]) -> float:
    """Return the floating-point operations of a forward pass of one sample, on average.

    Counted are matrix products and attention, as the kernels compute them.

    Args:
        model: The model, on the device of the samples, in eval mode.
        samples: Batches of one sample each.
    """
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    with torch.no_grad(), counter:
        for sample in samples:
            model(**sample.inputs)
    total: int = counter.get_total_flops()
    return total / len(samples)
