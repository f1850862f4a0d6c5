"""Paths as users write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

QUOTED = re.compile(r"""(["'])((?:~?/|[A-Za-z]:[/\\]+)[^"'\n]*[^"'\n/\\])\1""")
"""An absolute path, or one in a home directory, between quotes; it may have spaces."""

PART = r"/[^\s\"'<>,;/:][^\s\"'<>,;/]*"
BARE = re.compile(rf"(?<![\w.:/<~-])(?:~\w*(?:{PART})+|(?:{PART}){{2,}})/?")
"""Such a path in running text."""


def named_path(text: str | Path) -> Path:
    """Return a path in which `~` is a home directory; that of an unknown user stays as it is.

    `Path.expanduser` ends with an error of Python there, which names neither path nor setting.
    """
    return Path(os.path.expanduser(text))


def without_folders(text: str) -> str:
    """Return a text in which the paths of this machine are reduced to their last part.

    What people send on, such as a report, tells neither user names nor where their files are.
    Relative paths, hub ids and addresses of servers stay.

    Args:
        text: Anything that may have absolute paths, or paths in a home directory, in it.
    """
    quoted = QUOTED.sub(lambda found: found[1] + _last(found[2]) + found[1], text)
    return BARE.sub(lambda found: _last(found[0]), quoted)


def _last(path: str) -> str:
    return path.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
