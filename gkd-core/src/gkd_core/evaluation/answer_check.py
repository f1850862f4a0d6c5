"""`AnswerCheck`: whether a written answer is right, by a function or a regular expression."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import math
import re
from collections.abc import Callable
from numbers import Real
from typing import TypeAlias

from gkd_core.errors import ConfigError, PluginError
from gkd_core.timed_pattern import TimedPattern

AnswerCheck: TypeAlias = Callable[[str, str, str | None], float]
"""Returns from 0 (wrong) to 1 (right) for a prompt, the answer to it, and the target if known."""

FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""A function in a module; everything else is a regular expression."""

ARGUMENTS = ("prompt", "answer", "target")

SETTING = "task.check"


def answer_check(text: str) -> AnswerCheck:
    """Return the check that `task.check` names.

    Args:
        text: `package.module:function` of an installed package, or a regular expression that an
            answer must have somewhere.

    Raises:
        ConfigError: There is no such function, it does not take the arguments, or the text is no
            regular expression.
    """
    return _by_function(text) if FUNCTION.fullmatch(text) else _by_pattern(text)


def _by_pattern(text: str) -> AnswerCheck:
    try:
        pattern = TimedPattern(text, SETTING)
    except ConfigError as error:
        raise ConfigError(
            f"{SETTING} = {text!r} is neither a function (package.module:function) nor a regular "
            f"expression: {error.__cause__}"
        ) from error

    def check(prompt: str, answer: str, target: str | None) -> float:
        return float(pattern.is_in(answer))

    return check


def _by_function(text: str) -> AnswerCheck:
    module, _, name = text.partition(":")
    # What comes with Python, or lies in the working directory, is none of an installed package: a
    # run file from elsewhere must not reach it.
    if module.partition(".")[0] not in importlib.metadata.packages_distributions():
        raise ConfigError(
            f"{SETTING} = {text!r}: no installed package has the module {module!r}. Install the "
            "package that has the function, or give a regular expression"
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{SETTING} = {text!r} cannot be imported: {error}") from error
    if not _takes_arguments(function):
        raise ConfigError(
            f"{SETTING} = {text!r} is not a function of {', '.join(ARGUMENTS)}; these are passed "
            "by name, and it returns True, False, or a number from 0 to 1"
        )

    def check(prompt: str, answer: str, target: str | None) -> float:
        found = function(prompt=prompt, answer=answer, target=target)
        if not isinstance(found, Real) or not 0 <= float(found) <= 1 or math.isnan(float(found)):
            raise PluginError(f"{SETTING} = {text!r} returned {found!r}, not a number from 0 to 1")
        return float(found)

    return check


def _takes_arguments(function: object) -> bool:
    if not inspect.isfunction(function):
        return False
    return tuple(inspect.signature(function).parameters) == ARGUMENTS
