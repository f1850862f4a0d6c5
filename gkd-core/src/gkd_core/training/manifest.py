"""The manifest of a checkpoint: its files, and everything that determines the student.

Whatever differs from it when the run is resumed is a `Difference`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gkd_core import digest
from gkd_core.atomic import write_file
from gkd_core.errors import ConfigError
from gkd_core.models.content import FileContent, KnownModels

MANIFEST = "manifest.json"
DIGEST = "digest"
"""The key of a manifest's digest of its other keys."""

Inputs = Mapping[str, Mapping[str, Any]]
"""Everything that determines a student, by section and name: JSON values, and digests of files."""


@dataclass(frozen=True)
class Difference:
    """A change since a run was interrupted.

    Attributes:
        name: What it is.
        was: What it was.
        now: What it is now.
        free: Whether a run goes on with it unasked.
    """

    name: str
    was: str
    now: str
    free: bool = False

    def __str__(self) -> str:
        return f"{self.name}: was {self.was}, is {self.now}"


@dataclass(frozen=True)
class Manifest:
    """The inputs of a checkpoint, or of the student of a finished stage.

    Attributes:
        inputs: Everything that determines the student.
        models: What was found when the models among them were read.
        differences: What is known not to be as it was when the run began.
        files: The files that the manifest is about, by name.
    """

    inputs: Inputs = field(default_factory=dict)
    models: KnownModels = field(default_factory=KnownModels)
    differences: tuple[Difference, ...] = ()
    files: Mapping[str, FileContent] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the manifest as JSON, with a digest of its own."""
        content = json.loads(json.dumps(asdict(self)))  # as it is read again
        write_file(path, json.dumps({**content, DIGEST: digest.of_value(content)}, indent=1))

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest that `save` wrote.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            content = json.loads(path.read_text())
            own = content.pop(DIGEST, None)  # version 0.1 wrote none
            if own is not None and own != digest.of_value(content):
                raise ValueError("it has changed since it was written")
            return cls(
                inputs=content["inputs"],
                models=KnownModels(
                    _files(content["models"]["files"]), content["models"]["digests"]
                ),
                differences=tuple(Difference(**each) for each in content["differences"]),
                files=_files(content["files"]),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"{path} cannot be read ({error}), so it is unknown whether the checkpoint is "
                "complete. Restore the file, or start a new run"
            ) from error

    def altered(self, there: Mapping[str, FileContent], folder: str) -> Iterator[Difference]:
        """Yield the files that are not as they were.

        Args:
            there: The files that are in their folder now, by name.
            folder: What the folder is called.
        """
        for name in sorted(self.files.keys() | there.keys()):
            before, now = self.files.get(name), there.get(name)
            if before is None or now is None or before.sha256 != now.sha256:
                was = "not there" if before is None else str(before)
                yield Difference(f"{folder}: {name}", was, "missing" if now is None else str(now))


def _files(content: Mapping[str, Any]) -> dict[str, FileContent]:
    return {name: FileContent(**values) for name, values in content.items()}
