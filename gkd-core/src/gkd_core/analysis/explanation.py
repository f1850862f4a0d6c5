"""The outline of a run as text, which `gkd explain` prints and `outline.txt` keeps."""

from __future__ import annotations

import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gkd_core.analysis.sizes import readable
from gkd_core.contract.model_info import ModelInfo
from gkd_core.hooks.paths import MAIN
from gkd_core.probes.choice import name_pairs
from gkd_core.runs.outline import (
    CaptureOutline,
    CombinerOutline,
    LoraOutline,
    LrFactorOutline,
    MethodOutline,
    OptionOutline,
    PassOutline,
    ProbeOutline,
    RolloutOutline,
    RunOutline,
    StageOutline,
)
from gkd_core.runs.summary import stage_summary

YEAR = re.compile(r"(?<!:)\b(?:19|20)\d\d\b(?!\.)")
MOST_CLASSES = 20
WIDTH = 80
INDENT = 13
"""Column at which the values start."""


def explain(outline: RunOutline, width: int = WIDTH) -> str:
    """Return the stages, methods, options and passes of a run as text.

    Args:
        outline: The run.
        width: Columns; text that cannot be broken may exceed them.
    """
    total = len(outline.stages)
    stages = [
        "\n".join(_stage(stage, f"{number} of {total}", width))
        for number, stage in enumerate(outline.stages, start=1)
    ]
    graph = ["\n".join(["stages", *(f"  {line}" for line in stage_summary(outline.stages))])]
    return "\n\n".join([*(graph if total > 1 else []), *stages])


def short_reference(paper: str) -> str:
    """Return `Sun et al. 2019` for a full reference; one without author or year stays whole."""
    year = YEAR.search(paper)
    authors = paper[: year.start()].split(",")[:-1] if year else []
    if year is None or not authors:
        return paper
    first = authors[0].strip()
    several = len(authors) > 1 and not first.endswith("et al.")
    return f"{first}{' et al.' if several else ''} {year[0]}"


def _stage(stage: StageOutline, number: str, width: int) -> Iterator[str]:
    size, length = stage.batch
    yield f"stage {stage.name} ({number})"
    entries = [
        ("methods", f"{stage.method}  ({stage.method_origin})"),
        ("task", stage.task),
        *(("", note) for note in stage.notes),
        *_rows(stage),
        ("batch", f"{size} samples of up to {length} tokens"),
        *_writing(stage),
        *_rollout(stage.rollout),
        ("student", f"{_model(stage.student)}{_kept(stage.scale)}"),
        ("", f"starts from {stage.start}"),
        *_lora(stage.lora),
        *((teacher.name, _teacher(teacher, stage)) for teacher in stage.teachers),
        *(entry for method in stage.methods for entry in _method(method)),
        *(entry for combiner in stage.combiners for entry in _combiner(combiner)),
        *_lr_factors(stage.lr_factors),
        *(entry for one in stage.passes for entry in _pass(one, _writing_teacher(stage))),
        *(() if stage.probes is None else _probes(stage.probes, stage.passes)),
    ]
    for name, value in entries:
        yield _entry(name, value, width)


def _rows(stage: StageOutline) -> Iterator[tuple[str, str]]:
    """Yield the numbers of rows, the metric and the first classes."""
    yield "rows", ", ".join(f"{count:,} {name}" for name, count in stage.rows.items())
    yield "metric", stage.metric
    if stage.classes:
        more = len(stage.classes) - MOST_CLASSES
        shown = ", ".join(stage.classes[:MOST_CLASSES])
        yield "classes", f"{shown} and {more} more" if more > 0 else shown


