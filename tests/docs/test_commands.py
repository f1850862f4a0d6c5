"""Every gkd command of tutorials and how-tos runs, in the order of its page, in one folder."""

from __future__ import annotations

import glob
import shlex
import shutil
from dataclasses import dataclass
from itertools import pairwise

import pytest
from tests.docs.conftest import DOCS, Block, all_blocks, write_file
from tests.docs.place import write_place

PAGES = [*sorted((DOCS / "tutorial").glob("*.md")), *sorted((DOCS / "how-to").glob("*.md"))]
QUICK = ("--set", "training.steps=2")
LONG = ("training.steps=", "training.epochs=", "task.augment=")
RUNS = ("soft+hard-1", "soft-1", "pkd+soft-1")
"""Runs that pages on finished runs name."""

MOST_NOT_RUN = 72
"""Commands that pages say cannot be run here. It should go down."""


@dataclass(frozen=True)
class Shown:
    """A command of a page.

    Attributes:
        words: Its words, without `$`.
        error: The beginning of the error that the page shows below it; empty if it shows none.
        skip: Whether the page says that it is not run here.
    """

    words: list[str]
    error: str
    skip: bool


def commands(block: Block):
    """Return the commands of a block; none if it is no console."""
    if block.language != "console":
        return []
    found = []
    for part in block.text.replace("\\\n", " ").split("$ ")[1:]:
        line, _, output = part.partition("\n")
        error = output.partition("\n")[0] if output.startswith("Error: ") else ""
        found.append(Shown(shlex.split(line), error, block.skip))
    return found


def quickly(words):
    """Return a command with few steps, and with a teacher and rows if it names none."""
    if words[0] != "run" or "--resume" in words:
        return words
    kept = [words[0]]
    for flag, word in pairwise(words):
        if word == "--set" or word.startswith(LONG):
            continue
        kept += ["--set", word] if flag == "--set" else [word]
    named = {"--teacher", "--student"} & {*kept} or any(word.endswith(".toml") for word in kept)
    given = () if named else ("--teacher", "DIR", "--data", "train.jsonl", "--student-layers", "2")
    plain = () if {"--baseline", "--no-baseline"} & {*kept} else ("--no-baseline",)
    return [*kept, *given, *plain, *QUICK]


def expanded(words):
    """Return words with the names of files in place of patterns, as a shell has it."""
    return [found for word in words for found in sorted(glob.glob(word)) or [word]]


@pytest.fixture(scope="module")
def models(world, tmp_path_factory):
    """A folder with all that pages name, which nobody changes."""
    folder = tmp_path_factory.mktemp("place")
    write_place(world, folder)
    return folder


@pytest.fixture
def place(models, tmp_path):
    """A folder of a page, in which it finds everything."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """The runs of `RUNS`."""
    from tests import forked

    folder = tmp_path_factory.mktemp("finished")
    cache = str(folder / "cache")
    for name in RUNS:
        output = ["--output", str(folder / "runs" / name), "--method", name.removesuffix("-1")]
        words = quickly(["run", "--teacher", "DIR", "--data", "train.jsonl", *output])
        done = forked.run(forked.GKD, *words, cwd=models, GKD_CACHE=cache)
        assert done.returncode == 0, done.stderr
    return folder / "runs"


def page_of(page):
    return pytest.param(page, id=page.stem, marks=pytest.mark.exhaustive)


def run_page(page, folder, invoke):
    """Do what a reader does, from top to bottom."""
    for block in all_blocks(page):
        write_file(block, folder)
        for shown in commands(block):
            if not shown.skip and shown.words[0] == "gkd":
                run_command(shown, invoke)


def run_command(shown, invoke):
    done = invoke(*expanded(quickly(shown.words[1:])))
    said = f"{shlex.join(shown.words)}: {done.err}"
    if shown.error:
        assert shown.error in " ".join(done.err.split()), said
    else:
        assert done.code == 0, said


def needs_runs(page):
    return any(f"runs/{name}" in page.read_text() for name in RUNS)


@pytest.mark.parametrize("guide", [page_of(page) for page in PAGES if not needs_runs(page)])
def test_its_commands_run(guide, place, invoke, example):
    (place / "runs").mkdir()
    run_page(guide, place, invoke)


@pytest.mark.parametrize("guide", [page_of(page) for page in PAGES if needs_runs(page)])
def test_its_commands_run_on_finished_runs(guide, place, finished, invoke, example):
    shutil.copytree(finished, place / "runs")
    run_page(guide, place, invoke)


@pytest.mark.parametrize("guide", PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_says_why(guide):
    """Every command is one of gkd and is run, or stands below the reason why it is not."""
    run = [shown.words for shown in shown_on(guide) if not shown.skip]
    assert not [words for words in run if words[0] != "gkd"]


def test_most_commands_are_run():
    shown = [each for page in PAGES for each in shown_on(page)]
    left_out = [each for each in shown if each.skip]
    assert len(left_out) <= MOST_NOT_RUN
    assert len(shown) > 2 * len(left_out)


def shown_on(page):
    return [shown for block in all_blocks(page) for shown in commands(block)]
