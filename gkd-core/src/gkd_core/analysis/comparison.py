"""The comparison of teacher, plain student and distilled student."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gkd_core import digest
from gkd_core.analysis.layer_similarity import LayerSimilarity, compare_layers, no_similarity
from gkd_core.analysis.sizes import readable
from gkd_core.atomic import write_file
from gkd_core.data.encode import TEXTS
from gkd_core.deploy.arithmetic import forward_flops
from gkd_core.deploy.latency import latencies
from gkd_core.distributed.device import pick_device
from gkd_core.distributed.groups import arrange
from gkd_core.distributed.layout import Layout
from gkd_core.distributed.ranks import processes
from gkd_core.errors import DataError, MethodError
from gkd_core.evaluation import divergence, top_tokens
from gkd_core.evaluation.divergence import DivergenceWatch
from gkd_core.evaluation.evaluate import Predict, calling, evaluate
from gkd_core.evaluation.pairs import ModelPair, compare_pair, row_difference, row_estimate
from gkd_core.evaluation.predictions import (
    STUDENT,
    About,
    Predictions,
    file_names,
    model_table,
    rows_table,
)
from gkd_core.evaluation.samples import Sampling, sample_means, write_samples
from gkd_core.evaluation.statistics import RESAMPLES, Interval, SampleEstimate, Statistic
from gkd_core.evaluation.top_tokens import TopTokens, TopTokenWatch
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import LOGITS
from gkd_core.models.load import load_teacher
from gkd_core.models.save import count_parameters
from gkd_core.models.sites import find_sites
from gkd_core.parallel.placement import place_teacher
from gkd_core.runs.fingerprint import vocabulary
from gkd_core.strict_json import json_text
from gkd_core.teachers.kept import ask_once, shared_file
from gkd_core.training.agreement import answered
from gkd_core.training.row_measure import row_measure
from gkd_core.training.stage import prepare_model, shard_reader
from gkd_core.vocabulary.weights import renumber

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from gkd_core.config.schema import Placement
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.task import Split
    from gkd_core.data.encode import Encoded
    from gkd_core.kinds.metrics import Metric
    from gkd_core.kinds.task_kind import Evaluation, TaskKind
    from gkd_core.models.sites import Sites
    from gkd_core.training.stage_spec import StageSpec
    from gkd_core.vocabulary.reduced import ReducedVocabulary

TIMED_SAMPLES = 32
COUNTED_SAMPLES = 8
NONE = "-"
WIDTH, GAP = 80, 3
"""Characters in a line of the table, and between its columns."""

BREAKABLE = re.compile(r"[^ +]*[ +]|[^ +]+")


@dataclass(frozen=True)
class ComparedModel:
    """A model to compare.

    Attributes:
        name: Its name in the table.
        model: Directory or hub id.
        tokenizer: Its tokenizer.
        trust_remote_code: Whether code that comes with it may run.
        tensor: Processes that share one copy of it.
        placement: Where its weights are kept between uses.
        called: Its short name, of the file of its predictions. Default: the last part of `model`.
        vocabulary: The tokens of a student, if the model reads rows in their ids.
        is_shared: Whether other runs find what it predicts, and it what they have.
    """

    name: str
    model: str
    tokenizer: PreTrainedTokenizerFast
    trust_remote_code: bool = False
    tensor: int = 1
    placement: Placement = "replicated"
    called: str = ""
    vocabulary: ReducedVocabulary | None = None
    is_shared: bool = False

    @property
    def own_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that it was trained with."""
        return self.tokenizer if self.vocabulary is None else self.vocabulary.origin

    @property
    def is_whole(self) -> bool:
        """Whether one process holds it by itself."""
        return self.tensor == 1 and (self.placement != "zero3" or processes(1) == 1)


