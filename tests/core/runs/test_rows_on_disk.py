"""A run whose rows and tokens are on the disk ends as one whose rows are in memory."""

import torch
from safetensors.torch import load_file

from gkd_core.data import spooled_table, stored_rows, stored_tokens


def test_student_is_the_same_bit_for_bit_from_memory_and_both_starts_from_disk(
    settings, invoke, tmp_path, monkeypatch
):
    def student(name):
        done = invoke("run", *settings, "--output", tmp_path / name)
        assert done.code == 0, done.err
        return load_file(tmp_path / name / "student" / "model.safetensors")

    in_memory = student("memory")
    monkeypatch.setattr(stored_rows, "LARGE", 0)
    monkeypatch.setattr(stored_tokens, "MANY", 1)
    monkeypatch.setattr(spooled_table, "IN_MEMORY", 7)
    for name in ("first", "second"):
        on_disk = student(name)
        assert all(torch.equal(on_disk[key], value) for key, value in in_memory.items())
    entries = {path.name.partition("-")[0] for path in (tmp_path / "cache" / "rows").iterdir()}
    assert "tokens" in entries
