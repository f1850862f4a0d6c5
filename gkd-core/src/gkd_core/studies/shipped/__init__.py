"""The studies that come with gkd: files that `gkd study run NAME` starts from."""

from __future__ import annotations

from pathlib import Path

from gkd_core.errors import ConfigError, suggest

SHIPPED = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def shipped_study(name: str) -> Path:
    """Return the file of a study by name.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in SHIPPED:
        raise ConfigError(
            f"there is no study {name!r}.{suggest(name, SHIPPED)} Name a file, the folder of a "
            f"study, or one of {', '.join(SHIPPED)}"
        )
    return SHIPPED[name]
