"""Checks of the values that methods return: a value of the wrong type is rejected on entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gkd_core.errors import PluginError
from gkd_core.plugins.registry import registry

Types = type | tuple[type, ...]


def one_of(owner: object, member: str, answer: Any, types: Types, wanted: str) -> Any:
    """Return an answer of one of some types.

    Args:
        owner: Who was asked, such as a method.
        member: What of it was called, such as `fingerprint`.
        answer: What it returned.
        types: The types that it may have.
        wanted: What it should be, for the message.

    Raises:
        PluginError: It has another type.
    """
    if not isinstance(answer, types):
        raise refused(owner, member, f"returned {_shown(answer)}", wanted)
    return answer


def list_of(owner: object, member: str, answer: Any, types: Types, wanted: str) -> list[Any]:
    """Return an answer that is an iterable as a list; arguments and errors as for `one_of`.

    A string is none: it would be taken for its letters.
    """
    if isinstance(answer, (str, bytes)) or not isinstance(answer, Iterable):
        raise refused(owner, member, f"returned {_shown(answer)}", wanted)
    found = list(answer)
    for one in found:
        if not isinstance(one, types):
            raise refused(owner, member, f"returned {_shown(one)} among others", wanted)
    return found


def mapping_of(
    owner: object, member: str, answer: Any, types: Types, wanted: str
) -> Mapping[Any, Any]:
    """Return an answer that is a mapping with such values; arguments and errors as for `one_of`."""
    if not isinstance(answer, Mapping):
        raise refused(owner, member, f"returned {_shown(answer)}", wanted)
    for name, one in answer.items():
        if not isinstance(one, types):
            raise refused(owner, member, f"returned {_shown(one)} as {name!r}", wanted)
    return answer


def refused(owner: object, member: str, did: str, wanted: str) -> PluginError:
    """Return the error for a wrong answer, with the plugin that gave it.

    Args:
        owner: Who was asked.
        member: What of it was called.
        did: What it did.
        wanted: What to return instead.
    """
    plugin = registry().plugin_of(owner)
    of = "" if plugin is None else f" of plugin {plugin}"
    place = f"{type(owner).__module__}.{type(owner).__qualname__}.{member}"
    return PluginError(f"{place}{of} {did}; return {wanted}")


def _shown(answer: Any) -> str:
    """Return an answer in a few words: a short value as it is, the type of others."""
    if answer is None or isinstance(answer, (bool, int, float, str)):
        return repr(answer) if len(repr(answer)) <= 60 else f"a {type(answer).__name__}"
    return f"a {type(answer).__name__}"
