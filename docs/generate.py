"""Reference pages written from the code: `make reference`, or `python docs/generate.py`.

What stands in a page between `<!-- generated: NAME ARGUMENT -->` and `<!-- end -->` is what the
function NAME here returns, so that no list of commands, settings, hooks or options is kept by hand.
The pages are committed, for readers of the repository; `--check` fails if one is stale.
"""

from __future__ import annotations

import argparse
import ast
import csv
import inspect
import os
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from gkd_core import hookspecs
from gkd_core.api import Method, Procedure
from gkd_core.benchmarks.benchmark import Benchmark
from gkd_core.cli import gkd
from gkd_core.config.render import json_schema
from gkd_core.config.schema import RunConfig
from gkd_core.contract.method_base import MethodBase
from gkd_core.contract.model_info import ModelInfo, Predicted
from gkd_core.hooks.paths import LAYERED_SITES, REDUCERS, REDUCIBLE_SITES, SITES, Capture
from gkd_core.plugins import DISABLE, registry
from gkd_core.runs.token_checks import tokenizer_need
from gkd_core.studies.study_config import StudyConfig

DOCS = Path(__file__).resolve().parent
PACKAGES = {folder.name for folder in DOCS.parent.glob("gkd-*")}
OPENING = "<!-- generated: "
BLOCK = re.compile(
    rf"^(?P<mark>{OPENING}(?P<name>\w+)(?: (?P<argument>\S+))? -->)\n"
    rf"(?:(?!{OPENING}).*\n)*?"
    r"(?P<end><!-- end -->)$",
    re.MULTILINE,
)
AUTODOC = re.compile(
    r"^\.\. auto(?:class|function|data):: (?P<name>\S+)$(?P<options>(?:\n +:.*$)*)", re.MULTILINE
)
SPECIAL = re.compile(r"([\\*<>$]|\b_|_\b)")
ARGUMENT = re.compile(r"^(\w+): ", re.MULTILINE)
ARXIV = re.compile(r"arXiv:(\d+\.\d+)")
DOI = re.compile(r"doi:(\S+)")
PART = re.compile(r", section .*$")
"""Which part of a paper a method is from."""

WIDTH = 80
"""Columns of a usage line, whatever terminal the pages are written from."""


def main() -> int:
    """Write the pages, or with `--check` name the stale ones; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the reference pages from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one is stale")
    parser.add_argument("folder", nargs="?", type=Path, default=DOCS, help="default: %(default)s")
    arguments = parser.parse_args()
    os.environ[DISABLE] = ",".join(_strangers())
    stale = {}
    for page in sorted(arguments.folder.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (current := write_blocks(text, page)) != text:
            stale[page] = current
    if arguments.check:
        return _report(stale)
    for page, text in stale.items():
        page.write_text(text, encoding="utf-8")
    return 0


def write_blocks(text: str, page: Path) -> str:
    """Return the text of a page with its generated parts as the code is now."""
    written, count = BLOCK.subn(_write, text)
    if count != text.count(OPENING):
        raise SystemExit(f"{page}: a `{OPENING}... -->` is not closed by its own `<!-- end -->`")
    return written


def commands() -> str:
    """Every command with its arguments and options."""
    context = click.Context(gkd, info_name="gkd")
    found = ((name, gkd.get_command(context, name)) for name in gkd.list_commands(context))
    return "\n".join(line for name, command in found for line in _command(name, command))


def settings() -> str:
    """Every setting of a run file, by table."""
    schema = _schema()
    owners = set(registry().options)
    top = {
        name: {"description": "A table, or the name of a model alone."} | field
        for name, field in schema["properties"].items()
        if name not in owners and "$ref" not in field
    }
    lines = ["## Top level", "", *_settings(top, schema), ""]
    for name, table, heading in _tables(schema):
        lines += [f"## `{heading}`", "", table["description"], ""]
        # The options of optimizers are on a page of their own.
        own = {n: field for n, field in table["properties"].items() if "properties" not in field}
        lines += [*_settings(own, schema, name), ""]
        if name == "tracking":
            lines += _tracker_options(table, schema)
    return "\n".join(lines)


def _tracker_options(table: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options of each tracker that has some."""
    for name in registry().sinks:
        options = table["properties"][name]["properties"]
        if options:
            yield from (f"### `[tracking.{name}]`", "")
            yield from (*_settings(options, schema, f"tracking.{name}"), "")