@dataclass(frozen=True)
class Row:
    """One model in the comparison.

    Attributes:
        name: Its name in the table.
        model: Directory or hub id.
        metrics: Metrics on the test rows (the validation rows if there are none).
        parameters: Number of weights; tied ones count once.
        bytes: Size of the saved weights on disk.
        milliseconds: Median time for one sample; None if several processes share a model.
        kept: Share of the (first) teacher's quality; None without a teacher.
        agreement: Share of the rows on which it predicts the teacher's class; None if undefined.
        flops: Floating-point operations for one sample, the mean of some; None if not counted.
        tokens: Tokens of one of these samples, the mean.
        interval: Bootstrap interval of the main metric; None if it is not known.
    """

    name: str
    model: str
    metrics: Mapping[str, float]
    parameters: int
    bytes: int
    milliseconds: float | None
    kept: float | None
    agreement: float | None
    flops: float | None = None
    tokens: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Comparison:
    """All models on the same rows.

    Attributes:
        metric: Name of the main metric; `agreement` if the rows have no labels.
        split: `test` or `validation`.
        samples: Number of rows.
        rows: The models; a teacher comes first.
        guessed: Share of the most frequent class, the accuracy of always predicting it; None
            without classes.
        judged_by: What takes the place of labels, if the rows have none.
        cut: How many texts were too long for a model, and at what length they were cut; empty if
            none was.
        judge: What the model is with which the others are compared.
        higher_is_better: Whether larger values of the main metric are better.
    """

    metric: str
    split: str
    samples: int
    rows: Sequence[Row]
    guessed: float | None = None
    judged_by: str | None = None
    cut: str = ""
    judge: str = "teacher"
    higher_is_better: bool = True

    def save(self, path: Path) -> None:
        """Write the comparison as JSON."""
        write_file(path, json_text(asdict(self), indent=1))

    def __str__(self) -> str:
        console = Console(width=WIDTH, color_system=None)
        with console.capture() as printed:
            console.print(self.table())
        return printed.get().rstrip()

    def table(self) -> Table:
        """Return the comparison as a table with one row per model, 80 columns wide."""
        table = Table(
            title=self.title(),
            title_justify="left",
            title_style="bold",
            caption=self.legend(),
            caption_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
        )
        model, *figures = self.columns()
        table.add_column(model, overflow="fold")
        for figure in figures:
            table.add_column(figure, justify="right", no_wrap=True)
        rows = list(self.cells())
        widths = [
            max(map(len, column))
            for column in zip(figures, *(row[1:] for row in rows), strict=True)
        ]
        room = WIDTH - sum(width + GAP for width in widths)
        for name, *cells in rows:
            table.add_row(_folded(name, room), *cells)
        return table

    def title(self) -> str:
        """Return the title: what was measured, on how many rows."""
        without = "" if self.judged_by is None else ", which have no labels"
        return f"{self.metric} on {self.samples:,} {self.split} rows{without}"

    def legend(self) -> str:
        """Return the meaning of the column headings."""
        meanings = {
            "kept": f"share of the {self.judge}'s quality",
            "agrees": f"share of the rows with the {self.judge}'s answer",
            "ms": "median time for one sample",
        }
        if self.judged_by is not None:
            meanings = {self.metric: self.judged_by} | meanings
        if self.guessed:
            meanings = {self.metric: f"{self.guessed:.4f} by the most frequent class"} | meanings
        shown = self.columns()
        said = [f"{name}: {words}" for name, words in meanings.items() if name in shown]
        return "; ".join([*said, *filter(None, [self.cut])])

    def columns(self) -> list[str]:
        """Return the column headings."""
        return [column.name for column in self._columns()]

    def cells(self) -> Iterator[list[str]]:
        """Yield the cells of each row."""
        columns = self._columns()
        return ([column.show(row) for column in columns] for row in self.rows)

    def values(self) -> Iterator[list[str | float | None]]:
        """Yield the values of each row by which the cells of a column are ordered."""
        columns = self._columns()
        return ([column.value(row) for column in columns] for row in self.rows)

    def _columns(self) -> list[_Column]:
        """Return the columns; empty ones are left out."""
        columns = [
            _Column("model", lambda row: row.name, str),
            _Column(self.metric, lambda row: row.metrics[self.metric], lambda v: f"{v:.4f}"),
            _Column("kept", lambda row: row.kept, lambda v: f"{v:.1%}"),
            _Column("agrees", lambda row: row.agreement, lambda v: f"{v:.1%}"),
            _Column("weights", lambda row: row.parameters, _count),
            _Column("disk", lambda row: row.bytes, readable),
            _Column("ms", lambda row: row.milliseconds, lambda v: f"{v:.2f}"),
        ]
        return [c for c in columns if any(c.value(row) is not None for row in self.rows)]


