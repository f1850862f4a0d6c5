"""Reference pages are written from the code, and a stale one is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests import forked

DOCS = Path(__file__).parents[2] / "docs"
HOOKS = DOCS / "reference" / "hooks.md"


@pytest.mark.slow
@pytest.mark.usefixtures("example")
def test_check_names_the_stale_page_and_no_other_whatever_is_installed(tmp_path):
    """With another plugin, one of ours turned off and a narrow terminal, pages are the same."""
    copy = tmp_path / "docs"
    shutil.copytree(DOCS, copy, ignore=shutil.ignore_patterns("_build", "examples"))
    page = copy / "reference" / "cli.md"
    stale = page.read_text().replace("`--seed INTEGER`", "`--sow INTEGER`", 1)
    page.write_text(stale)
    code = f"import runpy; runpy.run_path({str(DOCS / 'generate.py')!r}, run_name='__main__')"
    settings = {"GKD_DISABLE_PLUGINS": "gkd-methods-classic", "COLUMNS": "40"}
    done = forked.run(code, "--check", copy, cwd=tmp_path, **settings)
    assert done.returncode == 1, done.stderr
    told = done.stderr.splitlines()
    named = [line for line in told if line.endswith(" is stale")]
    assert named == [f"{page.relative_to(tmp_path)} is stale"]
    assert told[-1].startswith("`make reference`")
    assert page.read_text() == stale


def test_a_block_is_written_anew_and_the_rest_of_the_page_stays(generate):
    text = HOOKS.read_text()
    opening, _, rest = text.partition("<!-- generated: hooks -->\n")
    stale = f"{opening}<!-- generated: hooks -->\nold\n<!-- end -->\nBy hand.\n"
    assert generate.write_blocks(stale, HOOKS) == f"{text}By hand.\n"
    assert rest.endswith("<!-- end -->\n")


def test_a_recipe_below_labels_alone_says_so(generate, monkeypatch):
    interval = {"low": "-0.0155", "high": "+0.0085"}
    accuracy = {"metric": "accuracy", "labels": "0.5910", **interval}
    perplexity = {"metric": "perplexity", "labels": "160.5", **interval}
    measured = [
        {"recipe": "theseus", "student": "0.5875", **accuracy},
        {"recipe": "pkd", "student": "0.6130", **accuracy},
        {"recipe": "seqkd", "student": "302.9", **perplexity},
        {"recipe": "dskd", "student": "151.3", **perplexity},
    ]
    monkeypatch.setattr(generate, "_measured", lambda: measured)
    told = "`theseus` did not beat labels alone: accuracy 0.5875 against"
    assert told in generate.method("theseus")
    assert "labels alone:" not in generate.method("pkd")
    recipes = generate.recipes()
    assert told in recipes
    assert "`seqkd` did not beat labels alone: perplexity 302.9 against" in recipes.replace(
        "\n", " "
    )
    assert recipes.count("did not beat labels alone") == 2


@pytest.mark.parametrize(
    "text",
    [
        "<!-- generated: hooks -->\n",
        "<!-- generated: sites -->\n\n<!-- generated: hooks -->\n<!-- end -->\n",
        "See <!-- generated: hooks -->\n<!-- end -->\n",
    ],
)
def test_a_mark_that_is_not_closed_is_refused(generate, text):
    with pytest.raises(SystemExit, match=r"page.md: .* not closed"):
        generate.write_blocks(text, Path("page.md"))


def test_names_have_the_first_line_of_what_documents_them(generate):
    directives = [
        "autofunction:: gkd_core.losses.reverse_kl",
        "autodata:: gkd_core.losses.Logits",
        "autodata:: gkd_core.api.LOGITS",
    ]
    section = "".join(f".. {directive}\n" for directive in directives)
    assert generate.names(section).splitlines()[2:] == [
        "| `gkd_core.losses.reverse_kl` | Kullback-Leibler divergence KL(q \\|\\| p). |",
        "| `gkd_core.losses.Logits` | Logits `[*items, V]`, dense or not yet computed; those of a "
        "teacher may be the likeliest only. |",
        "| `gkd_core.api.LOGITS` | The output of the head, as a key of `View`. |",
    ]