def study() -> str:
    """Every key of a study file, by table."""
    schema = StudyConfig.model_json_schema()
    lines = ["## Top level", "", *_settings(schema["properties"], schema), ""]
    for heading, table in (("[tune]", "TuneConfig"), ("[[constraints]]", "Constraint")):
        own = schema["$defs"][table]
        lines += [f"## `{heading}`", "", own["description"], ""]
        lines += [*_settings(own["properties"], schema), ""]
    return "\n".join(lines)


def hooks() -> str:
    """Every hook with its signature, in the order they are called."""
    found = [value for name, value in vars(hookspecs).items() if name.startswith("gkd_")]
    return "\n".join(line for hook in found for line in _hook(hook))


def names(section: str) -> str:
    """Every name that autodoc directives of a section document, with its docstring's first line."""
    rows = [row for directive in AUTODOC.finditer(section) for row in _documented(directive)]
    return "\n".join(_table(["name", "what it is"], rows))


def sites() -> str:
    """Every site a path can name, with the shape of its tensor."""
    return "\n".join(_table(["site", "shape", "layers", "reducers"], map(_site, SITES)))


def method(name: str) -> str:
    """What one method declares: paper, package, facts and options."""
    cls = registry().method(name)
    provider = registry().provider(name)
    facts = [
        ["paper", _paper(cls.paper)],
        ["package", f"`{provider.distribution}`"],
        ["labels", "needed" if cls.needs_labels else "not needed"],
        ["teacher", "none" if cls.teachers == "none" else "one; asked for each if there are more"],
        ["tokenizer of a teacher", tokenizer_need(cls)],
        ["samples", _samples(cls)],
        *([["text", "the student's own (`rollout.student`)"]] if cls.on_policy else []),
    ]
    table = [*_table(["fact", "value"], facts), "", *_lost(name, "../../")]
    return "\n".join([*table, *_options(name)])


def methods() -> str:
    """Every method in one line each."""
    return "\n".join(_index(registry().methods, "method"))


def combiner(name: str) -> str:
    """What one combiner of teachers declares: paper, package, facts and options."""
    cls = registry().combiners[name]
    provider = registry().provider(name)
    facts = [
        ["paper", _paper(cls.paper)],
        ["package", f"`{provider.distribution}`"],
        ["labels", "needed" if cls.needs_labels else "not needed"],
        ["samples", "depend on each other" if cls.batch_coupled else "independent"],
    ]
    table = [*_table(["fact", "value"], facts), "", *_lost(name, "../../")]
    return "\n".join([*table, *_options(name)])


def combiners() -> str:
    """Every combiner in one line each."""
    return "\n".join(_index(registry().combiners, "combiner"))


def procedure(name: str) -> str:
    """What one procedure declares: paper, what it does, options."""
    cls = registry().procedure(name)
    schema = cls.Config.model_json_schema()
    text = inspect.getdoc(cls) or ""
    lines = [*_table(["fact", "value"], [["paper", _paper(cls.paper)]]), "", _escape(text)]
    if schema["properties"]:
        lines += ["", "## Options", "", *_settings(schema["properties"], schema, "procedure")]
    for option, entries in _lists_of_tables(schema["properties"], schema):
        lines += ["", f"An entry of `procedure.{option}`, counted from 0:", ""]
        lines += _settings(entries, schema, f"procedure.{option}.0")
    return "\n".join(lines)


