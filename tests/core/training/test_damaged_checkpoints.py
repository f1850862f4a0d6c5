"""Of checkpoints, the newest that is whole is used, whatever has happened to the others."""

import os

import pytest
import torch

from gkd_core.training.checkpoint import WRITTEN, checkpoint_files, find_checkpoint, save_tensors
from gkd_core.training.manifest import MANIFEST, Manifest

FILES = (*WRITTEN, "random-1.safetensors", "best.safetensors", MANIFEST)


def missing(path, before):
    path.unlink()


def empty(path, before):
    path.write_bytes(b"")


def cut(path, before):
    os.truncate(path, path.stat().st_size // 2)


def one_bit(path, before):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zeros(path, before):
    path.write_bytes(bytes(path.stat().st_size))


def of_the_one_before(path, before):
    path.write_bytes(before.read_bytes())


def a_folder(path, before):
    path.unlink()
    path.mkdir()


def a_dangling_link(path, before):
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES = (missing, empty, cut, one_bit, zeros, of_the_one_before, a_folder, a_dangling_link)


def _write(checkpoint, step):
    checkpoint.mkdir(parents=True)
    for name in FILES:
        if name.endswith(".safetensors"):
            save_tensors({"one": torch.full([8], step)}, checkpoint / name)
    (checkpoint / "progress.json").write_text(f'{{"step": {step}, "version": "0.2.0"}}')
    Manifest(files=checkpoint_files(checkpoint)).save(checkpoint / MANIFEST)


@pytest.fixture
def stage(tmp_path):
    """The directory of a stage with the checkpoints of steps 2, 4 and 6."""
    for step in (2, 4, 6):
        _write(tmp_path / "checkpoints" / f"step-{step:08d}", step)
    return tmp_path


def _used(stage):
    found = find_checkpoint(stage)
    return found.path.name, {path.name: wrong for path, wrong in found.damaged.items()}


def test_the_newest_is_used(stage):
    assert _used(stage) == ("step-00000006", {})


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_the_one_before_a_damaged_one_is_used(stage, name, damage):
    newest, before = (stage / "checkpoints" / f"step-0000000{step}" for step in (6, 4))
    damage(newest / name, before / name)
    used, damaged = _used(stage)
    assert used == "step-00000004"
    assert damaged.keys() == {"step-00000006"}
    is_other_manifest = (name, damage) == (MANIFEST, of_the_one_before)  # no other file is its own
    assert (name in damaged["step-00000006"]) is not is_other_manifest


def test_several_damaged_ones_are_skipped(stage):
    for step in (4, 6):
        (stage / f"checkpoints/step-0000000{step}/student.safetensors").write_bytes(b"cut")
    used, damaged = _used(stage)
    assert used == "step-00000002"
    assert sorted(damaged) == ["step-00000004", "step-00000006"]


def test_where_none_is_whole_the_newest_is_left_to_be_refused(stage):
    for step in (2, 4, 6):
        (stage / f"checkpoints/step-0000000{step}/student.safetensors").write_bytes(b"cut")
    assert _used(stage) == ("step-00000006", {})


def test_what_is_no_checkpoint_is_ignored(stage):
    folder = stage / "checkpoints"
    (folder / "step-00000008").write_text("a file")
    for name in ("step-00000008.tmp", "step-00000010.damaged", "step-00000abc", ".snapshot"):
        (folder / name).mkdir()
    (folder / "step-00000006" / ".nfs0001").write_text("")
    os.mkfifo(folder / "step-00000006" / "pipe.json")
    assert _used(stage) == ("step-00000006", {})