@dataclass(frozen=True)
class _Column:
    """A column of the comparison.

    Attributes:
        name: Its heading.
        value: Returns the value of a model; None if there is none.
        shown: Formats a value.
    """

    name: str
    value: Callable[[Row], str | float | None]
    shown: Callable[[Any], str]

    def show(self, row: Row) -> str:
        """Return the cell of a model."""
        value = self.value(row)
        return NONE if value is None else self.shown(value)


@dataclass(frozen=True)
class Compared:
    """A comparison with what it was made from.

    Attributes:
        comparison: The comparison.
        predictions: What each model says of each row.
        measures: The main metric of each model for some of the rows, by the name of its file; a
            model is missing if it cannot be computed for a part of them.
        kind: The kind of task.
        layers: Similarity of the layers of student and teacher; None unless it was asked for and
            is defined.
    """

    comparison: Comparison
    predictions: Predictions
    measures: Mapping[str, Statistic]
    kind: TaskKind
    layers: LayerSimilarity | None = None

    @functools.cached_property
    def pairs(self) -> Mapping[str, ModelPair]:
        """The student of a run against every other model, by the name of its file."""
        others = [file for file in self.predictions.models if file != STUDENT]
        return {
            file: compare_pair(
                self.predictions, (STUDENT, file), self.kind, self._both(STUDENT, file), RESAMPLES
            )
            for file in others
        }

    def difference(self, first: str, second: str) -> SampleEstimate | None:
        """Return the main metric of a model minus that of another; None if it is not known.

        Args:
            first: The name of the file of the one.
            second: That of the other.
        """
        if first == STUDENT and second in self.pairs:
            return self.pairs[second].difference
        return row_difference(self._both(first, second), self.predictions.rows, RESAMPLES)

    def with_intervals(self) -> Comparison:
        """Return the comparison with the interval of each model's main metric."""
        rows = zip(self.predictions.models, self.comparison.rows, strict=True)
        judged = [replace(row, interval=self._interval(file)) for file, row in rows]
        return replace(self.comparison, rows=judged)

    def _interval(self, file: str) -> Interval | None:
        measure = self.measures.get(file)
        return None if measure is None else row_estimate(measure, self.predictions.rows).interval

    def _both(self, first: str, second: str) -> tuple[Statistic, Statistic] | None:
        known = first in self.measures and second in self.measures
        return (self.measures[first], self.measures[second]) if known else None


def compare_models(
    spec: StageSpec,
    compared: Sequence[ComparedModel],
    teacher: str | None,
    adapters: Iterable[type[Sites]] = (),
) -> Comparison:
    """Evaluate models on the test rows of a stage; time them if one process holds them all.

    All processes that share a model must call this.

    Args:
        spec: The stage whose data is used.
        compared: The models.
        teacher: Name of the model with which the others are compared.
        adapters: Site adapters registered by plugins.

    Raises:
        DataError: The rows have no labels, and no teacher is compared that could answer for them.
    """
    return predict_and_compare(spec, compared, teacher, adapters).comparison