def families() -> str:
    """What each family of models can be used for, as tests find it: `families.toml`."""
    table = tomllib.loads((DOCS / "reference" / "families.toml").read_text(encoding="utf-8"))
    uses, families = table["uses"], table["families"].values()
    refused = [family.get("refused", {}) for family in families]
    reasons = list(dict.fromkeys(reason for row in refused for reason in row.values()))
    rows = []
    for family, row in zip(families, refused, strict=True):
        found = (row.get(use, row.get("all")) for use in uses)
        cells = (f"no ({reasons.index(reason) + 1})" if reason else "yes" for reason in found)
        rows.append([family["title"], *cells])
    meaning = _table(["use", "what is tried"], ([f"`{use}`", uses[use]] for use in uses))
    grid = _table(["family", *(f"`{use}`" for use in uses)], rows)
    notes = (f"{number}. {_escape(reason)}" for number, reason in enumerate(reasons, 1))
    return "\n".join([*meaning, "", *grid, "", "What is refused says:", "", *notes])


def kinds() -> str:
    """Every kind of task in one line each."""
    rows = []
    for kind in registry().kinds.values():
        metrics = (f"**{m}**" if m == kind.metric.name else m for m in kind.metrics)
        first = _escape(_first_line(type(kind)))
        rows.append([f"`{kind}`", first, f"`{kind.auto.__name__}`", ", ".join(metrics)])
    return "\n".join(_table(["`task.kind`", "what is predicted", "model", "metrics"], rows))


def benchmarks() -> str:
    """Every task of a benchmark in one line each."""
    rows = []
    for name, cls in registry().tasks.items():
        if issubclass(cls, Benchmark):
            files = [file for names in cls.layouts[0].values() for file in names]
            form = [f"`{cls.pattern}`" if cls.pattern else "", ", ".join(cls.words)]
            row = [f"`{name}`", _escape(_first_line(cls)), f"`{cls.as_encoder}`"]
            row += [", ".join(map(_escape, cls.official)), str(cls.max_length), ", ".join(files)]
            rows.append([*row, *form])
    heads = ["task", "what is predicted", "`task.kind`", "metrics", "tokens", "files"]
    heads += ["cloze", "words"]
    return "\n".join(_table(heads, rows))


def procedures() -> str:
    """Every procedure in one line each."""
    return "\n".join(_index(registry().procedures, "procedure"))


def optimizers() -> str:
    """Every optimizer with its facts and options."""
    schema = _schema()
    tables = schema["$defs"]["OptimConfig"]["properties"]
    lines = []
    for name, cls in registry().optimizers.items():
        zero = "0 to 3" if cls.elementwise else "0 to 2, without offloading"
        facts = [["paper", _paper(cls.paper)], ["ZeRO", zero]]
        lines += [f"## {name}", "", _escape(inspect.getdoc(cls) or ""), ""]
        lines += [*_table(["fact", "value"], facts), ""]
        options = tables[name].get("properties", {})
        if options:
            lines += [*_settings(options, schema, f"optim.{name}"), ""]
    return "\n".join(lines)


def _index(owners: Mapping[str, type[MethodBase] | type[Procedure]], kind: str) -> Iterable[str]:
    rows = (
        [f"[`{name}`]({name}.md)", _escape(_first_line(cls)), _paper(cls.paper)]
        for name, cls in owners.items()
    )
    return _table([kind, "what it is", "paper"], rows)


@cache
def _schema() -> dict[str, Any]:
    return json_schema(registry())


def _options(name: str) -> list[str]:
    """Return the section on the options of a method or combiner."""
    schema = _schema()
    options = schema["properties"][name]["properties"]
    table = _settings(options, schema, name) if options else ["It has no options."]
    lines = ["## Options", "", *table]
    for option, entries in _lists_of_tables(options, schema):
        lines += ["", f"An entry of `{name}.{option}`, counted from 0:", ""]
        lines += _settings(entries, schema, f"{name}.{option}.0")
    return lines


