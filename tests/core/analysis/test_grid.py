import io

from rich.console import Console

from gkd_core.analysis.grid import Grid


def printed(grid, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(grid.shown())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_long_answers_leave_room_for_the_text():
    answer = "the Denver Broncos of the American Football Conference"
    columns, narrow = ("text", "gold", "student", "distance"), ("gold", "student")
    row = ("Which team was first in the final " * 2, answer, answer, "1.500")
    title, heads, _, *lines = printed(Grid("rows", "Rows", columns, [row], narrow))
    assert title == "Rows"
    assert heads.index("gold") >= 30
    assert max(map(len, lines)) <= 80
    assert " ".join(line[: heads.index("gold")].strip() for line in lines[:2]).startswith(
        "Which team was first in the final Which team was"
    )


def test_text_is_on_the_left_and_numbers_are_on_the_right():
    rows = [("a", "yes", "1.5"), ("b", "no", "10.25")]
    _, heads, _, *lines = printed(Grid("rows", "Rows", ("name", "answer", "value"), rows))
    assert {line.index(word) for line, word in zip(lines, ("yes", "no"), strict=True)} == {
        heads.index("answer")
    }
    assert {len(line) for line in (heads, *lines)} == {len(heads)}
