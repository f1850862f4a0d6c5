"""The documentation as a reader sees it: on a desk and on a phone, by day and by night."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from tests.browser.conftest import CONTRAST, SIZES, contrast, luminance, requests

pytestmark = pytest.mark.browser

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    "index",
    "paper-index",
    "tutorial/first-distillation",
    "how-to/export-a-student",
    "how-to/run-on-several-gpus",
    "reference/config",
    "reference/methods/pkd",
    "explanation/architecture",
    "explanation/losses-and-masks",
    "explanation/measurements",
    "explanation/other-systems",
)
"""Pages with everything that a page can have: figures, formulae, wide tables, long lines."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder with the pages, as `make docs` builds them."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-d", folder / "trees", DOCS, folder / "html"]
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_off(open_page, site, size, scheme, name):
    page = open_page(site / f"{name}.html", size, scheme)
    wide, visible = page.run(
        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
    )
    assert wide <= visible
    cut = page.run(
        """const scrolls = (each) => {
             for (let e = each; e && e !== document.body; e = e.parentElement)
               if (getComputedStyle(e).overflowX === "auto") return true;
             return false;
           };
           const parts = ["p", "li", "td", "pre", "img", "math"].map((name) => `article ${name}`);
           return [...document.querySelectorAll(parts.join())]
             .filter((each) => each.getBoundingClientRect().right > innerWidth + 1)
             .filter((each) => !scrolls(each))
             .map((each) => each.textContent || each.outerHTML)"""
    )
    assert cut == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_text_can_be_read(open_page, site, scheme, is_dark, name):
    page = open_page(site / f"{name}.html", "desktop", scheme)
    paper = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.2) is is_dark
    inks = page.run(
        """const parts = ["h1", "h2", "p", "p a", "td", "li"];
           const found = parts.map((name) => document.querySelector(`article ${name}`));
           return found.filter(Boolean).map((each) => getComputedStyle(each).color)"""
    )
    assert len(inks) >= 3
    assert {ink: contrast(ink, paper) >= CONTRAST for ink in inks} == dict.fromkeys(inks, True)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_nothing_outside_of_the_site(open_page, site, name):
    page = open_page(site / f"{name}.html")
    requested = requests(page.browser)
    inside = (site.as_uri(), "data:")
    assert requested
    assert [address for address in requested if not address.startswith(inside)] == []
    images = page.run("return [...document.images].map((each) => [each.src, each.naturalWidth])")
    assert [source for source, width in images if not width] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_page_shows_the_demo(open_page, site, scheme):
    page = open_page(site / "index.html", "phone", scheme)
    wide = page.run("return document.querySelector('article img').getBoundingClientRect().width")
    assert wide > 250


def test_formulae_are_shown_without_a_script(open_page, site):
    page = open_page(site / "reference/methods/pkd.html")
    tall = page.run("return document.querySelector('article math').getBoundingClientRect().height")
    assert tall > 10


class Anchors(HTMLParser):
    """The places of a page, and what it links to."""

    def __init__(self, text):
        super().__init__()
        self.places, self.targets = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.places.add(given.get("id"))
        self.targets |= {given[key] for key in ("href", "src") if given.get(key)}


def test_no_link_is_broken(site):
    pages = {path: Anchors(path.read_text()) for path in site.rglob("*.html")}
    inside = re.compile(r"(?![a-z]+:|//)")
    broken = set()
    for path, page in pages.items():
        for target in filter(inside.match, page.targets):
            file, _, place = unquote(target).partition("#")
            found = (path.parent / file.partition("?")[0]).resolve() if file else path
            known = pages.get(found)
            if not found.exists() or (place and known and place not in known.places):
                broken.add((str(path.relative_to(site)), target))
    assert len(pages) > 100
    assert broken == set()
