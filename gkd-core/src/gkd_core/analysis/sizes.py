"""Sizes as people read them."""

from __future__ import annotations


def readable(size: int) -> str:
    """Return a number of bytes with its unit, such as `3.2 MiB`."""
    if size < 1024:
        return f"{size} B"
    value = size / 1024
    for unit in ("KiB", "MiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
