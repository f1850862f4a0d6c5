"""What the documentation shows is true: code runs, commands parse, nothing is left out."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.docs.conftest import all_blocks, write_file

from gkd_core import api, hookspecs
from gkd_core.api import ModelInfo, Models
from gkd_core.cli import gkd
from gkd_core.cli.options import RunOptions
from gkd_core.config.expression import parse_expression
from gkd_core.config.schema import RunConfig
from gkd_core.hooks.paths import SITES, parse_path
from gkd_core.plugins import registry
from gkd_core.testing import check_method

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMBINERS = sorted(registry().combiners)
METHODS = [n for n in registry().methods if registry().provider(n).distribution.startswith("gkd-m")]
MODELS = Models(
    ModelInfo("student", "bert", 6, 768, 12, 12, 64, 3072, 30522, 2, 512),
    ModelInfo("teacher", "bert", 12, 768, 12, 12, 64, 3072, 30522, 2, 512),
)
"""What the models of a command may be, where a procedure asks for their shapes."""

LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_documentation_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "trees"]
    done = subprocess.run(
        [*command, DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    pages = {path: path.read_text() for path in (tmp_path / "html").rglob("*.html")}
    outside = re.compile(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//[^"]*"')
    if importlib.util.find_spec("latex2mathml") is not None:
        assert [found for text in pages.values() for found in outside.findall(text)] == []
        unknown = re.compile(r"<m[a-z]+>\\[a-zA-Z]+")
        assert [found for text in pages.values() for found in unknown.findall(text)] == []
        assert "<math" in pages[tmp_path / "html" / "reference" / "methods" / "pkd.html"]
    html = pages[tmp_path / "html" / "reference" / "hooks.html"]
    assert "gkd_step_end(run: RunInfo, stage: StageInfo, step: Step" in re.sub("<[^>]+>", "", html)


def test_links_lead_to_files(page):
    missing = [
        target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()
    ]
    assert not missing


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_code_runs(lesson, fenced, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in fenced(lesson, "python"):
        if not block.skip:
            exec(compile(block.text, str(lesson), "exec"), names)


def test_the_method_of_the_readme_keeps_what_every_method_must(fenced):
    names = {"__name__": "page"}
    (block,) = fenced(ROOT / "README.md", "python")
    exec(block.text, names)
    check_method(names["LastState"])


def commands(page, fenced):
    lines = (line for block in fenced(page, "console") for line in block.text.splitlines())
    return [shlex.split(line)[2:] for line in lines if line.startswith("$ gkd ")]


@pytest.mark.usefixtures("example")
def test_commands_are_understood(console, fenced, tmp_path, monkeypatch):
    """Flags, settings and methods of every command exist; models and data need not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gkd_core.runs.spec_builder.read_shapes", lambda *_: MODELS)
    for block in all_blocks(console):
        write_file(block, tmp_path)
    found = commands(console, fenced)
    assert found
    for arguments in found:
        name, command, rest = gkd.resolve_command(click.Context(gkd, info_name="gkd"), arguments)
        given = command.make_context(name, list(rest)).params
        if name == "methods" and given["name"] and given["name"] not in registry().combiners:
            registry().method(given["name"])
        elif "files" in given:
            check_settings(given)


def check_settings(given):
    """Resolve the settings of a command, as it would before it reads models and data."""
    files = list(given.pop("files"))
    expression = given.pop("expression", None)
    if expression is not None and expression.endswith(".toml"):
        files.insert(0, Path(expression))
    elif expression is not None:
        given["method"] = expression
    options = RunOptions(files, given.pop("recipe", None), given.pop("settings"), given)
    resolved = options.resolve()
    assert not resolved.warnings
    for stage in resolved.stages:
        for member in parse_expression(stage.config.method).members:
            registry().method(member.name)


