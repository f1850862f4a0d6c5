"""A check of tasks that bring their own rows."""

from __future__ import annotations

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.task import SPLITS
from gkd_core.errors import ConfigError


def reject_files(config: TaskConfig, task: str) -> None:
    """Reject files that are named for a task with its own rows.

    Args:
        config: The settings of the task.
        task: Its name.

    Raises:
        ConfigError: A file is named.
    """
    for split in SPLITS:
        value = getattr(config, split)
        if value is not None:
            raise ConfigError(
                f"task.{split} is {value!r}, but the task '{task}' has its own rows; remove it, or "
                "set task.name = 'files'"
            )
