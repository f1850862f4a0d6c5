"""`DividedHeads`: attention heads divided over a tensor group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from gkd_core.contract.model_info import ModelInfo
from gkd_core.distributed.collectives import gather, shard
from gkd_core.distributed.shards import sharding_of


@dataclass(frozen=True)
class DividedHeads:
    """The number of heads, and the ranks that hold an equal share of them.

    Attributes:
        group: The ranks.
        queries: Query heads of all ranks together.
        keys: Key and value heads of all ranks together. If there are fewer than ranks, consecutive
            ranks hold the same one.
    """

    group: ProcessGroup
    queries: int
    keys: int

    def repeats(self, site: str) -> int:
        """Return the number of ranks that hold the same head at a site."""
        return max(1, self.group.size() // self.keys) if site in ("key", "value") else 1

    def gather(self, site: str, share: Tensor) -> Tensor:
        """Return the heads of all ranks, which must all continue with the same work on them.

        Args:
            site: Attention site of the tensor, such as `query`.
            share: This rank's heads: `[B, A, S, ...]`, or at the site `context` `[..., A*Dh]`.
        """
        joined = gather(share, _dimension(site), self.group)
        repeats = self.repeats(site)
        return joined if repeats == 1 else joined[:, ::repeats]

    def shard(self, site: str, whole: Tensor) -> Tensor:
        """Return this rank's heads of a replicated tensor; arguments as for `gather`."""
        repeats = self.repeats(site)
        repeated = whole if repeats == 1 else whole.repeat_interleave(repeats, 1)
        return shard(repeated, _dimension(site), self.group)


def heads_of(model: nn.Module) -> DividedHeads | None:
    """Return the division of a model's heads; None if this rank holds all of them."""
    sharding = sharding_of(model)
    if sharding is None:
        return None
    info = ModelInfo.read("", model.config, 0)
    return DividedHeads(sharding.group, info.heads, info.kv_heads)


def _dimension(site: str) -> int:
    return -1 if site == "context" else 1
