"""Checks of the functions of a plugin: each is a hook, and is called as it is written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from gkd_core import hookspecs
from gkd_core.errors import PluginError, suggest

VERSION = "GKD_API_VERSION"
"""The attribute in which a plugin module names its version of the contract."""

PREFIX = f"{hookspecs.PROJECT}_"
MARK = f"{hookspecs.PROJECT}_impl"
"""Attribute with which `hookimpl` marks a function."""

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith(PREFIX))


def check_hooks(module: object) -> None:
    """Reject a plugin that gkd would not call, or not as the plugin expects.

    Args:
        module: The plugin.

    Raises:
        PluginError: It is for another contract, has no hook, or a function of it would never be
            called, or not with what it takes.
    """
    _check_contract(module)
    if isinstance(module, type):
        raise PluginError(f"its entry point is the class {module.__qualname__}; name the module")
    implemented = list(_implemented(module))
    if not implemented:
        raise PluginError("it implements no hook; mark its functions with `@hookimpl`")
    for hook, function in implemented:
        _check_kind(hook, function)
        _check_arguments(hook, function)


def _check_contract(module: object) -> None:
    wanted = getattr(module, VERSION, hookspecs.API_VERSION)
    if wanted != hookspecs.API_VERSION:
        raise PluginError(
            f"it is written for version {wanted} of gkd's plugin contract ({VERSION}), and this "
            f"gkd has version {hookspecs.API_VERSION}. Install a version of the plugin for it"
        )


def _implemented(module: object) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield each hook that a plugin implements, and the function; refuse what only looks so."""
    for name in dir(module):
        value = getattr(module, name)
        mark = getattr(value, MARK, None)
        if not isinstance(mark, dict):
            _refuse_unmarked(name, value)
            continue
        hook = mark.get("specname") or name
        if hook in HOOKS:
            if not inspect.isroutine(value):
                raise PluginError(f"`{name}` is not a function, so gkd does not call it: {value}")
            yield hook, value
        elif not mark.get("optionalhook"):
            raise PluginError(f"it implements the unknown hook '{hook}'.{_meant(hook)}")


def _refuse_unmarked(name: str, value: object) -> None:
    """Reject a function with the name of a hook, or with the prefix that hooks have."""
    known = name in HOOKS or name in hookspecs.RENAMED
    if known or (name.startswith(PREFIX) and inspect.isroutine(value)):
        advice = "mark it" if known else "rename it, or if it is to be a hook, mark it"
        raise PluginError(
            f"`{name}` has the name of a hook, but gkd does not call it: {advice} with `@hookimpl`"
        )


def _meant(hook: str) -> str:
    renamed = hookspecs.RENAMED.get(hook)
    if renamed is not None:
        return f" It is called '{renamed}' since version 0.2 of gkd."
    return suggest(hook, HOOKS)


def _check_kind(hook: str, function: Callable[..., Any]) -> None:
    """Reject a function whose body does not run when it is called."""
    mark, returns = getattr(function, MARK), _returns(hook)
    wraps = bool(mark.get("wrapper") or mark.get("hookwrapper"))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(f"`{hook}` is async, and gkd does not wait for it; write a plain `def`")
    if wraps and (returns or not inspect.isgeneratorfunction(function)):
        raise PluginError(f"`{hook}` cannot be a wrapper; write a plain `@hookimpl`")
    if inspect.isgeneratorfunction(function) and not (wraps or returns):
        raise PluginError(f"`{hook}` has a `yield`, so its body is never run; remove it")


def _returns(hook: str) -> bool:
    return bool(getattr(hookspecs, hook).__annotations__["return"] != "None")


def _check_arguments(hook: str, function: Callable[..., Any]) -> None:
    """Reject arguments that a hook does not have, or that would not be passed."""
    known = inspect.signature(getattr(hookspecs, hook)).parameters
    has = f"it has {', '.join(known)}" if known else "it has none"
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in known:
            meant = suggest(name, known)
            raise PluginError(f"`{hook}` takes `{parameter}`, but {has}.{meant}".rstrip("."))
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise PluginError(f"`{hook}` takes `{parameter}` in a way that gkd does not support")
        if parameter.default is not parameter.empty:
            raise PluginError(
                f"`{hook}` has a default for `{name}`, so gkd does not pass it; remove it"
            )
