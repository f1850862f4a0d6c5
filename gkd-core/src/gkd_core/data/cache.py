"""The cache directory for files that gkd can recreate."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache directory: `GKD_CACHE`, or `gkd` in the user's cache directory.

    It may not exist yet.
    """
    own = os.environ.get("GKD_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gkd"
