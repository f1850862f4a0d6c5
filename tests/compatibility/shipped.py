"""A plugin whose task brings a tiny teacher, which gkd trains and keeps in its cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from gkd_core.api import DefaultTeacher, Split, Task, TaskData, hookimpl

TEXTS = [" ".join("abcdefghij"[int(digit)] for digit in str(7919 * n)) for n in range(48)]


class Shipped(Task):
    """Numbers written in letters, even or odd."""

    name = "shipped"

    def load(self, kind, seed):
        """Return the rows."""

        def split(first, last):
            return Split(TEXTS[first:last], labels=[n % 2 for n in range(first, last)])

        return TaskData(
            kind="classification",
            train=split(0, 24),
            validation=split(24, 36),
            test=split(36, 48),
            classes=("even", "odd"),
            rows_hash="shipped",
            source="numbers",
        )

    def default_teacher(self, data, size="large"):
        """Return the teacher of the world, to be trained."""
        world = Path("world/teacher").resolve()
        training = {"epochs": 1, "batch_size": 8, "lr": 0.3, "eps": 1.0}
        return DefaultTeacher(lambda directory: shutil.copytree(world, directory), training)


@hookimpl
def gkd_register_tasks():
    """Return the task."""
    return [Shipped]
