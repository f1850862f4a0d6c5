"""Sizes in bytes, parsed from and formatted as text with units."""

from __future__ import annotations

import re

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
SIZE = re.compile(r"(?P<number>[0-9]{1,15}(\.[0-9]{1,15})?)\s*(?P<unit>[KMG]i?)?B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `40GiB` (2**30 each) or `40GB` (10**9 each).

    Raises:
        ValueError: The text is not a size.
    """
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size; write it like 40GiB or 500MB")
    unit = (found["unit"] or "").capitalize()
    return round(float(found["number"]) * UNITS[unit])


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
