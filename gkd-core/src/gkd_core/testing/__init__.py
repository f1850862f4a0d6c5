"""For authors of plugins: checks of required properties, and tiny test models."""

from __future__ import annotations

from gkd_core.testing.check_combiner import check_combiner
from gkd_core.testing.check_kind import check_kind
from gkd_core.testing.check_launcher import check_launcher
from gkd_core.testing.check_method import check_method
from gkd_core.testing.check_optimizer import check_optimizer
from gkd_core.testing.check_rollouts import check_rollouts
from gkd_core.testing.check_sink import check_sink
from gkd_core.testing.check_sites import check_sites
from gkd_core.testing.check_task import check_task
from gkd_core.testing.ranks import on_ranks
from gkd_core.testing.tiny import tiny_batch, tiny_model

__all__ = [
    "check_combiner",
    "check_kind",
    "check_launcher",
    "check_method",
    "check_optimizer",
    "check_rollouts",
    "check_sink",
    "check_sites",
    "check_task",
    "on_ranks",
    "tiny_batch",
    "tiny_model",
]
