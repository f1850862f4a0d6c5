"""Pages as a reader sees them: in a browser, on a desk and on a phone, by day and by night."""

from __future__ import annotations

import json

import pytest
from tests.browser.conftest import CONTRAST, SIZES, contrast, luminance, requests

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(world, tmp_path_factory):
    """The report of a run with a baseline and several loss terms."""
    folder = tmp_path_factory.mktemp("shown")
    settings = {
        "task.validation": world / "validation.jsonl",
        "task.test": world / "test.jsonl",
        "task.max_length": 32,
        "training.steps": 8,
        "training.log_every": 2,
        "training.lr": 1e-3,
        "output.reuse": "false",
        "probe.every": 2,
        "training.evaluate_every": 2,
    }
    words = ["run", "--method", "pkd+soft+0.5*hard", "--baseline", "--student-layers", "2"]
    words += ["--teacher", str(world / "teacher"), "--data", str(world / "train.jsonl")]
    words += ["--output", str(folder / "run"), "--probe", "all"]
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GKD_CACHE", str(folder / "cache"))
        _command(*words)
    return folder / "run" / "report.html"


@pytest.fixture(scope="module")
def analysis(report, tmp_path_factory):
    """The analysis of the same run."""
    folder = tmp_path_factory.mktemp("analyzed")
    _command("analyze", report.parent, "--output", folder)
    return folder / "analysis.html"


def _command(*words):
    """Run the command line."""
    from gkd_core.cli import main

    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The analysis of 9 made-up runs of three methods, with all figures."""
    folder = tmp_path_factory.mktemp("several")
    runs = [_write_run(folder, number) for number in range(9)]
    _command("analyze", *runs, "--output", folder / "analysis")
    return folder / "analysis" / "analysis.html"


def _write_run(folder, number):
    """Write what `gkd analyze` reads of a run whose distances follow its quality, or do not."""
    from gkd_core.probes.probe_file import PROBES, ProbedValue, ProbeFile

    method = ("mgskd+soft", "tinybert+soft", "continuation-kd+0.5*hard")[number % 3]
    directory = folder / f"run{number}"
    stage = directory / "stages" / "distil"
    stage.mkdir(parents=True)
    (directory / "config.toml").write_text(f'method = "{method}"\n')
    quality = {"metrics": {"accuracy": 0.7 + 0.01 * number}}
    results = {"metric": "accuracy", "split": "test", "samples": 40, "rows": [quality]}
    (directory / "results.json").write_text(json.dumps(results))
    lines = [{"stage": "distil", "step": n, "loss/total": 1 / (n + number)} for n in range(1, 5)]
    (directory / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    measured = [
        ProbedValue(4, 0, "validation", "teacher", f"{site}[{layer}]", f"{site}[{layer}]", *found)
        for site in ("hidden", "query", "key", "value")
        for layer in range(1, 4)
        for found in (("mse", number * layer), ("cosine", (number * 5) % 7), ("1-cka", 9 - number))
    ]
    ProbeFile(stage / PROBES).append(measured)
    return directory


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The report of a study in which one method wins, one loses and one cell failed."""
    from tests.core.studies.conftest import StudyWriter

    folder = tmp_path_factory.mktemp("study")
    axes = {"method": ["hard", "pkd", "soft", "pkd+soft"], "seed": [1, 2, 3]}
    given = {"title": "Made up", "axes": axes, "baseline": {"method": "hard"}}
    writer = StudyWriter(folder, given)
    for seed in axes["seed"]:
        for method, quality in zip(axes["method"], (0.7, 0.95, 0.4, 0.96), strict=True):
            state = "failed" if (method, seed) == ("soft", 2) else "finished"
            writer.add(quality, seed=seed, method=method, state=state)
    _command("study", "report", writer.close())
    return folder / "report" / "study.html"


@pytest.fixture
def show(open_page, report):
    """Open the report, or another page: `show("phone", "dark")` -> what is in it."""
    return lambda size="desktop", scheme="light", page=report: open_page(page, size, scheme)


@pytest.fixture
def pages(report, analysis, several, study):
    """All pages by name."""
    return {"report": report, "analysis": analysis, "several": several, "study": study}


NAMES = ("report", "analysis", "several", "study")


# Width


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_off(show, pages, size, scheme, name):
    page = show(size, scheme, pages[name])
    page.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    wide, visible = page.run(
        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
    )
    assert wide <= visible
    cut = page.run(
        """return [...document.querySelectorAll("td, th, dd, p, figure, pre")].filter((each) => {
             const box = each.getBoundingClientRect();
             const around = each.closest(".scroll, pre");
             const scrolls = around && getComputedStyle(around).overflowX === "auto" &&
               (around.tagName === "PRE" || around.tabIndex === 0);
             return box.right > document.documentElement.clientWidth + 1 && !scrolls;
           }).map((each) => each.textContent)"""
    )
    assert cut == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_tables_need_no_scrolling(show, pages, size, name):
    blocks = ".scroll" if size == "desktop" else ".scroll, pre"
    wide = show(size, page=pages[name]).run(
        """return [...document.querySelectorAll(arguments[0])]
             .filter((each) => each.scrollWidth > each.clientWidth)
             .map((each) => each.textContent)""",
        blocks,
    )
    assert wide == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_figures_are_large_enough_to_read(show, pages, size, name):
    """The smallest letter of a figure has 4 pixels on a phone, which can zoom, and 7 on a desk."""
    smallest = show(size, page=pages[name]).run(
        """return Math.min(...[...document.querySelectorAll("figure svg text")].map((each) =>
             parseFloat(getComputedStyle(each).fontSize) * Math.abs(each.closest("svg")
               .getScreenCTM().a)))"""
    )
    assert smallest >= {"desktop": 7, "phone": 4}[size]


