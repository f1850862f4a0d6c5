"""`gkd cache`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.numeric import RealRange, WholeRange
from gkd_core.cli.options import RunOptions, file_options, show_warnings
from gkd_core.named_path import named_path

if TYPE_CHECKING:
    from gkd_core.teachers.answer_cache import CacheManifest
    from gkd_core.teachers.answer_form import FormName, StoredType


@click.command()
@file_options
@click.option(
    "--teacher", multiple=True, help="Directory or hub id; only the first teacher is asked."
)
@click.option("--data", multiple=True, metavar="PATH[:WEIGHT]", help="Training rows, as for a run.")
@click.option("--output", required=True, help="Directory for the answers.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp16",
    show_default=True,
    help="Data type of the stored values.",
)
@click.option(
    "--form",
    type=click.Choice(["hidden", "logits", "top-k"]),
    help="Form in which the logits are stored. Default: hidden for a language model, logits for "
    "others.",
)
@click.option(
    "--k",
    type=WholeRange(1),
    help="Number of likeliest words to store for each token. Default: 64.",
)
@click.option(
    "--temperature",
    type=RealRange(0, min_open=True),
    help="Divisor of the logits for top-k: the temperature of the method that learns. Default: 1.",
)
def cache(
    files: tuple[Path, ...],
    settings: tuple[str, ...],
    teacher: tuple[str, ...],
    data: tuple[str, ...],
    output: str,
    dtype: StoredType,
    form: FormName | None,
    k: int | None,
    temperature: float | None,
) -> None:
    """Store a teacher's answers to the training rows.

    Runs with --teacher-cache learn from them without the teacher. For a language model, the cache
    holds the input of the head at each token and the head itself, or, with --form top-k, the
    likeliest words. For a classifier, it holds the logits. Repeat the command after an interruption
    to add what is missing.
    """
    from gkd_core.lease import hold
    from gkd_core.plugins import registry
    from gkd_core.runs.answer_cache import Storage, write_cache
    from gkd_core.runs.run import prepare_run

    flags: dict[str, Any] = {"data": data, "teacher": teacher}
    resolved = RunOptions(
        files, None, ("method=soft", "baseline=false", *settings), flags
    ).resolve()
    show_warnings(resolved)
    spec = prepare_run(resolved, registry())[-1]
    folder = named_path(output)
    for flag, value in (("--k", k), ("--temperature", temperature)):
        if value is not None and form != "top-k":
            raise click.UsageError(f"{flag} is an option of --form top-k")
    storage = Storage(dtype, form, k or Storage.k, temperature or Storage.temperature)
    with hold(folder):
        manifest = write_cache(spec, registry(), folder, storage, click.echo)
    click.echo(_summary(manifest, folder))


def _summary(manifest: CacheManifest, folder: Path) -> str:
    """Return what is stored, and how near it is to what was computed."""
    parts, unit = manifest.parts, manifest.answers.unit
    size = sum((folder / part.name).stat().st_size for part in parts)
    values = sum(part.values for part in parts)
    divergence = sum(part.values * part.divergence for part in parts) / values
    summary = (
        f"{folder}: {manifest.form} of {sum(part.documents for part in parts):,} texts, "
        f"{manifest.dtype}, {size / values:,.0f} bytes per {unit}; KL to what was computed: "
        f"{divergence:.1e} nats per {unit}"
    )
    if manifest.k is None:
        return summary
    tail = sum(part.values * part.tail for part in parts) / values
    return f"{summary}; words beyond the {manifest.k} likeliest have {tail:.1%} of the probability"
