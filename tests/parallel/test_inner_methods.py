"""Methods that reach inside the model train on several ranks as in one process."""

from __future__ import annotations

import pytest

from gkd_core.errors import ConfigError

LAST = ["training.keep_best=false"]
COPIED = [*LAST, "student.init=first"]
# ZeRO lets weights decay that no loss reaches.
NO_DECAY = "training.weight_decay=0"
CASES = {
    "tinybert": ["method=tinybert", *LAST, NO_DECAY],
    "mobilebert": ["method=mobilebert", *COPIED],
    "theseus": ["method=theseus", "theseus.rate=0.5", *COPIED],
    # 0.345 in step 3, when each rank alone would unlock or not.
    "sid": ["method=sid", "sid.budget=1000", "sid.threshold=0.34", "training.lr=1e-2"],
    "alp-kd": ["method=alp-kd+hard"],
    "lrc-bert": ["method=lrc-bert", "training.batch_size=15"],
    "ckd": ["method=ckd", NO_DECAY],
    "universal-kd": ["method=universal-kd"],
    "diito": ["method=diito"],
    "rail-kd": ["method=rail-kd+hard", "rail-kd.draw_every=1"],
    "mgskd": ["method=mgskd+soft", "training.batch_size=15"],
    "match": ["method=match+hard", 'match.terms=[{knowledge="hidden-mse", layers="emd"}]'],
}
FROZEN = ("mobilebert", "theseus")
AGREEING = ("sid", "lrc-bert", "diito", "rail-kd", "mgskd", "match")
"""Samples depend on each other, or ranks decide together what to learn."""
FEW = ("sid", "diito", "mgskd")
"""Ranks decide together; exchange activations between samples; have unequal numbers of them."""


def _cases(names=CASES, *layout):
    settings = ["training.evaluate_every=8", *layout]
    return [(" ".join([n, *layout]), "teacher", [*CASES[n], *settings]) for n in names]


LAYOUTS = {
    "tensor": (2, _cases(FEW, "parallel.tensor=2")),
    "tensor, others": (2, _cases(sorted(set(CASES) - set(FEW)), "parallel.tensor=2")),
    "zero": (
        2,
        [
            *_cases(CASES, "parallel.zero=2"),
            *_cases(FROZEN, "parallel.zero=2", "parallel.offload_optimizer=cpu"),
            # The ranks that share the teacher run it on the rows of both.
            *_cases(["diito"], "teacher.tensor=2"),
        ],
    ),
    "three": (3, _cases(AGREEING)),
}


@pytest.fixture(scope="module")
def alone(still, runs, tmp_path_factory):
    """`alone("sid")`: the folder of the same run in one process, which is trained once."""
    folder = tmp_path_factory.mktemp("alone")

    def _alone(name):
        if not (folder / name).exists():
            runs.train_all(still, folder, _cases([name]))
        return folder / name

    return _alone


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(name, marks=[] if name == "tensor" else [pytest.mark.exhaustive])
        for name in LAYOUTS
    ],
)
def test_they_train_as_in_one_process(still, on_ranks, runs, alone, tmp_path, layout):
    ranks, cases = LAYOUTS[layout]
    on_ranks(ranks, runs.train_all, still, tmp_path, cases)
    for name, *_ in cases:
        runs.assert_equal(tmp_path / name, alone(name.split()[0]))


@pytest.mark.slow
def test_the_case_of_sid_unlocks_when_the_loss_is_small(alone):
    lines = (alone("sid") / "metrics.jsonl").read_text().splitlines()
    learnt = ["sid.soft" in line for line in lines if "loss/total" in line]
    assert learnt == [False] * 4 + [True] * 4


@pytest.mark.exhaustive
def test_what_ranks_decided_survives_a_resume(still, on_ranks, runs, tmp_path):
    cases = []
    for name in ("sid", "rail-kd"):
        one = ("teacher", [*CASES[name], "training.checkpoint_every=3"])
        cases += [(f"{name} whole", *one), (f"{name} resumed", *one, 5), (f"{name} resumed", *one)]
    on_ranks(2, runs.train_all, still, tmp_path, cases)
    for name in ("sid", "rail-kd"):
        runs.assert_same(tmp_path / f"{name} resumed", tmp_path / f"{name} whole")


def test_a_rate_at_which_nothing_is_borrowed_yet_hides_no_teacher_that_is_elsewhere(
    still, runs, tmp_path
):
    settings = ["method=theseus", "theseus.rate=1", "teacher.placement=offload"]
    with pytest.raises(ConfigError, match="theseus runs blocks of the teacher 'teacher' in the st"):
        runs.train(still, tmp_path, "teacher", settings)
