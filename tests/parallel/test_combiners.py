"""Several teachers on several ranks: combiners do what they do in one process."""

import json

import pytest

from gkd_core.plugins import registry

SETTINGS = ["student.layers=2", "training.steps=4", "training.evaluate_every=4"]
METHODS = {
    "average, uncertainty": [
        "method=average(soft+pkd)+uncertainty(kd+tinybert)",
        "average.weights=[1, 3]",
        "uncertainty.share=0.5",
        "uncertainty.supervision=adjusted",
    ],
    "dgkd, mt-bert": ["method=dgkd(kd+tinybert)+mt-bert(soft+pkd)"],
    "rl-kd, tmkd": [
        "method=0.5*rl-kd(soft+pkd)+tmkd(kd+hard)",
        "rl-kd.reward=r2",
        "rl-kd.warmup=0.0",
    ],
    "route": [
        "method=route(soft+pkd)+hard",
        "task.source=label",
        "route.teachers.neg=teacher",
        "route.teachers.pos=shallow",
    ],
}
LAYOUTS = {"zero": "parallel.zero=2", "tensor": "parallel.tensor=2"}
TUNED = (
    "tuned",
    "teacher+shallow",
    ["method=mt-bert(soft)+hard", *SETTINGS, "mt-bert.cofinetuning=1"],
)


def _cases(prefix="", *more):
    return [
        (prefix + name, "teacher+shallow", [*own, *SETTINGS, *more])
        for name, own in METHODS.items()
    ]


@pytest.fixture(scope="module")
def several(still):
    """The still world with another teacher, `shallow`, of 3 blocks."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = still / "shallow"
    if not folder.exists():
        shape = json.loads((still / "teacher" / "config.json").read_text())
        config = BertConfig(**(shape | {"num_hidden_layers": 3}))
        BertForSequenceClassification(config).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).write_text((still / "teacher" / file).read_text())
    return still


@pytest.fixture(scope="module")
def alone(several, runs, tmp_path_factory):
    """The runs in one process."""
    folder = tmp_path_factory.mktemp("alone")
    runs.train_all(several, folder, [*_cases(), TUNED])
    return folder


def test_every_combiner_is_tried():
    assert {name for case in METHODS for name in case.split(", ")} == set(registry().combiners)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tensor", pytest.param("zero", marks=pytest.mark.exhaustive)])
def test_two_ranks_train_as_one_process_does(several, on_ranks, runs, alone, tmp_path, layout):
    """Also where the samples are sorted by uncertainty: each rank has half of them."""
    name, teachers, settings = TUNED
    tuned = (name, teachers, [*settings, LAYOUTS["zero"]])
    on_ranks(2, runs.train_all, several, tmp_path, [*_cases("", LAYOUTS[layout]), tuned])
    for name in (*METHODS, TUNED[0]):
        runs.assert_equal(tmp_path / name, alone / name)


@pytest.mark.exhaustive
def test_resumed_policy_ends_bit_equal_under_zero_2(several, on_ranks, runs, tmp_path):
    settings = [
        *METHODS["rl-kd, tmkd"],
        *SETTINGS,
        "training.checkpoint_every=2",
        "parallel.zero=2",
    ]
    cases = [
        ("whole", "teacher+shallow", settings),
        ("resumed", "teacher+shallow", settings, 5),
        ("resumed", "teacher+shallow", settings),
    ]
    on_ranks(2, runs.train_all, several, tmp_path, cases)
    runs.assert_same(tmp_path / "resumed", tmp_path / "whole")
