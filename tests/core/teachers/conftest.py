"""Caches of answers, and the loss that a student has with the teacher or without it."""

from __future__ import annotations

import pytest
import torch

from gkd_core.contract.step import Step
from gkd_core.data.loader import iterate
from gkd_core.runs import answer_division
from gkd_core.runs.answer_cache import BegunCache, write_cache
from gkd_core.runs.answer_storage import Storage
from gkd_core.teachers.teacher import SourcedTeacher
from gkd_core.training.assembly import build_stage
from gkd_core.training.step import train_step


@pytest.fixture
def few(monkeypatch):
    """Make shards and batches so small that there are several."""
    monkeypatch.setattr(answer_division, "ROWS", 16)
    monkeypatch.setattr(answer_division, "BATCHES", 2)


@pytest.fixture
def write(prepare_run, tmp_path, few):
    """Write a cache: `write("fp32", *settings, teacher=NAME)` -> folder, manifest.

    Keywords: `folder` (its name, by default that of the data type), `say` (told of its size), and
    what `Storage` takes.
    """

    def _write(dtype, *settings, teacher, folder=None, say=print, **storage):
        run = prepare_run(*settings, teachers=(teacher,))
        place, stored = tmp_path / (folder or dtype), Storage(dtype, **storage)
        begun = BegunCache.begin(run.last, place, stored, torch.device("cpu"), say)
        write_cache(run.last, run.registry, begun, lambda text: None)
        return place, begun.finish()

    return _write


@pytest.fixture
def first_loss(prepare_run, tmp_path):
    """Return the loss of the first step of a run: `first_loss(*settings, teacher=NAME)`."""

    def _loss(*settings, teacher="lm-decoder"):
        run = prepare_run(*settings, teachers=(teacher,))
        stage = build_stage(run.last, run.registry, tmp_path / "stage", None)
        is_sourced = run.last.teachers[0].source is not None
        assert isinstance(stage.teachers[0], SourcedTeacher) == is_sourced
        _, batches = next(iterate(stage.train, stage.collator, stage.sampler, 0, 1))
        return train_step(stage, batches, Step(0, 1, 0, stage.name, torch.Generator())).read()

    return _loss
