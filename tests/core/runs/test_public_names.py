"""Paths in texts that are sent on."""

import pytest

from gkd_core.runs.public_names import public_name, without_folders


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ('model = "/home/me/teachers/bert"  # --teacher', 'model = "bert"  # --teacher'),
        ("'/data/my rows/train set.jsonl'", "'train set.jsonl'"),
        ("on /data/a.jsonl, /data/b.jsonl", "on a.jsonl, b.jsonl"),
        ("/home/me/rows/:0.7", "rows:0.7"),
        ("~/rows.csv and ~me/rows.csv", "rows.csv and rows.csv"),
        ("'C:\\Users\\me\\rows.csv'", "'rows.csv'"),
        ("runs/pkd-1/student", "runs/pkd-1/student"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("http://localhost:8000/v1/models", "http://localhost:8000/v1/models"),
        ("2 / 3 rows, 1/2", "2 / 3 rows, 1/2"),
        ("hidden[1..L]/2 and ~5% </pre>", "hidden[1..L]/2 and ~5% </pre>"),
    ],
)
def test_paths_are_reduced_to_their_last_part(text, public):
    assert without_folders(text) == public


def test_a_student_is_told_with_its_run(tmp_path, monkeypatch):
    run = tmp_path / "teacher"
    (run / "student").mkdir(parents=True)
    assert public_name(run / "student") == "student", "it may be anybody's folder"
    (run / "stages").mkdir()
    (run / "config.toml").touch()
    monkeypatch.chdir(run)
    for path in (run / "student", "student", "../teacher/student/"):
        assert public_name(path) == "teacher/student"
    assert without_folders(f'model = "{run}/student"') == 'model = "teacher/student"'
    assert public_name(run) == "teacher"