def test_values_on_a_phone_say_what_they_are(show):
    page = show("phone")
    headings = page.run(
        """return [...document.querySelectorAll("tbody tr:first-child td")].slice(0, 3)
             .map((each) => getComputedStyle(each, "::before").content)"""
    )
    assert headings == ['"model"', '"accuracy"', '"kept"'], "a value says what it is"


# Color


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_text_and_figures_can_be_read(show, pages, scheme, is_dark, name):
    page = show(scheme=scheme, page=pages[name])
    paper = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.2) is is_dark
    inks = page.run(
        """return ["h1", ".note", "td", "a, summary", "figcaption", "dt", "code", "li"]
             .map((name) => document.querySelector(name)).filter(Boolean)
             .map((each) => getComputedStyle(each).color)"""
    )
    drawn = page.run(
        """return [...document.querySelectorAll("figure svg text")]
             .filter((each) => !each.closest("[id^=cell-]"))  // these lie on cells of a heat map
             .map((each) => getComputedStyle(each).fill)"""
    )
    assert len(drawn) > 20, "figures have labels"
    assert {ink: round(contrast(ink, paper), 1) for ink in (*inks, *drawn)} == {
        ink: pytest.approx(21, abs=21 - CONTRAST) for ink in (*inks, *drawn)
    }


# Tables


def column(page, number):
    return page.run(
        """return [...document.querySelector("table").tBodies[0].rows]
             .map((row) => Number(row.cells[arguments[0]].dataset.value))""",
        number,
    )


def sorting(page):
    return page.run(
        """return [...document.querySelector("table").tHead.rows[0].cells]
             .map((cell) => cell.getAttribute("aria-sort"))"""
    )


def test_tables_sort_by_click_and_by_key(show):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page = show()
    buttons = page.browser.find_elements(By.CSS_SELECTOR, "table:first-of-type th button")
    names = [button.text for button in buttons]
    weights, time = names.index("weights"), names.index("ms")
    before = column(page, weights)
    assert before != sorted(before), "the teacher is first and largest"
    buttons[weights].click()
    assert column(page, weights) == sorted(before)
    assert {n: way for n, way in zip(names, sorting(page), strict=False) if way} == {
        "weights": "ascending"
    }
    buttons[weights].click()
    assert column(page, weights) == sorted(before, reverse=True)
    assert sorting(page)[weights] == "descending"
    buttons[time].send_keys(Keys.ENTER)
    assert column(page, time) == sorted(column(page, time))
    assert sorting(page)[weights] is None
    marked = page.run("return [...document.querySelectorAll('tr.student')].map((r) => r.innerText)")
    assert len(marked) == 1
    assert marked[0].startswith("student, pkd"), "a row keeps its mark wherever it goes"


@pytest.mark.parametrize("name", NAMES)
def test_every_table_sorts_by_every_heading(show, pages, name):
    """Numbers by their value, with what has none behind them; the rows stay the same ones."""
    unsorted = show(page=pages[name]).run(
        """const bad = [];
           for (const table of document.querySelectorAll("table")) {
             const texts = () => [...table.tBodies[0].rows].map((row) => row.textContent);
             const before = texts().sort().join("|");
             [...table.tHead.rows[0].cells].forEach((cell, column) => {
               cell.querySelector("button").click();
               const values = [...table.tBodies[0].rows]
                 .map((row) => Number(row.cells[column].dataset.value ?? "Infinity"));
               const sorted = values.every((value, n) => n === 0 || values[n - 1] <= value);
               if (!sorted || texts().sort().join("|") !== before) bad.push(cell.textContent);
             });
           }
           return bad"""
    )
    assert unsorted == []


def test_tables_are_whole_without_script(show, browser):
    with_script = show().run("return document.querySelector('table').innerText")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page = show()
        assert page.run("return document.querySelectorAll('th button').length") == 0
        assert page.run("return document.querySelector('table').innerText") == with_script
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# Requests


@pytest.mark.parametrize("name", NAMES)
def test_page_asks_for_nothing_but_itself(show, pages, name):
    page = show(page=pages[name])
    assert page.run("return document.querySelectorAll('figure svg').length") >= 2
    assert page.run("return document.querySelectorAll('th button').length") >= 8
    assert requests(page.browser) == [pages[name].as_uri()]
    assert page.browser.get_log("browser") == []


def test_a_request_would_be_seen(show, tmp_path):
    other = tmp_path / "other.html"
    other.write_text("<!doctype html><img src='http://127.0.0.1:9/pixel.png'>")
    page = show(page=other)
    assert "http://127.0.0.1:9/pixel.png" in requests(page.browser)
    page.browser.get_log("browser")


def test_page_forbids_requests(show):
    refused = show().browser.execute_async_script(
        """const done = arguments[0];
           document.addEventListener("securitypolicyviolation", (e) => done(e.blockedURI));
           document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/a.png"}));"""
    )
    assert refused == "http://127.0.0.1:9/a.png"
