"""Directories that a command writes, and that must be new."""

from __future__ import annotations

from pathlib import Path

from gkd_core.named_path import named_path


def new_directory(output: str) -> Path:
    """Return the directory that `--output` names.

    Args:
        output: Its path; `~` is the home directory.

    Raises:
        ConfigError: There is something else than an empty directory.
    """
    place = named_path(output)
    refuse_taken(place)
    return place


def refuse_taken(place: Path) -> None:
    """Reject a place with anything but an empty directory.

    Raises:
        ConfigError: There is something.
    """
    from gkd_core.errors import ConfigError

    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"{place} already exists; name a new directory with --output")