def papers() -> str:
    """Every paper, with what of gkd implements it and what was measured of its recipes."""
    found: dict[str, dict[str, list[str]]] = {}
    for paper, kind, entry in _implementations():
        found.setdefault(PART.sub("", paper), {}).setdefault(kind, []).append(entry)
    measured = {line["recipe"]: line for line in _measured()}
    rows = []
    for paper, entries in found.items():
        own, names = entries.get("plugin", []), entries.get("recipe", [])
        values = [_result(measured[name]) for name in names if name in measured]
        recipes = [f"[`{name}`](reference/recipes.md#{name})" for name in names]
        rows.append([_paper(paper), ", ".join(own), ", ".join(recipes), "; ".join(values)])
    head = ["paper", "in gkd", "recipe", "labels only → recipe"]
    return "\n".join(_table(head, sorted(rows)))


def _implementations() -> Iterator[tuple[str, str, str]]:
    """Yield the paper of each thing that has one, whether it is a recipe, and what shows it."""
    from gkd_core.config.settings import read_file

    plugins = registry()
    for name, path in plugins.recipes.items():
        told = {setting.key: setting.value for setting in read_file(path)}
        yield told["paper",], "recipe", name
    groups: Mapping[str, Mapping[str, Any]] = {
        "method": plugins.methods,
        "combiner": plugins.combiners,
        "procedure": plugins.procedures,
    }
    for kind, classes in groups.items():
        for name, cls in classes.items():
            yield cls.paper, "plugin", f"{kind} [`{name}`](reference/{kind}s/{name}.md)"
    for name, optimizer in plugins.optimizers.items():
        link = f"[`{name}`](reference/optimizers.md#{name})"
        yield optimizer.paper, "plugin", f"optimizer {link}"


def measured_recipes() -> str:
    """What was measured of each recipe on the embedded task, the best first."""
    lines = sorted(_measured(), key=_rank)
    missing = sorted(set(registry().recipes) - {line["recipe"] for line in lines})
    head = ["recipe", "metric", "labels only", "recipe's student", "95% interval", "teacher"]
    rows = (
        [
            f"[`{line['recipe']}`](../reference/recipes.md#{line['recipe']})",
            line["metric"],
            line["labels"],
            f"**{line['student']}**",
            f"{line['low']} to {line['high']}" if line["low"] else "",
            line["teacher"],
        ]
        for line in lines
    )
    table = [*_table(head, rows)]
    if missing:
        table += ["", f"Not measured yet: {', '.join(f'`{name}`' for name in missing)}."]
    return "\n".join(table)


def _measured() -> list[dict[str, str]]:
    """Return what `measured_recipes.py` has written."""
    table = DOCS / "explanation" / "recipes-measured.csv"
    with table.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def _lost(recipe: str, docs: str) -> list[str]:
    """Return a paragraph on a recipe that was measured to be below labels alone, else nothing.

    Args:
        recipe: Its name; there may be no such recipe.
        docs: The way from the page to the folder of all pages.
    """
    found = [line for line in _measured() if line["recipe"] == recipe]
    if not found or recipe == "hard":  # which learns from labels alone, too
        return []
    (line,) = found
    sign = -1 if line["metric"] == "perplexity" else 1
    if sign * (float(line["student"]) - float(line["labels"])) >= 0:
        return []
    text = (
        f"On the embedded task, the student of the recipe `{recipe}` did not beat labels alone: "
        f"{line['metric']} {line['student']} against {line['labels']} with one seed; 95% interval "
        f"of the difference: {line['low']} to {line['high']} "
    )
    source = f"([all measurements]({docs}explanation/measurements.md#every-recipe))."
    return [*textwrap.wrap(text, 120), source, ""]


def _rank(line: Mapping[str, str]) -> tuple[str, float]:
    value = float(line["student"])
    return line["metric"], value if line["metric"] == "perplexity" else -value


def _result(line: Mapping[str, str]) -> str:
    unit = "" if line["metric"] == "accuracy" else f" ({line['metric']})"
    return f"`{line['recipe']}`: {line['labels']} → **{line['student']}**{unit}"


