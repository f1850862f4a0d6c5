"""`gkd clean`: remove what the cache holds, or what killed commands have left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gkd_core.cli.errors import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gkd_core.data.cache_limit import CacheItem
    from gkd_core.runs.leftovers import Leftover

DAY = 24 * 60 * 60


@click.command()
@click.argument("room", nargs=-1, metavar="[PART]...")
@click.option(
    "--leftovers",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Instead, clean up what killed commands have left in this folder, such as runs.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(room: tuple[str, ...], leftovers: Path | None, yes: bool) -> None:
    """Remove the contents of the cache, or parts of them.

    PART is a part of the cache, such as teachers or answers. The command first shows what it will
    remove, and how large that is. It keeps whatever a live run uses, and never touches runs,
    students and data. A run that needs something that was removed creates it again.

    With --leftovers, it restores runs and exports that were being replaced when a command was
    killed, and removes whatever is unfinished or has been replaced.
    """
    if leftovers is None:
        _clean_cache(room, yes)
    elif room:
        raise click.UsageError("--leftovers takes a folder of runs, not parts of the cache")
    else:
        _clear_up(leftovers, yes)


def _clear_up(folder: Path, yes: bool) -> None:
    """Remove or put back what killed commands have left."""
    from gkd_core.analysis.sizes import readable
    from gkd_core.runs.leftovers import clear, find_leftovers

    found = find_leftovers(folder)
    if not found:
        click.echo(f"Killed commands have left nothing in {folder}")
        return
    for leftover in found:
        click.echo(f"  {printable(_line(leftover))}")
    unneeded = [leftover for leftover in found if leftover.place is None]
    doing = [f"remove {len(unneeded)} ({readable(_size(unneeded))})"] if unneeded else []
    if len(unneeded) < len(found):
        doing.append(f"put back {len(found) - len(unneeded)}")
    if not yes and not _is_confirmed(f"{' and '.join(doing).capitalize()}?"):
        click.echo("Nothing was changed")
        return
    clear(found)
    click.echo(f"Done: {' and '.join(doing)}")


def _line(leftover: Leftover) -> str:
    from gkd_core.analysis.sizes import readable

    return f"{leftover.path}  {readable(leftover.size)}  {leftover.what}"


def _clean_cache(room: tuple[str, ...], yes: bool) -> None:
    """Remove the contents of the cache, except what live runs use."""
    from rich.console import Console

    from gkd_core.analysis.sizes import readable
    from gkd_core.data.cache import cache_dir
    from gkd_core.data.cache_limit import cache_items, in_use, remove_unused
    from gkd_core.errors import ConfigError

    if cache_dir().is_file():
        raise ConfigError(f"GKD_CACHE = '{cache_dir()}' is a file; name a folder")
    _refuse_unknown(room)
    used = in_use()
    items = [item for item in cache_items() if not room or item.room in room]
    if not items:
        click.echo(f"There is nothing to remove in {cache_dir()}")
        return
    Console(highlight=False).print(_room_table(items))
    free = [item for item in items if item.path not in used]
    if len(free) < len(items):
        kept = readable(_size(items) - _size(free))
        click.echo(f"{kept} of it is kept, because live runs use it")
    if not free:
        return
    if not yes and not _is_confirmed(f"Remove {readable(_size(free))} from {cache_dir()}?"):
        click.echo("Nothing was removed")
        return
    removed = remove_unused(free)
    click.echo(f"Removed {readable(_size(removed))} from {cache_dir()}")


def _size(items: Iterable[CacheItem | Leftover]) -> int:
    return sum(item.size for item in items)


def _is_confirmed(question: str) -> bool:
    """Ask a question.

    Raises:
        UsageError: There is nobody to answer.
    """
    try:
        return click.confirm(question)
    except click.Abort as stopped:
        if sys.stdin.isatty():
            raise  # by Ctrl-C
        click.echo()  # ends the line of the question
        message = "there was no answer, so nothing was removed; add --yes"
        raise click.UsageError(message) from stopped


def _room_table(items: Sequence[CacheItem]) -> RenderableType:
    """Return a table of what the rooms of the cache hold."""
    from rich.table import Table

    from gkd_core.analysis.sizes import readable

    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    for room in dict.fromkeys(item.room for item in items):
        here = [item for item in items if item.room == room]
        days = (time.time() - max(item.used for item in here)) / DAY
        noun = "entry" if len(here) == 1 else "entries"
        table.add_row(f"  {room}", f"{len(here):,} {noun}", readable(_size(here)), _last_used(days))
    return table


def _last_used(days: float) -> str:
    if days < 1:
        return "last used today"
    return f"last used {days:.0f} {'day' if round(days) == 1 else 'days'} ago"


def _refuse_unknown(rooms: Sequence[str]) -> None:
    """Reject a name that is no room of the cache.

    Raises:
        ConfigError: It is none.
    """
    from typing import get_args

    from gkd_core.data.cache import Room
    from gkd_core.errors import ConfigError, suggest

    known = get_args(Room)
    for name in rooms:
        if name not in known:
            raise ConfigError(
                f"the cache has no part {name!r}; it has {', '.join(known)}.{suggest(name, known)}"
            )
