"""A run on the first rows of a dataset of the hub ends as one on files with these rows."""

import shutil

import datasets
import torch
from safetensors.torch import load_file

FILES = ("train.jsonl", "validation.jsonl", "test.jsonl")
FIRST = 32


def test_student_is_the_same_bit_for_bit(settings, invoke, world, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache-of-hub")
    datasets.disable_progress_bars()
    whole, some = tmp_path / "whole", tmp_path / "some"
    for folder in (whole, some):
        folder.mkdir()
    for name in FILES:
        shutil.copy(world / name, whole)
        rows = (world / name).read_text().splitlines(keepends=True)
        assert len(rows) > FIRST
        (some / name).write_text("".join(rows[:FIRST]))

    def student(name, rows, train, validation, test):
        given = {
            world / "train.jsonl": train,
            f"task.validation={world / 'validation.jsonl'}": f"task.validation={validation}",
            f"task.test={world / 'test.jsonl'}": f"task.test={test}",
        }
        own = [given.get(argument, argument) for argument in settings]
        done = invoke("run", *own, "--set", f"task.name={rows}", "--output", tmp_path / name)
        assert done.code == 0, done.err
        return load_file(tmp_path / name / "student" / "model.safetensors")

    of_files = student("of-files", "files", *(some / name for name in FILES))
    of_hub = student("of-hub", "hub", f"{whole}[:{FIRST}]", "validation", "test")
    assert all(torch.equal(of_hub[key], value) for key, value in of_files.items())
