"""The page of a finished run: what it says, and that it asks nobody for anything."""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from gkd_core.analysis import figures
from gkd_core.analysis.comparison import Comparison, Row
from gkd_core.analysis.row_differences import disagreements, model_differences
from gkd_core.evaluation.predictions import About, Predictions

GOLD = ["pos", "neg"] * 10
RIGHT = {"teacher": range(18), "baseline": range(10), "student": range(15)}
NAMES = {"teacher": "teacher", "baseline": "student, labels only", "student": "student, soft"}
CLASSES = ("neg", "pos")


def _said(right):
    other = dict(zip(CLASSES, reversed(CLASSES), strict=True))
    return [g if i in right else other[g] for i, g in enumerate(GOLD)]


def _predictions(**columns):
    """Predictions of 20 rows: the teacher gets 18 right, the baseline 10, the student 15."""
    rows = {
        "row": range(20),
        "hash": list(map(str, range(20))),
        "text": [f"text {i}" for i in range(20)],
    }
    rows |= {"pair": [None] * 20, "gold": GOLD, "group": [None] * 20}
    models = {
        name: pa.table({"prediction": _said(right), **columns.get(name, {})})
        for name, right in RIGHT.items()
    }
    return Predictions(
        About("test", "classification", CLASSES, "accuracy"), pa.table(rows), models, NAMES
    )


def _comparison(metric="accuracy", shift=0.0):
    rows = [
        Row(NAMES[name], name, {metric: len(right) / 20 + shift}, 10**6, 4 * 10**6, 1.0, None, None)
        for name, right in RIGHT.items()
    ]
    return Comparison(metric, "test", 20, rows)


def test_difference_is_paired_and_tested_exactly():
    to_teacher, to_baseline = model_differences(_comparison(), _predictions())
    assert (to_teacher.other, to_baseline.other) == ("teacher", "student, labels only")
    assert to_teacher.estimate.value == pytest.approx(-0.15)
    assert to_baseline.estimate.value == pytest.approx(0.25)
    # By hand: three rows that only the teacher gets right, five that only the student does.
    assert to_teacher.test.p == pytest.approx(2 * 0.5**3)
    assert to_baseline.test.p == pytest.approx(2 * 0.5**5)
    interval = to_baseline.estimate.interval
    assert interval.low < 0.25 < interval.high
    assert interval.low > 0, "unpaired, the interval would contain 0"


def test_loss_is_a_mean_over_rows_too_and_has_no_test():
    losses = {name: {"loss": [0.1 * len(right)] * 20} for name, right in RIGHT.items()}
    rows = [
        Row(NAMES[name], name, {"loss": 0.1 * len(right)}, 1, 1, None, None, None)
        for name, right in RIGHT.items()
    ]
    found = model_differences(Comparison("loss", "test", 20, rows), _predictions(**losses))
    assert [d.estimate.value for d in found] == pytest.approx([-0.3, 0.5])
    assert [d.test for d in found] == [None, None]


def test_metric_that_is_no_mean_over_rows_has_no_interval():
    assert model_differences(_comparison("macro_f1", shift=0.01), _predictions()) == []


def test_rows_are_sorted_by_the_distance_of_probabilities():
    def scores(strength):
        return {"scores": [[0.0, s] for s in strength]}

    given = _predictions(teacher=scores(np.zeros(20)), student=scores(np.linspace(-2, 1, 20)))
    found = disagreements(given, 3)
    assert [one.row for one in found] == [0, 1, 2]
    expected = abs(torch.tensor([0.0, -2.0]).softmax(0)[1].item() - 0.5)
    assert found[0].distance == pytest.approx(expected)
    assert (found[0].text, found[0].gold, found[0].teacher) == ("text 0", "pos", "pos")


def test_rows_without_probabilities_of_classes_are_not_compared():
    assert disagreements(_predictions(), 3) == []


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


class _Page(HTMLParser):
    """What a page refers to, and its tables."""

    def __init__(self, text):
        super().__init__()
        self.references, self.ids, self.rows = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "action", "data", "srcset"):
                self.references.append((tag, value))
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())


@pytest.fixture
def page(prepare_run, brief):
    """The report of a finished run with a baseline and a file of a plugin."""
    from gkd_core.analysis import run_summary
    from gkd_core.analysis.report import write_report
    from gkd_core.config.render import to_toml

    run = prepare_run("method=soft", "baseline=true")
    (run.directory / "config.toml").write_text(to_toml(run.resolved))
    run.execute()
    linked = run.directory / "of <plugin>.csv"
    linked.touch()
    summary = run_summary.summarize_run(run)
    predictions = Predictions.read(run.directory / "predictions")
    write_report(run, summary.comparison, predictions, "an <outline>", [linked], ["<b> failed"])
    return SimpleNamespace(run=run, text=summary.report.read_text(), linked=linked)


def test_page_says_what_was_distilled_how_good_it_is_and_how_to_use_it(page):
    from gkd_core.analysis.report import write_report

    text = page.text
    for said in (
        "Distilled with soft", "gained by distillation", "of the teacher&#39;s weights",
        "How sure is the difference?", "Where student and teacher differ most",
        "student, labels only", "<h3>Cost</h3>", "losses of stage distil",
        "losses of stage baseline",
    ):  # fmt: skip
        assert said in text, said
    (snippet,) = re.findall(r"<pre><code>(.*?)</code></pre>", text, re.S)
    code = snippet.replace("&#39;", "'").replace("&#34;", '"')
    found = {}
    exec(compile(ast.parse(code), "snippet", "exec"), found)
    assert found["model"].config.num_hidden_layers == 2
    # It escapes what it is given, and refers to nothing but links.
    assert "an &lt;outline&gt;" in page.text
    assert "&lt;b&gt; failed" in page.text
    references = _Page(page.text).references
    assert ("a", str(page.linked)) in references
    assert all(tag == "a" or value.startswith("#") for tag, value in references)
    assert "default-src 'none'" in page.text
    assert "url(http" not in page.text
    # There may be nothing to compare.
    text = write_report(page.run, None, None, "", [], ["no comparison"]).read_text()
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
