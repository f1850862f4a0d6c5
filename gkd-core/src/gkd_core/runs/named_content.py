"""The content of what options name: it may change while the options stay the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_core import digest
from gkd_core.named_path import named_path
from gkd_core.plugins.answers import one_of

if TYPE_CHECKING:
    from pydantic import BaseModel

    from gkd_core.contract.method_base import MethodBase
    from gkd_core.contract.rollout import RolloutEngine
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec


def named_content(spec: StageSpec, registry: Registry) -> dict[str, str]:
    """Return what the options of a stage name: hashes of files, and what methods say themselves.

    An option names a file if its value, or one inside of it, is the path of a file that exists; a
    directory, if it is also of type `Path`.

    Args:
        spec: The stage.
        registry: The plugins.

    Returns:
        The content by a name for people.
    """
    config = spec.config
    chosen: dict[str, MethodBase | RolloutEngine] = {o.name: o.methods[0] for o in spec.owners}
    if config.rollout is not None:
        chosen["rollout"] = registry.rollout_engine(config.rollout)
    tables: dict[str, BaseModel] = {name: one.config for name, one in chosen.items()}
    tables["task"] = spec.task.options
    tables["optim"] = registry.make_optimizer(config).config
    found = {
        f"{name}: {file}": content
        for name, table in tables.items()
        for file, content in _contents(table).items()
    }
    told = {f"{name}: fingerprint": _told(one) for name, one in chosen.items()}
    return found | {name: text for name, text in told.items() if text}


def _told(method: MethodBase | RolloutEngine) -> str:
    """Return what a method says itself: the text of any other object may tell of its address."""
    told: str = one_of(method, "fingerprint", method.fingerprint(), str, "a string, such as a hash")
    return told


def _contents(options: BaseModel) -> Mapping[str, str]:
    """Return hashes of the files that options name, by their paths as written."""
    files = {name: file for path in _paths(options.model_dump()) for name, file in _files(path)}
    return digest.of_each_named(files)


def _paths(value: Any) -> Iterator[str | Path]:
    """Yield the values that name content, also inside of tables and lists."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _paths(part)
    elif isinstance(value, str | Path) and _exists(value):
        yield value


def _exists(named: str | Path) -> bool:
    try:
        path = named_path(named)
        return path.exists() if isinstance(named, Path) else path.is_file()
    except (OSError, ValueError, RuntimeError):  # longer than a path may be, a null byte, no home
        return False


def _files(named: str | Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the place of a file, or of every file in a directory."""
    path = named_path(named)
    if path.is_file():
        yield str(named), path
    else:
        for file in path.rglob("*"):
            if file.is_file():
                yield f"{named}/{file.relative_to(path).as_posix()}", file
