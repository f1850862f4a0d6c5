import json

import pytest

from gkd_core.analysis.explanation import short_reference

STAGES = """
[[stages]]
name = "layers"
method = "pkd"
pkd.beta = 10
[[stages]]
name = "answers"
method = "linear(1 -> 0)*soft+hard"
soft.temperature = 2
"""


@pytest.fixture
def explain(invoke, settings, tmp_path):
    """Run `gkd explain` with the arguments of a quick run; return the lines printed."""

    def _explain(*arguments):
        done = invoke("explain", *settings, *arguments)
        assert (done.code, done.err) == (0, "")
        assert not (tmp_path / "runs").exists()
        return done.out

    return _explain


def test_explanation_names_methods_options_and_origins(explain):
    text = explain("2*pkd+soft", "--set", "soft.temperature=3")
    for line in (
        "stage distil (1 of 1)",
        "  methods    2*pkd+soft  (--method)",
        "  student    bert, 2 layers, hidden 32, 4 heads, ffn 64, 2 outputs",
        "  teacher    bert, 4 layers, hidden 32, 4 heads, ffn 64, 2 outputs",
        "  method     2 x pkd, Sun et al. 2019",
        "             pkd.beta = 100.0  (default)",
        "             soft.temperature = 3.0  (--set)",
        "             soft.scale_t2 = true  (default)",
    ):
        assert line in text.splitlines()


def test_explanation_shows_each_captured_tensor_once_with_shape_bytes_and_readers(explain):
    lines = explain("pkd+soft+kd").splitlines()
    assert "             hidden[2]|cls  [16 x 32]    2.0 KiB  for pkd" in lines
    assert lines.count("             logits         [16 x 2]       128 B  for soft, kd") == 2
    assert lines.index("  pass       teacher: up to the logits, keeps 2.1 KiB") < lines.index(
        "  pass       student: up to the logits, keeps 2.1 KiB"
    )


def test_teacher_pass_stops_after_the_last_block_that_is_read(explain):
    assert "teacher: up to block 2 of 4, keeps 2.0 KiB" in explain("pkd")


def test_probes_are_explained_with_what_they_cost(explain):
    text = explain("pkd", "--probe", "all", "--set", "probe.every=7")
    said = " ".join(text.split())
    assert "probe every 7 steps, and at the end on" in said
    assert "hidden[0,1,2] to hidden[0,2,4]" in said
    assert "teacher: up to the logits (in other steps block 2 of 4), keeps" in said
    assert "probe" not in explain("pkd")
    assert "probes compare nothing, because no method reads" in explain("hard", "--probe", "all")
    named = " ".join(explain("pkd", "--probe", "hidden[1]").split())
    assert "of student and teacher: hidden[1] to hidden[2] teacher: up to block 2 of 4" in named


def test_every_stage_is_explained_with_its_own_settings(explain, tmp_path):
    (tmp_path / "stages.toml").write_text(STAGES)
    graph, first, second = explain("stages.toml").split("\n\n")
    assert [line.split()[:2] for line in graph.splitlines()[1:]] == [
        ["1", "layers"],
        ["2", "answers"],
    ]
    assert first.startswith("stage layers (1 of 2)\n  methods    pkd  (stages.toml:4)\n")
    assert "pkd.beta = 10.0  (stages.toml:5)" in first
    assert second.startswith("stage answers (2 of 2)\n")
    assert "  method     linear(1 -> 0, over=100%) x soft, Hinton et al. 2015" in second
    assert "soft.temperature = 2.0  (stages.toml:9)" in second


def test_baseline_is_explained_as_the_stage_it_is(explain):
    text = explain("soft", "--baseline")
    _, baseline, distil = text.split("\n\n")
    assert baseline.startswith("stage baseline (1 of 2)\n  methods    hard")
    assert "teacher: not run, nothing reads it" in baseline
    assert distil.startswith("stage distil (2 of 2)")


def test_lines_fit_80_columns_but_for_long_paths(explain, world):
    lines = explain("pkd+soft").splitlines()
    assert [line for line in lines if len(line) > 80 and str(world) not in line] == []


def test_json_is_the_same_plan(explain):
    (stage,) = json.loads(explain("pkd+soft", "--json"))["stages"]
    assert (stage["name"], stage["method"], stage["method_origin"]) == (
        "distil",
        "pkd+soft",
        "--method",
    )
    assert stage["methods"][0]["options"]["beta"] == {"value": 100.0, "origin": "default"}
    teacher, student = stage["passes"]
    assert (teacher["model"], student["model"]) == ("teacher", "student")
    assert teacher["captures"][0] == {
        "path": "hidden[2]|cls",
        "shape": [16, 32],
        "bytes": 2048,
        "readers": ["pkd"],
    }


@pytest.mark.parametrize(
    ("paper", "short"),
    [
        ("Sun, Cheng, Gan, Liu, EMNLP 2019, arXiv:1908.09355", "Sun et al. 2019"),
        ("Hinton, Vinyals, Dean, 2015, arXiv:1503.02531, section 2", "Hinton et al. 2015"),
        ("Sanh et al., arXiv:1910.01108, 2019", "Sanh et al. 2019"),
        ("Nobody, 2026", "Nobody 2026"),
        ("this project", "this project"),
    ],
)
def test_reference_is_shortened(paper, short):
    assert short_reference(paper) == short


def test_a_scaled_student_is_told_from_a_whole_one(explain, invoke, settings):
    line = "  student    bert, 2 layers, hidden 32, 4 heads, ffn 64, 2 outputs"
    assert line in explain("hard").splitlines()
    shown = " ".join(explain("hard", "--set", "student.scale=0.5").split())
    assert f"{' '.join(line.split())}; 0.5 of its heads and ffn neurons are kept" in shown
    refused = invoke("explain", "tinybert", *settings, "--set", "student.scale=0.5")
    assert refused.code == 2
    said = " ".join(refused.err.split())
    assert "reads student.attention[1], but student.scale = 0.5 removes heads from its" in said