def section(text, heading):
    """Return the part of a page below a heading of the second level."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def read(page):
    """Return a page of the reference as it is committed."""
    return (DOCS / "reference" / page).read_text()


@pytest.mark.parametrize("name", gkd.list_commands(click.Context(gkd)))
def test_every_command_and_option_is_in_the_reference(name):
    shown = CliRunner().invoke(gkd, [name, "--help"]).output
    options = set(re.findall(r"(?<!\S)--[a-z-]+", shown.partition("Options:")[2])) - {"--help"}
    written = section(read("cli.md"), f"gkd {name}")
    assert f"gkd {name}" in written
    assert not {
        option for option in options if f"`{option}" not in written and f", {option}" not in written
    }


def test_every_hook_has_a_heading_with_its_exact_signature():
    source = ast.parse(Path(hookspecs.__file__).read_text())
    hooks = [node for node in source.body if isinstance(node, ast.FunctionDef)]
    headings = [line for line in read("hooks.md").splitlines() if line.startswith("## ")]
    assert headings == [
        f"## `{hook.name}({ast.unparse(hook.args)}) -> {ast.unparse(hook.returns)}`"
        for hook in hooks
    ]


def test_every_setting_is_in_the_reference():
    text = read("config.md")
    for name, field in RunConfig.model_fields.items():
        if field.exclude:
            continue
        annotation = field.annotation
        model = getattr(annotation, "__args__", (annotation,))[0]
        fields = getattr(model, "model_fields", {})
        inner = [key for key, inner_field in fields.items() if not inner_field.exclude]
        expected = [f"`{name}.{key}`" for key in inner] if inner else [f"`{name}`"]
        assert not [key for key in expected if key not in text]


def test_every_site_is_in_the_reference_and_every_path_of_the_page_is_one():
    page = read("paths.md")
    table = section("\n" + page.replace("# Paths", "## Paths", 1), "Paths")
    paths = re.findall(r"^\| `((?:student|teacher)[^`]*)`", table, re.MULTILINE)
    assert len(paths) >= 8
    for path in paths:
        parse_path(path.replace("\\|", "|"), "page")
    rows = re.findall(r"^\| `(\w+)` \| `\[", section(page, "Sites"), re.MULTILINE)
    assert rows == list(SITES)


@pytest.mark.parametrize(
    "module", ["gkd_core", "gkd_core.api", "gkd_core.losses", "gkd_core.testing"]
)
def test_every_public_name_is_in_the_reference(module):
    written = "".join(read(page) for page in ("api.md", "losses.md", "hooks.md"))
    public = importlib.import_module(module).__all__
    assert not [name for name in public if not re.search(rf"`@?([\w.]+\.)?{name}`", written)]
    assert not re.search(r"^\| `.*` \|  \|$", written, re.MULTILINE)


def test_every_name_of_the_api_is_documented_once():
    written = "".join(read(page) for page in ("api.md", "losses.md"))
    directives = re.findall(r"^\.\. auto\w+:: gkd_core\.api\.(\w+)$", written, re.MULTILINE)
    assert sorted(directives) == api.__all__


def assert_page_is_complete(folder, name, cls, options):
    """Check a page of the reference: its parts, the paper, every option, and what lists it."""
    text = read(f"{folder}/{name}.md")
    generated, closed, _ = text.partition(
        f"<!-- generated: {folder.removesuffix('s')} {name} -->\n"
    )[2].partition("<!-- end -->\n")
    assert closed
    assert "$$" in text
    assert "## When to use it" in text
    assert "## What differs from the paper" in text
    assert cls.paper.partition(",")[0] in generated
    assert all(f"`{options}.{option}`" in generated for option in cls.Config.model_fields)
    for index in (read(f"{folder}/index.md"), (DOCS / "paper-index.md").read_text()):
        assert f"[`{name}`](" in index


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_with_formula_options_and_paper(name):
    assert_page_is_complete("methods", name, registry().method(name), name)


@pytest.mark.parametrize("name", COMBINERS)
def test_every_combiner_has_a_page_with_formula_options_and_paper(name):
    assert_page_is_complete("combiners", name, registry().combiners[name], name)


@pytest.mark.parametrize("name", sorted(registry().procedures))
def test_every_procedure_has_a_page_with_formula_options_and_paper(name):
    assert_page_is_complete("procedures", name, registry().procedure(name), "procedure")


def test_every_method_page_belongs_to_a_method():
    pages = {page.stem for page in (DOCS / "reference" / "methods").glob("*.md")} - {"index"}
    assert pages == set(METHODS)
