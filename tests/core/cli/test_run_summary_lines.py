"""The sentences at the end of a run are broken into lines, but the flags in them are not."""

from gkd_core.cli.run import _wrapped

SAID = (
    "what may help: more test rows (task.test); a better teacher; another learning rate "
    "(--set training.lr=0.0003, now 0.0001)"
)


def test_flags_are_in_one_line():
    lines = _wrapped(SAID, 60).splitlines()
    assert " ".join(lines) == SAID
    assert max(map(len, lines)) <= 60
    assert any("(--set training.lr=0.0003, now 0.0001)" in line for line in lines)
