"""`report.html`: a finished run on one self-contained page."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_core.analysis import figures, probe_figures
from gkd_core.analysis.comparison import NONE, Compared, Comparison, Row
from gkd_core.analysis.cost import StageCost, stage_costs
from gkd_core.analysis.disagreement import Disagreement, disagreements
from gkd_core.analysis.loading_code import loading_code
from gkd_core.analysis.page import PageCell, PageLine, PageTable, render
from gkd_core.analysis.written_answers import PROMPT, in_words, measured, side_by_side
from gkd_core.atomic import write_file
from gkd_core.contract.run_info import STAGES
from gkd_core.errors import DataError
from gkd_core.evaluation.pairs import ModelPair
from gkd_core.evaluation.statistics import LEVEL, p_text
from gkd_core.probes.probe_file import PROBES, TRAINING, read_probes
from gkd_core.runs.public_names import without_folders
from gkd_core.runs.run_files import CONFIG, METRICS, REPORT
from gkd_core.training.stage_spec import BASELINE

if TYPE_CHECKING:
    from gkd_core.analysis.layer_similarity import LayerSimilarity
    from gkd_core.runs.result import StageResult
    from gkd_core.runs.run import Run
    from gkd_core.training.stage_spec import StageSpec

BENCH = ("<!-- bench -->", "<!-- end of bench -->")
"""What `gkd bench` adds to a report stands between these."""

BENCH_SECTION = "bench.html"
"""The file of a run that has it, so that a report that is written again has it too."""

SHOWN_ROWS = 8
"""Rows on which student and teacher differ that are shown."""

LONGEST_TEXT = 240
"""Characters that are shown of such a row."""


@dataclass(frozen=True)
class _Fact:
    """A number at the top of the page."""

    name: str
    value: str
    note: str


def write_report(
    run: Run,
    compared: Compared | None,
    outline: str,
    extra: Sequence[Path],
    failures: Sequence[str],
) -> Path:
    """Write the report of a run.

    Args:
        run: The finished run.
        compared: The comparison of its models, if there is one.
        outline: The outline of the run, as `gkd explain` prints it.
        extra: Files that plugins add, to be linked.
        failures: What plugins failed to do for the report.
    """
    page = render(
        "report.html.jinja",
        title=run.methods,
        source=without_folders(run.last.data.source),
        summary=_summary(run),
        failures=list(map(without_folders, failures)),
        **_compared(run, compared),
        bench=_bench(run.directory),
        snippet=_snippet(run),
        stages=_stages(run),
        stages_note="time: since the stage began or was last resumed; best: on the validation rows",
        resumed=list(_resumed(run)),
        figures=list(_figures(run)),
        links=[Path(os.path.relpath(path, run.directory)) for path in extra],
        outline=without_folders(outline),
        config=without_folders((run.directory / CONFIG).read_text()),
    )
    path = run.directory / REPORT
    write_file(path, page)
    return path


def add_bench(run: Path, section: str) -> list[Path]:
    """Put what `gkd bench` has measured into the report of a finished run.

    Args:
        run: The directory of the run.
        section: The part of the page, in place of an earlier one.

    Returns:
        The report; nothing if there is none, or one of a version that had no place for it.
    """
    path = run / REPORT
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, found, rest = page.partition(BENCH[0])
    _, end, after = rest.partition(BENCH[1])
    if not found or not end:
        return []
    write_file(run / BENCH_SECTION, section)
    write_file(path, "".join([before, BENCH[0], section, BENCH[1], after]))
    return [path]


def _bench(run: Path) -> str:
    """Return the measurements of `gkd bench` in a run's report, between its marks."""
    path = run / BENCH_SECTION
    return BENCH[0] + (path.read_text(encoding="utf-8") if path.is_file() else "") + BENCH[1]


def _summary(run: Run) -> str:
    count = len(run.results)
    seconds = sum(result.seconds for result in run.results.values() if not result.reused)
    stages = f"{count} {'stage' if count == 1 else 'stages'}"
    return f"Seed {run.resolved.config.seed}. {stages}, trained in {_duration(seconds)}."


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _compared(run: Run, compared: Compared | None) -> dict[str, Any]:
    """Return the parts of the comparison that the template needs."""
    if compared is None:
        nothing = ("facts", "models", "differences", "disagreements", "costs", "layers", "written")
        return dict.fromkeys(nothing)
    comparison, pairs = compared.comparison, list(compared.pairs.values())
    costs = stage_costs(run, comparison)
    return {
        "facts": list(_facts(run, comparison, pairs)),
        "models": _models(comparison),
        "models_note": f"{comparison.title()}; {comparison.legend()}.",
        "differences": _differences(comparison, pairs),
        "differences_note": ABOUT_DIFFERENCES,
        "quality_over_size": figures.quality_over_size(comparison),
        "costs": _costs(costs),
        "costs_unknown": _unknown(costs),
        "disagreements": _disagreements(compared),
        "layers": _layers(compared.layers),
        "written": _written(compared),
        "written_notes": [
            f"{in_words(means)}: {name}" for name, means in measured(compared.predictions).items()
        ],
    }