def predict_and_compare(
    spec: StageSpec,
    compared: Sequence[ComparedModel],
    teacher: str | None,
    adapters: Iterable[type[Sites]] = (),
    sampling: Sampling | None = None,
    layers: bool = False,
) -> Compared:
    """Compare models as `compare_models` does; also return what each says of every row.

    With `sampling`, predictions have what language models write, in the columns `prompt` and
    `generated`. With `layers`, the layers of the last model are compared with those of `teacher`,
    if one process does it all.
    """
    data = spec.data
    split = data.validation if data.test is None else data.test
    judge = next((one for one in compared if one.name == teacher), None)
    unlabeled = spec.is_unlabeled(split)
    exam = _Exam(spec, compared, split, judge, tuple(adapters), sampling)
    timed = exam.holds_all
    models, sizes, found = [], [], []
    for one in compared:
        model, size = exam.load(one)
        sizes.append(size)
        found.append(exam.evaluate(one, model))
        models += [model] if timed else []
        del model
    times: list[float | None] = [None] * len(compared)
    flops, tokens = list(times), list(times)
    if timed:
        times[:] = latencies(models, [exam.samples(one, TIMED_SAMPLES) for one in compared])
        counted = [exam.samples(one, COUNTED_SAMPLES) for one in compared]
        flops[:] = map(forward_flops, models, counted)
        tokens[:] = map(_mean_tokens, counted)
    alike = None
    if layers and timed and processes(1) == 1:
        alike = _layers(spec, compared, models, teacher, adapters)
    reference = next((e for c, e in zip(compared, found, strict=True) if c is judge), None)
    if unlabeled or (spec.kind.is_lm and len(exam.readings) > 1):
        # A teacher's agreement with itself is no quality, and perplexities per token of different
        # tokenizers are not comparable.
        reference = None
    metric = spec.metric_on(split)
    rows = [
        Row(
            name=one.name,
            model=one.model,
            metrics=evaluation.metrics,
            parameters=parameters,
            bytes=_bytes(one.model, parameters),
            milliseconds=milliseconds,
            kept=_kept(metric, evaluation, reference),
            agreement=_agreement(spec.kind, evaluation, reference),
            flops=operations,
            tokens=length,
        )
        for one, parameters, evaluation, milliseconds, operations, length in zip(
            compared, sizes, found, times, flops, tokens, strict=True
        )
    ]
    name = "validation" if data.test is None else "test"
    guessed = spec.kind.guess(split.labels) if metric == spec.kind.metric else None
    count = min(len(encoded) for encoded, _ in exam.readings.values())
    judged_by = spec.agreement_with(judge.name) if unlabeled and judge is not None else None
    called = "teacher" if judge is None or judge.called else "first model"
    comparison = Comparison(
        metric.name,
        name,
        count,
        rows,
        guessed,
        judged_by,
        cut=exam.cut,
        judge=called,
        higher_is_better=metric.higher_is_better,
    )
    about = About(name, spec.kind.name, data.classes, metric.name)
    files = file_names(one.called or Path(one.model).name for one in compared)
    evaluations = dict(zip(files, found, strict=True))
    named = dict(zip(files, compared, strict=True))
    measures = {f: row_measure(spec, split, one) for f, one in evaluations.items()}
    return Compared(
        comparison,
        _predictions(about, spec, split, evaluations, named),
        {file: measure for file, measure in measures.items() if measure is not None},
        spec.kind,
        alike,
    )


def _layers(
    spec: StageSpec,
    compared: Sequence[ComparedModel],
    models: Sequence[PreTrainedModel],
    teacher: str | None,
    adapters: Iterable[type[Sites]],
) -> LayerSimilarity | None:
    """Return the similarity of the layers of the last model and the teacher, if it is defined."""
    known = next((m for c, m in zip(compared, models, strict=True) if c.name == teacher), None)
    if known is None or no_similarity(spec):
        return None
    try:
        return compare_layers(spec, models[-1], known, adapters)
    except MethodError:
        return None  # an architecture whose layers are not known can be distilled from its logits


def _predictions(
    about: About,
    spec: StageSpec,
    split: Split,
    evaluations: Mapping[str, Evaluation],
    named: Mapping[str, ComparedModel],
) -> Predictions:
    """Return the predictions of each model for the rows."""
    kind, classes = spec.kind, spec.data.classes
    rows = rows_table(split, kind, classes)
    tables = {file: model_table(one, rows, kind, classes) for file, one in evaluations.items()}
    names = {file: one.name for file, one in named.items()}
    tokenizers = named if kind.is_lm else {}
    digests = {file: digest.of_value(vocabulary(named[file].tokenizer)) for file in tokenizers}
    return Predictions(about, rows, tables, names, digests)


