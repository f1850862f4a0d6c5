"""Isolation: changes that a plugin makes to the process while it is imported are undone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _State:
    """Something that a plugin must leave as it is.

    Attributes:
        name: What it is, for the message.
        read: Returns it.
        restore: Sets it.
    """

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object]


@contextmanager
def isolated(say: Callable[[str], None]) -> Iterator[None]:
    """Run code of a plugin that may print, but leaves what all of gkd depends on unchanged.

    What it prints goes to stderr, so that the output of a command is the command's alone.

    Args:
        say: Called with the name of each thing that was changed and is set back.
    """
    with stdout_as_stderr(), redirect_stderr(sys.stderr), set_back(say, _ALL):
        yield


@contextmanager
def set_back(say: Callable[[str], None], states: Sequence[_State] | None = None) -> Iterator[None]:
    """Run code of a plugin, and set back afterwards what it has changed of the process.

    Args:
        say: Called with the name of each thing that is set back.
        states: What is set back. Default: all but the handlers of signals, which a plugin may need.
    """
    before = [(state, state.read()) for state in (_STATES if states is None else states)]
    try:
        yield
    finally:
        for state, value in before:
            if state.read() != value:
                state.restore(value)
                say(state.name)


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    """Send what is printed to stderr, also what other processes and libraries in C print."""
    with suppress(AttributeError, OSError, ValueError):  # there may be no stdout
        sys.stdout.flush()
    with redirect_stdout(sys.stderr), _descriptor_as_stderr():
        yield


@contextmanager
def _descriptor_as_stderr() -> Iterator[None]:
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    try:
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _directory() -> str | None:
    with suppress(OSError):  # it was deleted
        return os.getcwd()
    return None


def _enter(directory: str | None) -> None:
    if directory is not None:
        os.chdir(directory)


def _errors() -> Sequence[Any]:
    """Return the filters that turn warnings into errors, which end what others do."""
    return [one for one in warnings.filters if one[0] == "error"]


def _keep_errors(kept: Sequence[Any]) -> None:
    filters: list[Any] = list(warnings.filters)
    filters = [one for one in filters if one[0] != "error" or one in kept]
    warnings.filters[:] = filters  # type: ignore[index]


def _handlers() -> Any:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def _handle(handlers: Sequence[Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)


def _numbers() -> tuple[str, bool]:
    """Return the default data type of torch, and whether it computes gradients."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "is_grad_enabled"):
        return "float32", True  # what torch starts with
    return str(torch.get_default_dtype()).removeprefix("torch."), torch.is_grad_enabled()


def _set_numbers(numbers: tuple[str, bool]) -> None:
    torch = sys.modules["torch"]
    torch.set_default_dtype(getattr(torch, numbers[0]))
    torch.set_grad_enabled(numbers[1])


_STATES = (
    _State("the working directory", _directory, _enter),
    _State("how warnings are treated", _errors, _keep_errors),
    _State("the data type or the gradients of torch", _numbers, _set_numbers),
)
_ALL = (*_STATES, _State("how signals are handled", _handlers, _handle))