def _facts(run: Run, comparison: Comparison, pairs: Sequence[ModelPair]) -> Iterator[_Fact]:
    """Yield what a stranger wants to know first: how good, how small, how fast, was it worth it."""
    metric, student = comparison.metric, comparison.rows[-1]
    value = student.metrics[metric]
    kept = "" if student.kept is None else f"{student.kept:.1%} of the teacher's"
    yield _Fact(f"student's {metric}", f"{value:.4f}", kept or comparison.title())
    teacher = next((row for row in comparison.rows if row.name in _teachers(run)), None)
    if teacher is not None:
        share = student.parameters / teacher.parameters
        yield _Fact("size", f"{share:.0%}", "of the teacher's weights")
        yield from _speed(student, teacher)
    baseline = next((row for row in comparison.rows if row.model == _baseline(run)), None)
    if baseline is not None:
        gain = value - baseline.metrics[metric]
        found = next((p.difference for p in pairs if p.against == baseline.name), None)
        interval = None if found is None else found.interval
        sure = "" if interval is None else f"; {LEVEL:.0%} from {interval:+.4f}"
        yield _Fact("gained by distillation", f"{gain:+.4f}", f"over labels alone{sure}")


def _speed(student: Row, teacher: Row) -> Iterator[_Fact]:
    if student.milliseconds and teacher.milliseconds:
        factor = teacher.milliseconds / student.milliseconds
        yield _Fact("speed", f"{factor:.1f}x", "the teacher's, one sample at a time")


def _teachers(run: Run) -> list[str]:
    return [teacher.called for teacher in run.teachers]


def _baseline(run: Run) -> str | None:
    result = run.results.get(BASELINE)
    return None if result is None else result.student


def _models(comparison: Comparison) -> PageTable:
    last = len(comparison.rows) - 1
    rows = zip(comparison.cells(), comparison.values(), strict=True)
    return PageTable(
        comparison.columns(),
        [
            PageLine([PageCell(t, _number(v)) for t, v in zip(*row, strict=True)], number == last)
            for number, row in enumerate(rows)
        ],
    )


def _number(value: str | float | None) -> float | None:
    return None if isinstance(value, str) else value


ABOUT_DIFFERENCES = (
    "Interval: bootstrap over the rows, the same rows for both models; one that contains 0 means "
    "that other rows might have shown the opposite. Same: share of the answers that are the same. "
    "KL: divergence from the other's probabilities, in nats. p: McNemar's exact test of which "
    "model errs more often."
)


def _differences(comparison: Comparison, pairs: Sequence[ModelPair]) -> PageTable | None:
    """Return the table of the student against the others; columns that are empty are left out."""
    headings = ["student minus", comparison.metric, f"{LEVEL:.0%} interval", "same", "KL", "p"]
    table = _without_empty(headings, [list(_pair_cells(pair)) for pair in pairs], NONE)
    return table if len(table.headings) > 1 else None


def _without_empty(
    headings: Sequence[str],
    cells: Sequence[Sequence[PageCell]],
    empty: str,
    texts: Collection[str] = (),
) -> PageTable:
    """Return a table without the columns that have nothing in any row."""
    kept = [n for n in range(len(headings)) if any(row[n].text != empty for row in cells)]
    names = [headings[n] for n in kept]
    running = [number for number, name in enumerate(names) if name in texts]
    return PageTable(names, [PageLine([row[n] for n in kept]) for row in cells], running)


def _pair_cells(pair: ModelPair) -> Iterator[PageCell]:
    yield PageCell(pair.against)
    found = pair.difference
    interval = None if found is None else found.interval
    yield PageCell(NONE) if found is None else PageCell(f"{found.value:+.4f}", found.value)
    yield PageCell(NONE if interval is None else f"{interval:+.4f}")
    same, kl = pair.agreement, pair.kl
    yield PageCell(NONE) if same is None else PageCell(f"{same:.1%}", same)
    yield PageCell(NONE) if kl is None else PageCell(f"{kl:.4f}", kl)
    p = None if pair.mcnemar is None else pair.mcnemar.p
    yield PageCell(NONE) if p is None else PageCell(p_text(p), p)


COST_COLUMNS = ("stage", "rows", "tokens", "FLOP, student", "FLOP, teachers")


def _costs(found: Sequence[StageCost]) -> PageTable | None:
    """Return the table of what the stages took; None if the arithmetic is not known of any."""
    if all(cost.student is None for cost in found):
        return None
    on_known = any(cost.peak_share is not None for cost in found)
    rows = []
    for cost in found:
        cells = [PageCell(cost.stage), PageCell(f"{cost.rows:,}", cost.rows)]
        cells += [_amount(value) for value in (cost.tokens, cost.student, cost.teachers)]
        share = cost.peak_share
        cells += [PageCell(NONE) if share is None else PageCell(f"{share:.1%}", share)] * on_known
        rows.append(PageLine(cells))
    return PageTable([*COST_COLUMNS, *["of the peak"] * on_known], rows)