def _entry(name: str, value: str, width: int) -> str:
    """Return a name and its value, with continuation lines indented like the first."""
    return textwrap.fill(
        value,
        width,
        initial_indent=f"  {name:<{INDENT - 4}}  ",
        subsequent_indent=" " * INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _writing(stage: StageOutline) -> Iterator[tuple[str, str]]:
    """Yield what a teacher writes before the first step, and every setting."""
    if stage.writing is None:
        return
    number = stage.writing["samples"].value
    answers = "the answer" if number == 1 else f"{number} answers"
    yield "writing", f"{stage.teachers[0].name} first writes {answers} to each prompt"
    yield from _options("writing", stage.writing)


def _rollout(rollout: RolloutOutline | None) -> Iterator[tuple[str, str]]:
    """Yield who writes the rows, and every setting."""
    if rollout is None:
        return
    mixture = rollout.options["mixture"].value
    student = f"the student (with {mixture:g} of the teacher)" if mixture else "the student"
    shares = {student: rollout.student, "the teacher": rollout.teacher}
    written = [f"{share} of the rows by {who}" for who, share in shares.items() if share != "0"]
    if rollout.options["adaptive"].value:
        written.append("more by the student when the validation loss rises")
    yield "rollout", f"{rollout.engine} writes {' and '.join(written) or 'no row'}"
    yield from _options("rollout", rollout.options)


def _method(method: MethodOutline) -> Iterator[tuple[str, str]]:
    yield "method", f"{method.weight} x {method.name}, {short_reference(method.paper)}"
    yield from _options(method.name, method.options)


def _combiner(combiner: CombinerOutline) -> Iterator[tuple[str, str]]:
    inside = " + ".join(combiner.methods)
    paper = short_reference(combiner.paper)
    yield "combiner", f"{combiner.name} of the teachers of {inside}, {paper}"
    yield from _options(combiner.name, combiner.options)


def _options(owner: str, options: Mapping[str, OptionOutline]) -> Iterator[tuple[str, str]]:
    for name, option in options.items():
        for key, value in _settings(f"{owner}.{name}", option.value):
            yield "", f"{key} = {value}  ({option.origin})"


def _settings(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield an option and its value; for a list of tables, one entry per table."""
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        for index, entry in enumerate(value):
            yield f"{key}.{index}", json.dumps(entry)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _lr_factors(factors: Sequence[LrFactorOutline]) -> Iterator[tuple[str, str]]:
    """Yield an entry per learning-rate factor, with its parts and the methods that set it."""
    groups = defaultdict(list)
    for one in factors:
        groups[one.factor, one.methods].append(one.part)
    for number, ((factor, methods), parts) in enumerate(groups.items()):
        what = "frozen" if factor == 0 else f"{factor:g} x the stage's"
        yield "" if number else "rate", f"{', '.join(parts)}: {what}, for {', '.join(methods)}"


def _writing_teacher(stage: StageOutline) -> str | None:
    """Return the name of the teacher that writes rows, or None if none does."""
    rollout = stage.rollout
    writes = stage.writing or (
        rollout is not None and (rollout.teacher != "0" or rollout.options["mixture"].value)
    )
    return stage.teachers[0].name if writes else None


def _pass(one: PassOutline, writer: str | None) -> Iterator[tuple[str, str]]:
    if not one.captures:
        use = "only writes" if one.model == writer else "not run"
        yield "pass", f"{one.model}: {use}, nothing reads it"
        return
    total = sum(capture.bytes for capture in one.captures)
    model = one.model if one.name == MAIN else f"{one.model} in {one.name}"
    how = f"answers from {one.source}" if one.source else f"up to {one.stops_after}"
    yield "pass", f"{model}: {how}, keeps {readable(total)}"
    path = max(len(capture.path) for capture in one.captures)
    shape = max(len(_shape(capture)) for capture in one.captures)
    for capture in one.captures:
        size, readers = readable(capture.bytes), ", ".join(capture.readers)
        yield "", f"{capture.path:<{path}}  {_shape(capture):<{shape}}  {size:>9}  for {readers}"
    for operation in one.operations:
        yield "", f"{operation.text}  by {operation.method}"


def _probes(probes: ProbeOutline, passes: Sequence[PassOutline]) -> Iterator[tuple[str, str]]:
    """Yield what probes compare, when, and what that costs."""
    when = f"every {probes.every} steps, and at the end on {probes.rows} validation rows"
    yield "probe", f"{when}, with passes of their own, without gradient"
    for teacher, pairs in probes.pairs.items():
        yield "", f"of student and {teacher}: {name_pairs(pairs)}"
        yield from (("", f"left out: {note}") for note in probes.left_out[teacher])
    usual = {one.model: one.stops_after for one in passes if one.name == MAIN}
    for one in probes.passes:
        if one.captures:
            size = readable(sum(capture.bytes for capture in one.captures))
            before = usual.get(one.model, one.stops_after)
            known = f" (in other steps {before})" if before != one.stops_after else ""
            how = f"answers from {one.source}" if one.source else f"up to {one.stops_after}{known}"
            yield "", f"{one.model}: {how}, keeps {size}"


def _shape(capture: CaptureOutline) -> str:
    return f"[{' x '.join(map(str, capture.shape))}]"


def _kept(scale: float | None) -> str:
    return "" if scale is None else f"; {scale:g} of its heads and ffn neurons are kept"


def _lora(lora: LoraOutline | None) -> Iterator[tuple[str, str]]:
    """Yield which adapters a student has, and how much of it is trained."""
    if lora is not None:
        where = f"in {lora.layers} layers ({', '.join(lora.targets)})"
        yield "lora", f"rank {lora.rank}, alpha {lora.alpha:g}, {where}"
        share = lora.trained / lora.weights
        yield "", f"{lora.trained:,} of {lora.weights:,} weights are trained ({share:.2%})"


def _teacher(info: ModelInfo, stage: StageOutline) -> str:
    own = "; reads the rows with its own tokenizer" if info.name in stage.other_tokenizers else ""
    return f"{_model(info)}{own}"


def _model(info: ModelInfo) -> str:
    heads = f"{info.heads} heads"
    if info.kv_heads != info.heads:
        heads += f" ({info.kv_heads} key-value)"
    return (
        f"{info.family}, {info.layers} layers, hidden {info.hidden_size}, {heads}, "
        f"ffn {info.ffn_size}, {info.labels} outputs"
    )
