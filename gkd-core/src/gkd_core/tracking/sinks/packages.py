"""Packages that only some sinks need."""

from __future__ import annotations

from importlib.util import find_spec

from gkd_core.errors import ConfigError


def require_package(package: str, tracker: str) -> None:
    """Reject a tracker whose package is not installed; the extra of gkd-core has its name.

    Raises:
        ConfigError: It is not; the message says what to install.
    """
    if find_spec(package) is None:
        raise ConfigError(
            f"tracker '{tracker}' needs the package {package}, which is not installed: "
            f"pip install 'gkd-core[{tracker}]'"
        )
