"""Search for the largest slice within a number of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

from gkd_core.errors import ConfigError
from gkd_core.models.save import count_parameters
from gkd_core.models.sites import Sites
from gkd_core.models.slicing.maps import BlockMaps, MapSide, find_maps
from gkd_core.models.slicing.widths import Widths

STEPS = 1000
"""Number of scales to search: thousandths."""


def count_sliced(sites: Sites, widths: Widths) -> int:
    """Return the number of parameters left when a model is sliced, counting tied ones once.

    Args:
        sites: Sites of the whole model; nothing is sliced.
        widths: Number of heads and neurons to keep in each block.

    Raises:
        MethodError: Slicing does not support the architecture.
    """
    total = count_parameters(sites.model)
    for maps, heads, neurons in zip(find_maps(sites), widths.heads, widths.neurons, strict=True):
        total -= sum(_removed(side, heads) for side in maps.heads)
        total -= sum(_removed(side, neurons) for side in maps.neurons)
        total -= 0 if heads else _lost_with_attention(maps)
    return total


def largest_widths(
    sites: Sites, widths: Callable[[float], Widths], budget: int, origin: str
) -> Widths:
    """Return the widths of the largest slice within a budget.

    Args:
        sites: The model's sites.
        widths: Widths for each scale, 0 to 1; a larger scale is never narrower.
        budget: Number of parameters of the whole model, including embeddings.
        origin: Setting that named the budget, for the error.

    Raises:
        ConfigError: The parts that cannot be sliced have more parameters.
    """
    low, high = 0, STEPS
    least = count_sliced(sites, widths(0.0))
    if least > budget:
        share = math.ceil(100 * least / count_sliced(sites, widths(1.0))) / 100
        raise ConfigError(
            f"{origin} allows {budget:,} parameters, but {least:,} are left without any head and "
            f"neuron that can be pruned (embeddings, norms, head). Allow a share of {share:g} or "
            "more, or prune blocks too (--depth)"
        )
    while low < high:
        middle = (low + high + 1) // 2
        if count_sliced(sites, widths(middle / STEPS)) <= budget:
            low = middle
        else:
            high = middle - 1
    return widths(low / STEPS)


def _removed(side: MapSide, units: int) -> int:
    lost = (side.units - units) * sum(side.blocks)
    other = side.weight.shape[1 - side.dim]
    has_bias = side.outputs and getattr(side.module, "bias", None) is not None
    return int(lost * (other + has_bias))


def _lost_with_attention(maps: BlockMaps) -> int:
    """Return the parameters lost with a headless attention besides: norms of queries and keys."""
    of_heads = {id(p) for side in maps.heads for p in side.module.parameters()}
    return sum(p.numel() for p in maps.attention.parameters() if id(p) not in of_heads)
