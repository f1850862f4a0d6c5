"""The state of the installation: gkd's requirements and extras, as its package declares them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from gkd_core.plugins.provenance import CORE

if TYPE_CHECKING:
    from packaging.requirements import Requirement


@dataclass(frozen=True)
class Installed:
    """A requirement of gkd.

    Attributes:
        name: The distribution.
        needed: The versions that fit, such as `>=2.6`.
        version: The version that is installed; None if none is.
        fits: Whether that version fits.
    """

    name: str
    needed: str
    version: str | None
    fits: bool

    def __str__(self) -> str:
        if self.fits:
            return f"{self.name} {self.version}"
        has = "" if self.version is None else f" (here {self.version})"
        return f"{self.name}{self.needed}{has}"


def requirements() -> list[Installed]:
    """Return the required packages."""
    return [_installed(need) for need in _needs() if _applies(need, "")]


def extras() -> dict[str, list[Installed]]:
    """Return the additional packages of each extra, by its name."""
    try:
        names = metadata.metadata(CORE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return {}
    more = [need for need in _needs() if not _applies(need, "")]
    return {name: [_installed(need) for need in more if _applies(need, name)] for name in names}


def _needs() -> Iterator[Requirement]:
    from packaging.requirements import Requirement

    try:
        yield from map(Requirement, metadata.requires(CORE) or ())
    except metadata.PackageNotFoundError:
        return  # the source is on the path, and nothing is installed


def _applies(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def _installed(need: Requirement) -> Installed:
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return Installed(need.name, str(need.specifier), None, False)
    fits = need.specifier.contains(version, prereleases=True)
    return Installed(need.name, str(need.specifier), version, fits)
