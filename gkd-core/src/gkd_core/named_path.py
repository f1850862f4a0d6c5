"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def named_path(text: str | Path) -> Path:
    """Return a path in which `~` is a home directory; that of an unknown user stays as it is.

    `Path.expanduser` ends with an error of Python there, which names neither path nor setting.
    """
    return Path(os.path.expanduser(text))