class _Exam:
    """Models that are evaluated on the same rows, one after the other.

    Attributes:
        readings: The rows, and what makes batches of them, by tokenizer.
        holds_all: Whether one process can hold all models at once.
    """

    def __init__(
        self,
        spec: StageSpec,
        compared: Sequence[ComparedModel],
        split: Split,
        judge: ComparedModel | None,
        adapters: Sequence[type[Sites]],
        sampling: Sampling | None,
    ) -> None:
        self._spec = spec
        self._sampling = sampling
        self._split = split
        self._judge = judge
        self._adapters = adapters
        self._device = pick_device(spec.config.parallel.device)
        self._top: TopTokens | None = None
        self._known: Predict | None = None
        self.holds_all = all(one.is_whole for one in compared)
        judged = self._answered() if spec.is_unlabeled(split) else split
        self.readings = {
            one.tokenizer: (spec.encode(judged, one.tokenizer), spec.collator(one.tokenizer))
            for one in compared
        }

    @property
    def cut(self) -> str:
        """The number of texts that the tokenizer that cuts most has cut, and where."""
        most = max(
            (encoded for encoded, _ in self.readings.values()), key=attrgetter("num_truncated")
        )
        limit = f"cut at {self._spec.max_length} tokens (task.max_length)"
        return f"{limit}: {most.cut}" if most.cut else ""

    def load(self, compared: ComparedModel) -> tuple[PreTrainedModel, int]:
        """Return a model, or this process's shard of it, and its number of weights."""
        spec, placement = self._spec, compared.placement
        groups = arrange(Layout(processes(1), compared.tensor))
        model = load_teacher(
            compared.model,
            spec.kind,
            spec.data.classes,
            compared.trust_remote_code,
            compared.name,
            None if groups is None else shard_reader(groups.tensor),
        )
        if compared.vocabulary is not None:
            renumber(model, compared.vocabulary.kept)
        prepare_model(model, spec, compared.tokenizer)
        size = count_parameters(model)
        if placement == "replicated":
            return model.to(self._device), size
        blocks = find_sites(model, self._adapters).blocks
        copies = None if groups is None else groups.data
        place_teacher(model, blocks, placement, self._device, copies)
        return model, size

    def evaluate(self, compared: ComparedModel, model: PreTrainedModel) -> Evaluation:
        """Return the evaluation of a model, with what can only be known of it and the judge now."""
        kind = self._spec.kind
        encoded, collator = self.readings[compared.tokenizer]
        predict = self._shared(compared, model) or _predict(model, kind, self._adapters)
        apart = self._divergence_watch(compared, predict)
        top = None
        if kind.is_lm and TEXTS in encoded.extra:
            top = TopTokenWatch(apart or predict)
        found = evaluate(model, encoded, collator, kind, self._device, top or apart or predict)
        if top is not None:
            found = self._with_top_tokens(found, top.tokens(), encoded, compared)
        if apart is not None:
            apart_by_row = kind.divergences(apart.values(len(encoded)), encoded)
            found = replace(found, columns={**found.columns, divergence.COLUMN: apart_by_row})
        if self._sampling is not None:
            written = write_samples(model.eval(), compared.tokenizer, encoded, self._sampling)
            measured = self._spec.measured(found, self._split)
            return replace(
                measured,
                columns={**found.columns, **written},
                metrics={**measured.metrics, **sample_means(written)},
            )
        return self._spec.measured(found, self._split)

    def samples(self, compared: ComparedModel, most: int) -> list[Batch]:
        """Return the first rows as a model reads them, as batches of one sample each."""
        encoded, collator = self.readings[compared.tokenizer]
        first = range(min(most, len(encoded)))
        return [collator.collate(encoded, [row], epoch=0).to(self._device) for row in first]

    def _shared(self, compared: ComparedModel, model: PreTrainedModel) -> Predict | None:
        """Return a function of the logits that runs share; None if each run computes its own."""
        kind = self._spec.kind
        if not compared.is_shared or processes(1) > 1 or kind.is_lm or kind.masks:
            return None
        try:
            reader = Extractor(model.eval(), find_sites(model, self._adapters))
        except MethodError:
            return None
        encoded, collator = self.readings[compared.tokenizer]
        file = shared_file(model, encoded, self._spec.data, "fp32", self._device)
        with torch.no_grad():
            answers = ask_once(
                reader, reader, encoded, collator, self._device, kind.predicted, file
            )
        return None if answers is None else lambda batch: answers.of(batch)[LOGITS]

    def _divergence_watch(
        self, compared: ComparedModel, predict: Predict
    ) -> DivergenceWatch | None:
        """Return what measures how far a model is from the judge, if nothing kept will tell."""
        judge = self._judge
        if self._spec.kind.keeps_scores or judge is None or not self.holds_all:
            return None
        if compared is judge:
            self._known = predict
            return DivergenceWatch(predict, None)
        if self._known is None or compared.tokenizer is not judge.tokenizer:
            return None
        return DivergenceWatch(predict, self._known)

    def _with_top_tokens(
        self, found: Evaluation, tokens: TopTokens, encoded: Encoded, compared: ComparedModel
    ) -> Evaluation:
        """Return an evaluation with the top tokens, and where they are those of the judge."""
        columns = {**found.columns, top_tokens.COLUMN: top_tokens.by_text(tokens, encoded)}
        if compared is self._judge:
            self._top = tokens
        if self._top is not None and compared.tokenizer is getattr(self._judge, "tokenizer", None):
            columns["same_top1"] = top_tokens.same_tokens(tokens, self._top, encoded)
        return replace(found, columns=columns)

    def _answered(self) -> Split:
        """Return rows without labels with the answers of the model that judges the others."""
        if self._judge is None:
            raise DataError(
                f"the rows of {self._spec.data.source} have no labels to evaluate by. Name the "
                "column (task.label), or give labeled rows"
            )
        model, _ = self.load(self._judge)
        predict = _predict(model, self._spec.kind, self._adapters)
        tokenizer = self._judge.tokenizer
        return answered(self._spec, self._split, model, tokenizer, self._device, predict)