def recipes() -> str:
    """Every recipe as it is shipped."""
    lines = []
    for name, path in registry().recipes.items():
        lines += [f"## {name}", "", *_lost(name, "../")]
        lines += ["```toml", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


GENERATORS: Mapping[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        commands,
        settings,
        study,
        hooks,
        sites,
        kinds,
        benchmarks,
        families,
        method,
        methods,
        combiner,
        combiners,
        procedure,
        procedures,
        optimizers,
        papers,
        measured_recipes,
        recipes,
    )
}


def _strangers() -> Iterator[str]:
    """Yield the other installed packages that have plugins: the pages are of this repository."""
    for plugin in entry_points(group=hookspecs.PROJECT):
        if plugin.dist.name not in PACKAGES:
            yield plugin.dist.name


def _report(stale: Iterable[Path]) -> int:
    for page in stale:
        print(f"{os.path.relpath(page)} is stale", file=sys.stderr)
    if stale:
        print("`make reference` brings pages up to date; commit what it writes", file=sys.stderr)
    return 1 if stale else 0


def _write(block: re.Match[str]) -> str:
    text = _content(block).strip()
    return f"{block['mark']}\n\n{text}\n\n{block['end']}"


def _content(block: re.Match[str]) -> str:
    """Return what belongs into a block; `names` lists what the rest of its section documents."""
    if block["name"] == names.__name__:
        return names(block.string[block.end() :].partition("\n## ")[0])
    arguments = [block["argument"]] if block["argument"] else []
    return GENERATORS[block["name"]](*arguments)


def _documented(directive: re.Match[str]) -> Iterator[list[str]]:
    """Yield a row for the name of an autodoc directive, and one for each member it shows."""
    module, _, name = directive["name"].rpartition(".")
    value = getattr(import_module(module), name)
    yield [f"`{directive['name']}`", _escape(_text_below(module, name) or _first_line(value))]
    for member in _members(value, directive["options"]):
        yield [f"`{name}.{member}`", _escape(_first_line(getattr(value, member)))]


def _members(cls: type, options: str) -> Iterable[str]:
    """Return the members that an autodoc directive shows: those it names, or all functions."""
    named = re.search(r":members:(.*)", options)
    if not named:
        return []
    if named[1].strip():
        return named[1].replace(" ", "").split(",")
    kinds = (property, cached_property, classmethod, staticmethod)
    return [
        name
        for name, value in vars(cls).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
    ]


def _text_below(module: str, name: str) -> str:
    """Return the first line of the text below an assignment, also if the name is imported."""
    body = ast.parse(inspect.getsource(import_module(module))).body
    for node, below in pairwise(body):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        assigned = [target.id for target in targets if isinstance(target, ast.Name)]
        if name in assigned and isinstance(below, ast.Expr):
            return str(ast.literal_eval(below.value)).partition("\n")[0]
    imports = (node for part in body for node in ast.walk(part) if isinstance(node, ast.ImportFrom))
    for node in imports:
        if node.module and name in [alias.asname or alias.name for alias in node.names]:
            return _text_below(node.module, name)
    return ""


def _command(name: str, command: click.Command, level: str = "##") -> Iterator[str]:
    context = click.Context(command, info_name=f"gkd {name}", terminal_width=WIDTH)
    yield from (f"{level} gkd {name}", "", "```text", command.get_usage(context), "```", "")
    yield from (_escape(inspect.cleandoc(command.help or "")), "")
    options = [p for p in command.params if isinstance(p, click.Option)]
    rows = ([f"`{_flags(option, context)}`", _escape(option.help or "")] for option in options)
    if options:
        yield from (*_table(["option", "meaning"], rows), "")
    for own, each in command.commands.items() if isinstance(command, click.Group) else ():
        if not each.hidden:
            yield from _command(f"{name} {own}", each, f"{level}#")


def _flags(option: click.Option, context: click.Context) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.make_metavar(context)}"


def _hook(hook: Callable[..., Any]) -> Iterator[str]:
    text, _, arguments = (inspect.getdoc(hook) or "").partition("\n\nArgs:\n")
    signature = str(inspect.signature(hook)).replace("'", "")
    yield from (f"## `{hook.__name__}{signature}`", "", _escape(text), "")
    if arguments:
        yield from (_escape(ARGUMENT.sub(r"- `\1`: ", textwrap.dedent(arguments))), "")


