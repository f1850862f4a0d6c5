"""`gkd methods`."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, get_args

import click

from gkd_core.cli.entries import entries, reason, summary

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType

    from gkd_core.contract.combiner import TeacherCombiner
    from gkd_core.contract.method import Method
    from gkd_core.contract.method_base import MethodBase
    from gkd_core.contract.model_info import Models
    from gkd_core.contract.step import Step

PATH = re.compile(
    r"(?P<model>\w+)(?:\[\w+\])?(?:@[\w-]+)?\.(?P<site>\w+)(?:\[(?P<layers>[^\]]*)\])?(?P<rest>.*)"
)
STUDENT_LAYERS, TEACHER_LAYERS = 6, 12


@click.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods and combiners, or show one with its options."""
    from rich.console import Console

    from gkd_core.plugins import registry

    console = Console(highlight=False)
    if name is None:
        _list(console)
    elif name in registry().combiners:
        _show_combiner(console, registry().combiners[name])
    else:
        _show(console, registry().method(name))


def _list(console: Console) -> None:
    from gkd_core.plugins import registry

    found = registry()
    packages: dict[str, list[type[Method]]] = {}
    for name, method in found.methods.items():
        packages.setdefault(found.provider(name).release, []).append(method)
    for package, members in packages.items():
        console.print(package, style="bold", markup=False)
        console.print(_entries(members))
        console.print()
    if found.combiners:
        console.print("combiners of several teachers", style="bold")
        console.print(_combiners(found.combiners.values()))
        console.print()
    console.print("Combine them: gkd run --method pkd+soft\nOptions:      gkd methods NAME")


def _entries(methods: Iterable[type[Method]]) -> RenderableType:
    """Return an entry per method: what it computes, where it was published, what it reads."""
    from gkd_core.analysis.explanation import short_reference

    def describe(one: type[Method]) -> tuple[str, str]:
        return summary(one), f"{short_reference(one.paper)}; reads {_sites(one)}"

    return entries(methods, describe)


def _combiners(combiners: Iterable[type[TeacherCombiner]]) -> RenderableType:
    """Return an entry per combiner: how it weights the teachers and where it was published."""
    from gkd_core.analysis.explanation import short_reference

    return entries(combiners, lambda one: (summary(one), short_reference(one.paper)))


def _show(console: Console, method: type[Method]) -> None:
    _print_head(console, method)
    console.print(_facts(method))
    print_options(console, method.name, method.Config)


def _show_combiner(console: Console, combiner: type[TeacherCombiner]) -> None:
    from rich.table import Table

    _print_head(console, combiner)
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("use", f"--method '{combiner.name}(soft)+hard'")
    table.add_row("kinds", ", ".join(combiner.kinds))
    table.add_row("labels", "needed" if combiner.needs_labels else "not needed")
    console.print(table)
    print_options(console, combiner.name, combiner.Config)


def _print_head(console: Console, cls: type[MethodBase]) -> None:
    from gkd_core.plugins import registry

    console.print(f"[bold]{cls.name}[/]  ({registry().provider(cls.name).release})")
    console.print(cls.paper, markup=False)
    print_docstring(console, cls)


def print_docstring(console: Console, cls: type) -> None:
    """Print the docstring of a class, wrapped to the width of the terminal."""
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        console.print()
        console.print(_reflowed(paragraph, console.width), markup=False)
    console.print()


def print_options(console: Console, table: str, options: type[BaseModel]) -> None:
    """Print options with their defaults and descriptions.

    Args:
        console: Where to print.
        table: The table of a run file that they are in.
        options: The options.
    """
    console.print()
    if options.model_fields:
        console.print("Options, set with --set", style="bold")
        console.print(_options(table, options))
    else:
        console.print("It has no options.")