def _mean_tokens(samples: Sequence[Batch]) -> float:
    counts = [int(sample.inputs["attention_mask"].sum()) for sample in samples]
    return sum(counts) / len(counts)


def _predict(model: PreTrainedModel, kind: TaskKind, adapters: Iterable[type[Sites]]) -> Predict:
    """Return a function that predicts, from a language model without storing all its logits.

    The model is called if it is no language model, or its head is unknown.
    """
    if not kind.is_lm:
        return calling(model)
    try:
        reader = Extractor(model, find_sites(model, adapters))
    except MethodError:
        return calling(model)
    return lambda batch: reader.predict(batch.inputs)


def _kept(metric: Metric, evaluation: Evaluation, reference: Evaluation | None) -> float | None:
    """Return the share of the teacher's quality; None without a teacher that has any."""
    if reference is None:
        return None
    share = metric.share(evaluation.metrics[metric.name], reference.metrics[metric.name])
    return None if math.isnan(share) else share


def _agreement(
    kind: TaskKind, evaluation: Evaluation, reference: Evaluation | None
) -> float | None:
    mine = evaluation.predictions
    theirs = None if reference is None else reference.predictions
    return None if mine is None or theirs is None else kind.agreement(mine, theirs)


def _bytes(place: str, parameters: int) -> int:
    """Return the size of the saved weights; for a hub model, that of its weights in fp32."""
    files = list(Path(place).glob("*.safetensors"))
    if files:
        return sum(file.stat().st_size for file in files)
    return 4 * parameters


def _folded(name: str, width: int) -> str:
    """Break a long name at spaces and after `+`, never within a word."""
    lines = [""]
    for piece in BREAKABLE.findall(name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _count(number: int) -> str:
    """Return a number with three significant digits and its unit, such as `4.39 M`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + f" {unit}"
    return str(number)