def _site(site: str) -> list[str]:
    """Return a row of the table of sites; shapes are found with a model of named sizes."""
    layered = site in LAYERED_SITES
    name = "hidden" if site == "embedding" else site
    first = 0 if site == "hidden" else 1
    return [
        f"`{site}`",
        f"`{_shape(Capture(name, 1))}`",
        f"{first} to L" if layered else "-",
        ", ".join(f"`{r}`" for r in REDUCERS) if site in REDUCIBLE_SITES else "-",
    ]


def _shape(capture: Capture) -> str:
    letters = {2: "B", 3: "S", 5: "D", 7: "A", 11: "A_kv", 13: "Dh", 17: "V", 19: "C", 91: "A*Dh"}
    letters |= {18: "A+A_kv", 29: "F"}

    def dimensions(labels: int, predicted: Predicted) -> str:
        info = ModelInfo("m", "bert", 23, 5, 7, 11, 13, 29, 17, labels, 31, predicted)
        return ", ".join(letters[size] for size in capture.shape(info, 2, 3))

    classes, tokens = dimensions(19, "sample"), dimensions(17, "token")
    return f"[{tokens}]" if classes == tokens else f"[{classes}] or [{tokens}]"


def _tables(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield the prefix of each table's settings, the table, and its heading."""
    for name, field in RunConfig.model_fields.items():
        for definition, table in schema["$defs"].items():
            if definition not in str(field.annotation):
                continue
            several = str(field.annotation).startswith("list")
            yield name, table, f"[[{name}]]" if several else f"[{name}]"


def _lists_of_tables(
    fields: Mapping[str, Any], schema: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name of each field that may be a list of tables, and the fields of such a table."""
    for name, field in fields.items():
        kinds = field.get("anyOf", [field])
        places = (kind.get("items", {}).get("$ref") for kind in kinds)
        for place in filter(None, places):
            table = schema
            for part in place.removeprefix("#/").split("/"):
                table = table[part]
            yield name, table["properties"]


def _settings(
    fields: Mapping[str, Any], schema: Mapping[str, Any], prefix: str = ""
) -> Iterable[str]:
    rows = (
        [
            f"`{prefix}.{name}`" if prefix else f"`{name}`",
            _type(field, schema),
            _default(field),
            _escape(field.get("description", "")),
        ]
        for name, field in fields.items()
    )
    return _table(["setting", "type", "default", "meaning"], rows)


def _type(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Say a JSON-schema type in words."""
    if "$ref" in field:
        return "table"
    if "anyOf" in field:
        kinds = (_type(kind, schema) for kind in field["anyOf"] if kind.get("type") != "null")
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        if "prefixItems" in field:
            return f"[{', '.join(_type(item, schema) for item in field['prefixItems'])}]"
        return f"list of {_type(field['items'], schema)}"
    name = {"string": "text", "boolean": "true or false"}.get(field["type"], field["type"])
    return name + "".join(_bounds(field))


def _bounds(field: Mapping[str, Any]) -> Iterator[str]:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    yield from (f" {sign} {field[key]:g}" for key, sign in signs.items() if key in field)


def _default(field: Mapping[str, Any]) -> str:
    value = field.get("default")
    if value in (None, "") or isinstance(value, (dict, list)):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _samples(cls: type[Method]) -> str:
    coupled = "depend on each other" if cls.batch_coupled else "independent"
    return coupled + (f", {cls.min_samples} or more at a time" if cls.min_samples > 1 else "")


def _paper(text: str) -> str:
    linked = ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return DOI.sub(r"[doi:\1](https://doi.org/\1)", linked)


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _escape(text: str) -> str:
    """Escape what Markdown would interpret, outside of `code`."""
    parts = text.split("`")
    parts[::2] = [SPECIAL.sub(r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        cells = (cell.replace("\n", " ").replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
