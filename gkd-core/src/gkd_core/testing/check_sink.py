"""`check_sink`: checks of the properties that every sink must have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch

from gkd_core.config.schema import RunConfig
from gkd_core.contract.run_info import RunInfo
from gkd_core.contract.sink import Sink
from gkd_core.contract.step import Step
from gkd_core.runs.outline import RunOutline

STEPS = 4
SETTINGS: Mapping[str, Any] = {
    "method": "2*pkd+soft",
    "student.init": [1, 3],
    "task.train": "rows with spaces.jsonl",
    "training.lr": 5e-5,
    "output.tensorboard": True,
}
AWKWARD = {"loss/2*pkd": float("nan"), "train/gradient_norm": float("inf"), "loss/total": -1e30}
"""Numbers that a run may have, and that not every format can hold."""


def check_sink(sink: type[Sink], options: Mapping[str, Any] | None = None) -> None:
    """Check a sink with the calls of a run that is interrupted, resumed, and fails later.

    It takes all of it: stages of any names, numbers that are not finite, texts of several lines,
    files, and a run without any stage. It changes nothing that it is given, and draws nothing from
    the generators of training.

    Args:
        sink: The class.
        options: Options that differ from their defaults.

    Raises:
        AssertionError: A property does not hold; the message says which.
    """
    with TemporaryDirectory() as folder:
        directory = Path(folder) / "pkd+soft-1"
        directory.mkdir()

        def make() -> Sink:
            return sink(sink.Config(**(options or {})))

        _live(make(), directory, done=0, error=KeyboardInterrupt())
        _live(make(), directory, done=2, error=None)
        _live(make(), directory, done=STEPS, error=OSError("no space left on device"))
        only_begun = make()
        _tell(only_begun, "start", _run(directory), SETTINGS)
        _tell(only_begun, "finish", None)


def _live(sink: Sink, directory: Path, done: int, error: BaseException | None) -> None:
    """Make the calls of a run whose first stage is resumed after some steps."""
    _tell(sink, "check")
    _tell(sink, "start", _run(directory), SETTINGS)
    for stage, begun in (("first", done), ("second_stage-2", 0)):
        _tell(sink, "say", f"stage {stage}:\n  [1/2] takes 100 % of «everything»")
        _tell(sink, "start_stage", stage, STEPS, begun)
        for index in range(begun, STEPS):
            step = Step(index, STEPS, 0, stage, torch.Generator())
            _tell(sink, "log", step, AWKWARD if index % 2 else {"loss/total": 0.5})
            _tell(sink, "log", step, {"validation/accuracy": 0.5, "validation/loss": 1.0})
        _tell(sink, "end_stage")
    _tell(sink, "summarize", {"test/accuracy/student, 2*pkd+soft": 0.5})
    report = directory / "report.html"
    report.write_text("<!doctype html>")
    _tell(sink, "add_file", report)
    _tell(sink, "finish", error)


def _run(directory: Path) -> RunInfo:
    return RunInfo(
        directory=directory,
        config=RunConfig(),
        methods="2*pkd+soft",
        outline=RunOutline(()),
        results=MappingProxyType({}),
        say=lambda text: None,
    )


def _tell(sink: Sink, event: str, *given: Any) -> None:
    """Call a method of a sink."""
    call: Callable[..., object] = getattr(sink, event)
    values = [value for value in given if isinstance(value, dict)]
    before = copy.deepcopy(values)
    with _unchanged_draws(f"{sink.name}.{event}"):
        try:
            call(*given)
        except Exception as error:
            raise AssertionError(
                f"{sink.name}.{event} raised {type(error).__name__}: {error}"
            ) from error
    assert str(values) == str(before), f"{sink.name}.{event} changes what it is given"


@contextmanager
def _unchanged_draws(event: str) -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    assert torch.equal(state, torch.get_rng_state()), (
        f"{event} draws from PyTorch's generator, which changes what is trained; use one of its own"
    )
