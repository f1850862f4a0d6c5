"""What a cell prints, in a file: `python -m gkd_core.launchers.logged FILE COMMAND...`.

The command takes the place of this process, so that it gets the signals of its launcher.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

TAIL = 2000
"""Characters of what a cell has printed that are looked at if it failed."""

UNTIL_ERROR = "Error: "


def logged(path: Path, command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command that writes to a file what another one prints."""
    return (sys.executable, "-m", "gkd_core.launchers.logged", str(path), *command)


def tail(path: Path) -> str:
    """Return the end of what a cell has printed."""
    if not path.exists():
        return ""
    text = path.read_bytes().decode(errors="replace").strip()
    return text if len(text) <= TAIL else f"...{text[-TAIL:]}"


def reason(error: str) -> str:
    """Return the line of a cell's output that says why it failed."""
    lines = error.splitlines() or [""]
    said = next((line for line in lines if line.startswith(UNTIL_ERROR)), lines[-1])
    return said.removeprefix(UNTIL_ERROR)


def main() -> NoReturn:
    """Become the command, with its output in the file."""
    path, *command = sys.argv[1:]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
