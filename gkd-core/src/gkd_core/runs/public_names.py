"""What models and files are called where the folders of this machine are not to be told."""

from __future__ import annotations

import re
from pathlib import Path

from gkd_core.evaluation.predictions import STUDENT
from gkd_core.named_path import named_path
from gkd_core.runs.directory import is_run

QUOTED = re.compile(r"""(["'])((?:~?/|[A-Za-z]:[/\\]+)[^"'\n]*[^"'\n/\\])\1""")
"""An absolute path, or one in a home directory, between quotes; it may have spaces."""

PART = r"/[^\s\"'<>,;/:][^\s\"'<>,;/]*"
BARE = re.compile(rf"(?<![\w.:/<~-])(?:~\w*(?:{PART})+|(?:{PART}){{2,}})/?")
"""Such a path in running text."""


def public_name(path: str | Path) -> str:
    """Return the last part of a path; for the student of a run, with the name of the run.

    All students of runs have the same last part.

    Args:
        path: A file or directory.
    """
    place = named_path(path).absolute()
    if place.name == STUDENT and is_run(place.parent):
        return f"{place.parent.name}/{STUDENT}"
    return _last(str(path))


def without_folders(text: str) -> str:
    """Return a text in which the paths of this machine are reduced to their `public_name`.

    What people send on, such as a report, tells neither user names nor where their files are.
    Relative paths, hub ids and addresses of servers stay.

    Args:
        text: Anything that may have absolute paths, or paths in a home directory, in it.
    """
    quoted = QUOTED.sub(lambda found: found[1] + public_name(found[2]) + found[1], text)
    return BARE.sub(lambda found: public_name(found[0]), quoted)


def _last(path: str) -> str:
    return path.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