def _facts(method: type[Method]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from gkd_core.runs.token_checks import tokenizer_need

    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    reads = _told(method, lambda: _layers(method))
    example = f"(student of {STUDENT_LAYERS} blocks, teacher of {TEACHER_LAYERS})"
    table.add_row("reads", Text(f"{reads}\n{example}"))
    changes = _told(method, lambda: map(str, method().writes(*_example())))
    if changes:
        table.add_row("changes", Text(changes))
    table.add_row("kinds", ", ".join(method.kinds))
    table.add_row("labels", "needed" if method.needs_labels else "not needed")
    table.add_row("teacher", "none" if method.teachers == "none" else "one, or each of several")
    table.add_row("tokenizer", _told(method, lambda: [tokenizer_need(method)]))
    table.add_row("text", "the student's own (rollout.student)" if method.on_policy else "any")
    coupled = "depend on each other" if method.batch_coupled else "independent of each other"
    least = f", {method.min_samples} or more at a time" if method.min_samples > 1 else ""
    table.add_row("samples", f"{coupled}{least}")
    return table


def _told(method: type[Method], tell: Callable[[], Iterable[str]]) -> str:
    """Return the declarations of a method, one line each, or the reason that it cannot be read."""
    try:
        return "\n".join(tell())
    except Exception as error:
        return reason(method, error)


def _options(table_name: str, options: type[BaseModel]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for setting, description in _settings(table_name, options):
        table.add_row(Text(f"  {setting}"), Text(description))
    return table


def _settings(prefix: str, options: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield `name = default` and the description of each option, including tables in lists."""
    from pydantic import BaseModel, TypeAdapter

    for name, field in options.model_fields.items():
        parts = get_args(field.annotation)
        table = next((p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)), None)
        if table is not None:
            yield f"{prefix}.{name} = [...]", field.description or ""
            yield from _settings(f"{prefix}.{name}.0", table)
            continue
        default = field.get_default(call_default_factory=True)
        default = TypeAdapter(type(default)).dump_python(default, mode="json")
        shown = default if isinstance(default, str) else json.dumps(default)
        yield f"{prefix}.{name} = {shown}", field.description or ""


def _reflowed(paragraph: str, width: int) -> str:
    """Rewrap a paragraph to the terminal width, unless it has indented lines."""
    lines = paragraph.splitlines()
    indented = any(line.startswith((" ", "- ", "* ")) for line in lines)
    return paragraph if indented else textwrap.fill(" ".join(lines), width)


def _sites(method: type[Method]) -> str:
    """Return the sites read, without layers, such as `hidden|cls of student and teacher`."""
    models: dict[str, list[str]] = {}
    for model, site, _, rest in _reads(method):
        readers = models.setdefault(f"{site}{rest}", [])
        if model not in readers:
            readers.append(model)
    return ", ".join(f"{site} of {' and '.join(m)}" for site, m in models.items()) or "nothing"


def _layers(method: type[Method]) -> Iterator[str]:
    """Yield the sites read, with all layers of a site combined."""
    layers: dict[tuple[str, str, str], list[str]] = {}
    for model, site, layer, rest in _reads(method):
        layers.setdefault((model, site, rest), []).extend([layer] if layer else [])
    for (model, site, rest), numbers in layers.items():
        index = f"[{','.join(numbers)}]" if numbers else ""
        yield f"{model}.{site}{index}{rest}"


def _reads(method: type[Method]) -> Iterator[tuple[str, str, str, str]]:
    """Yield model, site, layers and remainder of each path, for the example models."""
    for path in method().reads(*_example()):
        found = PATH.fullmatch(path)
        if found is not None:
            yield found["model"], found["site"], found["layers"] or "", found["rest"]


def _example() -> tuple[Models, Step]:
    """Return example models and the first step of their training."""
    import torch

    from gkd_core.contract.model_info import ModelInfo, Models
    from gkd_core.contract.step import Step

    def info(name: str, layers: int) -> ModelInfo:
        return ModelInfo(name, "bert", layers, 768, 12, 12, 64, 3072, 30522, 2, 512)

    models = Models(info("student", STUDENT_LAYERS), info("teacher", TEACHER_LAYERS))
    return models, Step(0, 1, 0, "distil", torch.Generator())