def _unknown(costs: Sequence[StageCost]) -> str:
    """Return why numbers of some stages are missing; empty if none are."""
    missing = [cost.stage for cost in costs if cost.student is None]
    if not missing:
        return ""
    return f"{NONE}: no model like that of {', '.join(missing)} was counted on test rows."


def _amount(value: float | None) -> PageCell:
    """Return a large number with its power of ten, as in `1.2e+15`."""
    return PageCell(NONE) if value is None else PageCell(f"{value:.3g}", value)


def _layers(similarity: LayerSimilarity | None) -> tuple[str, str] | None:
    """Return the figure of the layers of student and teacher, and its caption."""
    if similarity is None:
        return None
    return figures.svg(probe_figures.layers(similarity)), similarity.title


def _disagreements(compared: Compared) -> PageTable | None:
    """Return the rows on which student and teacher differ most; None if nothing tells."""
    try:
        found = disagreements(compared.predictions, compared.kind)[:SHOWN_ROWS]
    except DataError:
        return None
    headings = ("row", "label", "teacher", "student", "distance")
    cells = [list(_disagreement_cells(one)) for one in found]
    return _without_empty(headings, cells, "", texts=("row", "label")) if cells else None


def _disagreement_cells(one: Disagreement) -> Iterator[PageCell]:
    pair = "" if one.pair is None else f" / {one.pair}"
    yield PageCell(_shortened(f"{one.text}{pair}"))
    for said in (one.gold, one.teacher, one.student):
        yield PageCell("" if said is None else str(said))
    yield PageCell(f"{one.distance:.4f}", one.distance)


def _written(compared: Compared) -> PageTable | None:
    """Return the models' texts after the same prompts; None if none were requested."""
    samples = list(side_by_side(compared.predictions))
    if not samples:
        return None
    targets = compared.predictions.rows["gold"].to_pylist()
    headings = [PROMPT, "target", *(name for name in samples[0] if name != PROMPT)]
    cells = []
    for sample, target in zip(samples, targets, strict=False):
        prompt, *answers = sample.values()
        texts = [prompt, "" if target is None else str(target), *answers]
        cells.append([PageCell(_shortened(text)) for text in texts])
    return _without_empty(headings, cells, "", texts=headings)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT].rstrip()} ..."


def _snippet(run: Run) -> str:
    """Return code that loads the student and asks it something."""
    last = run.last
    note = "in the folder of this report"
    return loading_code(run.student.name, note, last.kind.auto, last.trusts_student)


STAGE_COLUMNS = ("stage", "methods", "taught by", "goes on with", "best", "steps", "time", "key")


def _stages(run: Run) -> PageTable:
    """Return the table of the stages, in order; columns that are empty are left out."""
    pairs = zip(run.specs, run.results.values(), strict=True)
    cells = [list(_stage_cells(spec, result)) for spec, result in pairs]
    return _without_empty(STAGE_COLUMNS, cells, "", texts=("methods", "taught by", "goes on with"))


def _stage_cells(spec: StageSpec, result: StageResult) -> Iterator[PageCell]:
    yield PageCell(spec.name)
    yield PageCell(str(spec.expression))
    yield PageCell(", ".join(spec.taught_by))
    yield PageCell(spec.follows.name if spec.follows else "")
    yield PageCell("" if result.best is None else f"{result.metric} {result.best:.4f}", result.best)
    yield PageCell(str(result.steps), result.steps)
    reused = f"from {without_folders(result.reused)}"
    yield PageCell(reused if result.reused else _duration(result.seconds), result.seconds)
    yield PageCell("" if result.fingerprint is None else str(result.fingerprint))


def _resumed(run: Run) -> Iterator[str]:
    """Yield what was not as before when the run was resumed, stage by stage."""
    for name, result in run.results.items():
        for difference in result.differences:
            yield without_folders(f"stage {name} was resumed: {difference}")


def _figures(run: Run) -> Iterable[tuple[str, str]]:
    """Yield the figures of the training, with captions."""
    lines = (run.directory / METRICS).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    metric = run.last.metric.name
    validation = figures.validation(entries, metric)
    if validation is not None:
        yield validation, f"{metric} on the validation rows"
    for stage, svg in figures.losses(entries).items():
        yield svg, f"losses of stage {stage}"
    yield from _probe_figures(run)


def _probe_figures(run: Run) -> Iterable[tuple[str, str]]:
    """Yield the figures of what probes have measured, stage by stage and teacher by teacher."""
    for stage in run.results:
        path = run.directory / STAGES / stage / PROBES
        values = read_probes(path) if path.exists() else ()
        for teacher in dict.fromkeys(value.teacher for value in values):
            mine = [v for v in values if (v.teacher, v.rows) == (teacher, TRAINING)]
            for distance, svg in figures.probed(mine).items():
                yield svg, f"{distance} to {teacher} in stage {stage}"
