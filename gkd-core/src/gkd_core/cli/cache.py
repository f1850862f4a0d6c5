"""`gkd cache`."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.errors import FAILURE, INTERRUPTED, RESUMABLE
from gkd_core.cli.launching import launch_options, make_launcher, share_of, stoppable
from gkd_core.cli.numeric import RealRange, WholeRange
from gkd_core.cli.options import RunOptions, file_options, show_warnings
from gkd_core.named_path import named_path

if TYPE_CHECKING:
    from gkd_core.contract.launcher import Launcher
    from gkd_core.launchers.shard import Shard
    from gkd_core.runs.answer_cache import BegunCache
    from gkd_core.teachers.answer_cache import CacheManifest
    from gkd_core.teachers.answer_form import FormName, StoredType
    from gkd_core.training.stage_spec import StageSpec


@click.command()
@file_options
@click.option(
    "--method",
    default="soft",
    show_default=True,
    help="Methods that will learn: what they read of the teacher is stored.",
)
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
    type=click.Choice(["hidden", "logits", "top-k", "states"]),
    help="Form of the answers. Default: states if the methods read more than the logits; otherwise "
    "hidden for a language model, logits for others.",
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
@click.option(
    "--cells",
    type=WholeRange(1),
    help="Cells that divide the shards; each loads the teacher. [one for each shard]",
)
@launch_options(None)
def cache(
    cells: int | None,
    launcher: str | None,
    options: tuple[str, ...],
    jobs: int | None,
    threads: int | None,
    shard: str | None,
    shards: int | None,
    **about: Any,
) -> None:
    """Store a teacher's answers to the training rows.

    Runs with --teacher-cache learn from them without the teacher. For a language model, the cache
    holds the input of the head at each token and the head itself, or, with --form top-k, the
    likeliest words. For a classifier, it holds the logits. With --method, it also holds the hidden
    states and attention that the method reads. Repeat the command after an interruption to add what
    is missing. Several commands can write one cache at once, also on machines that share the
    directory: each shard is written by one of them. --launcher starts such processes.
    """
    answers = _Answers(**about)
    answers.check()
    for flag, given in (("--cells", cells), ("--jobs", jobs), ("--threads", threads)):
        if given is not None and launcher is None:
            raise click.UsageError(f"{flag} is about the cells of a --launcher: name one")
    share = share_of(shard, shards)
    with stoppable():
        if launcher is None:
            answers.write(share)
        else:
            answers.launch(make_launcher(launcher, options), share, cells, jobs, threads)


@dataclass(frozen=True)
class _Answers:
    """What the command was given about the answers to write, by the names of its parameters."""

    files: tuple[Path, ...]
    settings: tuple[str, ...]
    method: str
    teacher: tuple[str, ...]
    data: tuple[str, ...]
    output: str
    dtype: StoredType
    form: FormName | None
    k: int | None
    temperature: float | None

    def check(self) -> None:
        """Refuse options of a form that is not asked for."""
        for flag, value in (("--k", self.k), ("--temperature", self.temperature)):
            if value is not None and self.form != "top-k":
                raise click.UsageError(f"{flag} is an option of --form top-k")

    def write(self, share: Shard) -> None:
        """Write a share of the shards in this process."""
        from gkd_core.plugins import registry
        from gkd_core.runs.answer_cache import write_cache

        spec = self._spec()
        begun = self._begin(spec, spec.config.parallel.device)
        write_cache(spec, registry(), begun, click.echo, share)
        is_mine = share.of(range(begun.manifest.shards), str)
        _end(begun, {RESUMABLE} if begun.progress.left.intersection(is_mine) else {0})

    def launch(
        self,
        launcher: Launcher,
        share: Shard,
        cells: int | None,
        jobs: int | None,
        threads: int | None,
    ) -> None:
        """Write a share of the shards in cells."""
        from gkd_core.runs.answer_cells import Cells, launch_cells

        launcher.check()
        spec = self._spec()
        device = spec.config.parallel.device.replace("cuda", "auto")  # there may be none here
        begun = self._begin(spec, device)
        divided = Cells(self._command(), share, cells, jobs, threads)
        _end(begun, launch_cells(spec, begun, divided, launcher, click.echo))

    def _spec(self) -> StageSpec:
        from gkd_core.plugins import registry
        from gkd_core.runs.run import prepare_run

        flags: dict[str, Any] = {"data": self.data, "teacher": self.teacher}
        settings = (f"method={self.method}", "baseline=false", *self.settings)
        resolved = RunOptions(self.files, None, settings, flags).resolve()
        show_warnings(resolved)
        return prepare_run(resolved, registry())[-1]

    def _begin(self, spec: StageSpec, device: str) -> BegunCache:
        from gkd_core.distributed.device import pick_device
        from gkd_core.runs.answer_cache import BegunCache
        from gkd_core.runs.answer_storage import Storage

        k, temperature = self.k or Storage.k, self.temperature or Storage.temperature
        storage = Storage(self.dtype, self.form, k, temperature)
        begun = BegunCache.begin(
            spec, named_path(self.output), storage, pick_device(device), click.echo
        )
        click.echo(str(begun.progress))
        return begun

    def _command(self) -> tuple[str, ...]:
        """Return the command that writes all shards in one process."""
        own = {field.name for field in fields(self)}
        named = [(each, getattr(self, each.name)) for each in cache.params if each.name in own]
        given = (part for parameter, value in named for part in _typed(parameter, value))
        return (sys.executable, "-m", "gkd_core.cli", "cache", *given)


def _typed(parameter: click.Parameter, value: Any) -> Iterator[str]:
    """Yield a parameter of a command as it is typed; nothing if it has no value."""
    for one in value if isinstance(value, tuple) else (value,):
        if one is not None:
            yield from parameter.opts[:1] if isinstance(parameter, click.Option) else ()
            yield str(one)


def _end(begun: BegunCache, statuses: Collection[int]) -> None:
    """Say what is stored, or how far it is.

    Args:
        begun: The cache.
        statuses: The exit statuses of those who wrote it.

    Raises:
        SystemExit: Somebody failed, or is still writing what this command was to write.
    """
    manifest = begun.finish()
    if manifest.is_finished:
        click.echo(_summary(manifest, begun.folder))
        return
    click.echo(str(begun.progress))
    if any(status not in (0, RESUMABLE, INTERRUPTED) for status in statuses):
        sys.exit(FAILURE)
    if any(statuses):
        sys.exit(RESUMABLE)


def _summary(manifest: CacheManifest, folder: Path) -> str:
    """Return a summary of the stored answers and their accuracy."""
    from gkd_core.hooks.paths import LOGITS

    parts, unit = manifest.parts, manifest.answers.unit
    size = sum((folder / part.name).stat().st_size for part in parts)
    values = sum(part.values for part in parts)
    found = [
        f"{folder}: {manifest.form} of {sum(part.documents for part in parts):,} texts, "
        f"{manifest.dtype}, {size / values:,.0f} bytes per {unit}"
    ]
    if LOGITS in manifest.answers.captures:
        divergence = sum(part.values * part.divergence for part in parts) / values
        found += [f"KL to what was computed: {divergence:.1e} nats per {unit}"]
    if manifest.captures is not None:
        error = max(part.error for part in parts)
        found += [f"{error:.1e} of a tensor is lost at most"]
    if manifest.k is not None:
        tail = sum(part.values * part.tail for part in parts) / values
        found += [f"words beyond the {manifest.k} likeliest have {tail:.1%} of the probability"]
    return "; ".join(found)
