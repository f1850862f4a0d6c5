"""What `MemoryTracker` counts besides memory."""

from __future__ import annotations

import pytest
import torch

from gkd_core.planning.memory_tracker import ATEN, FLOPS


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_heads_that_share_keys_count_as_many_as_those_that_do_not(kernel):
    """The formulas of PyTorch before 2.13 refuse heads that share keys."""
    count = FLOPS[getattr(ATEN, f"_scaled_dot_product_{kernel}_attention")]
    queries, keys, shared = (torch.empty(2, heads, 16, 8, device="meta") for heads in (4, 4, 2))
    assert count(queries, shared, shared) == count(queries, keys, keys) == 2 * 2 * 2 * 4 * 16**2 * 8
