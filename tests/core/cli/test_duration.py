"""Durations on the command line."""

import click
import pytest

from gkd_core.cli.duration import Duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("45m", 2700), ("1h30m", 5400), ("2d", 172800), ("0.5h", 1800)],
)
def test_duration_is_in_seconds(text, seconds):
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize(
    "text", ["", "90", "1:30", "h", "-5m", "1h 30m", "0s", "1e3s", "٣m", "9" * 9]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(click.BadParameter, match=r"is not a duration\. Write 90s, 45m"):
        Duration().convert(text, None, None)
