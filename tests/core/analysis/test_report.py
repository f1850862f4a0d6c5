"""The page of a finished run: what it says, and that it asks nobody for anything."""

from __future__ import annotations

import ast
import re
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from gkd_core.analysis import figures


def test_ink_of_a_figure_is_the_color_of_the_text():
    entries = [
        {"stage": "distil", "step": step, "loss/total": 1.0 / step, "loss/soft": 0.5 / step,
         "loss/pkd": 0.5 / step} for step in (1, 2, 3)
    ]  # fmt: skip
    drawn = figures.losses(entries)["distil"]
    assert drawn.startswith("<svg")
    assert "currentColor" in drawn
    assert figures.INK not in drawn
    assert "#000000" not in drawn
    assert "<metadata" not in drawn


def test_a_stage_that_took_no_steps_has_no_figures():
    entries = [{"stage": "distil", "step": 0, "samples": 0}]
    assert figures.losses(entries) == {}
    assert figures.validation(entries, "accuracy") is None


class _Page(HTMLParser):
    """What a page refers to."""

    def __init__(self, text):
        super().__init__()
        self.references = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "action", "data", "srcset"):
                self.references.append((tag, value))


@pytest.fixture
def page(prepare_run, brief, monkeypatch):
    """The report of a finished run with a baseline and a file of a plugin, of which one failed."""
    from gkd_core.analysis import run_summary
    from gkd_core.config.render import to_toml

    run = prepare_run("method=soft", "baseline=true")
    (run.directory / "config.toml").write_text(to_toml(run.resolved))
    run.execute()
    linked = run.directory / "of <plugin>.csv"
    monkeypatch.setattr(run_summary, "_added_by_plugins", lambda run: ([linked], ["<b> failed"]))
    return SimpleNamespace(run=run, summary=run_summary.summarize_run(run), linked=linked)


def test_page_says_what_was_distilled_how_good_it_is_and_how_to_use_it(page, monkeypatch):
    text = page.summary.report.read_text()
    for said in (
        "Distilled with soft", "gained by distillation", "of the teacher&#39;s weights",
        "How sure is the difference?", "Where student and teacher differ most",
        "student, labels only", "<h3>Cost</h3>", "losses of stage distil",
        "losses of stage baseline",
    ):  # fmt: skip
        assert said in text, said
    teacher, baseline, student = (row.metrics["accuracy"] for row in page.summary.comparison.rows)
    for other in (teacher, baseline):
        assert f">{student - other:+.4f}</td>" in text
    (snippet,) = re.findall(r"<pre><code>(.*?)</code></pre>", text, re.S)
    found = {}
    monkeypatch.chdir(page.run.directory)
    exec(compile(ast.parse(unescape(snippet)), "snippet", "exec"), found)
    assert found["model"].config.num_hidden_layers == 2
    _check_references(page, text)
    _check_without_comparison(page)


def _check_references(page, text):
    """Check that the page escapes what it is given, and refers to nothing but links."""
    assert "&lt;b&gt; failed" in text
    assert "of &lt;plugin&gt;.csv</a>" in text
    references = _Page(text).references
    assert ("a", page.linked.name) in references
    assert all(tag == "a" or value.startswith("#") for tag, value in references)
    assert "default-src 'none'" in text
    assert "url(http" not in text


def _check_without_comparison(page):
    from gkd_core.analysis.report import write_report

    text = write_report(page.run, None, "", [], ["no comparison"]).read_text()
    assert "no comparison" in text
    assert "<h2>Models</h2>" not in text


def test_arithmetic_is_that_of_every_matrix_product(world):
    from transformers import AutoModelForSequenceClassification

    from gkd_core.deploy.arithmetic import forward_flops

    model = AutoModelForSequenceClassification.from_pretrained(world / "teacher").eval()
    sample = SimpleNamespace(inputs={"input_ids": torch.ones(1, 7, dtype=torch.long)})
    # By hand: 4 blocks of width 32 with 64 neurons and 7 tokens, then the pooler and two classes.
    block = 2 * 7 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 7 * 7 * 32
    assert forward_flops(model, [sample]) == 4 * block + 2 * 32 * 32 + 2 * 32 * 2
