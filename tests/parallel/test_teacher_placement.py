"""Teachers whose weights wait elsewhere until they are used."""

from __future__ import annotations

import pytest
import torch

from gkd_core.errors import ConfigError
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import Capture
from gkd_core.models.load import load_teacher
from gkd_core.models.sites import find_sites
from gkd_core.parallel.placement import place_teacher
from gkd_core.plugins import registry

KINDS = registry().kinds

CPU = torch.device("cpu")
CASES = [
    ("blocks", "teacher", ["method=pkd+minilmv2"]),
    ("causal-lm", "lm-decoder", ["method=kd", "task.kind=causal-lm"]),
    ("masked-lm", "lm-teacher", ["method=soft", "task.kind=masked-lm"]),
]


@pytest.fixture(scope="module")
def replicated(still, runs, tmp_path_factory):
    """The runs with teachers that are just there."""
    folder = tmp_path_factory.mktemp("replicated")
    runs.train_all(still, folder, CASES)
    return folder


def _placed(placement, *settings):
    extra = [f"teacher.placement={placement}", *settings]
    return [(name, teacher, [*own, *extra]) for name, teacher, own in CASES]


@pytest.mark.exhaustive
def test_offloaded_teacher_teaches_the_same(still, runs, replicated, tmp_path):
    runs.train_all(still, tmp_path, _placed("offload"))
    for name, *_ in CASES:
        runs.assert_same(tmp_path / name, replicated / name)


@pytest.mark.parametrize("zero", [0, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_divided_teacher_teaches_the_same(still, on_ranks, runs, replicated, tmp_path, zero):
    cases = _placed("zero3", f"parallel.zero={zero}")
    on_ranks(2, runs.train_all, still, tmp_path, cases)
    # ZeRO lets weights decay that no loss reaches, such as the head of the first case.
    for name, *_ in CASES[1 if zero else 0 :]:
        runs.assert_equal(tmp_path / name, replicated / name)


def _capture(model, placement, captures, inputs):
    """Return what a placed teacher computes, and the elements of its weights before and after."""
    teacher = load_teacher(str(model), KINDS["causal-lm"], (), False, "teacher.model")
    extractor = Extractor(teacher, find_sites(teacher))
    place_teacher(teacher, extractor.sites.blocks, placement, CPU)
    sizes = [sum(p.numel() for p in teacher.parameters())]
    with torch.no_grad():
        features = extractor.run(captures, {n: torch.tensor(v) for n, v in inputs.items()})
    sizes.append(sum(p.numel() for p in teacher.parameters()))
    return {str(c): features[c].numpy() for c in sorted(captures)}, sizes


@pytest.mark.parametrize("placement", ["offload", "zero3"])
@pytest.mark.parametrize(
    "captures",
    [
        frozenset({Capture("hidden", 2)}),  # stops between blocks
        frozenset({Capture("query", 3)}),  # stops in the midst of one
        frozenset({Capture("hidden", 4), Capture("logits")}),
    ],
)
def test_weights_are_there_only_while_they_are_used(still, on_ranks, placement, captures):
    inputs = {"input_ids": [[5, 6, 7, 8]] * 2, "attention_mask": [[1, 1, 1, 1]] * 2}
    arguments = (captures, inputs)
    expected, (whole, _) = _capture(still / "lm-decoder", "replicated", *arguments)
    for found, (before, after) in on_ranks(
        2, _capture, still / "lm-decoder", placement, *arguments
    ):
        assert before == after < whole / 20
        for name, value in expected.items():
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(value))


def _own_elements(model):
    """Return how many elements of a divided teacher this rank keeps, and how many there are."""
    import gc

    from gkd_core.parallel.placement import Shards

    teacher = load_teacher(str(model), KINDS["causal-lm"], (), False, "teacher.model")
    whole = sum(p.numel() for p in teacher.parameters())
    place_teacher(teacher, find_sites(teacher).blocks, "zero3", CPU)
    shards = [item for item in gc.get_objects() if isinstance(item, Shards)]
    kept = sum(shard._own.numel() for shard in shards) + sum(
        p.numel() for p in teacher.parameters()
    )
    return kept, whole


def test_each_rank_keeps_its_part_of_a_divided_teacher(still, on_ranks):
    for kept, whole in on_ranks(2, _own_elements, still / "lm-decoder"):
        assert whole / 2 <= kept < 0.52 * whole


def test_teacher_whose_blocks_run_in_the_student_must_be_there(still, runs, tmp_path):
    settings = ["method=borrows", "teacher.placement=offload"]
    with pytest.raises(ConfigError, match=r"borrows runs blocks of the teacher 'teacher' in the"):
        runs.train(still, tmp_path / "run", "teacher", settings)
