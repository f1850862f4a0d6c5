"""What core itself gives to gkd: the sources of data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gkd_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from gkd_core.contract.task import Task


@hookimpl
def gkd_register_tasks() -> Iterable[type[Task]]:
    """Return the built-in tasks."""
    from gkd_core.data.embedded import Embedded
    from gkd_core.data.files import Files
    from gkd_core.data.hub import Hub

    return [Embedded, Files, Hub]
