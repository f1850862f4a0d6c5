"""Comparing models on the rows of a stage: how good each is, how large and how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core import digest
from gkd_core.analysis.comparison import Compared, Comparison, Row
from gkd_core.analysis.exam import ComparedModel, Exam
from gkd_core.analysis.layer_similarity import LayerSimilarity, compare_layers, no_similarity
from gkd_core.deploy.arithmetic import forward_flops
from gkd_core.deploy.latency import latencies
from gkd_core.distributed.ranks import processes
from gkd_core.errors import MethodError
from gkd_core.evaluation.predictions import About, Predictions, file_names, model_table, rows_table
from gkd_core.runs.fingerprint import vocabulary
from gkd_core.training.row_measure import row_measure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gkd_core.contract.batch import Batch
    from gkd_core.evaluation.samples import Sampling
    from gkd_core.kinds.metrics import Metric
    from gkd_core.kinds.task_kind import Evaluation, TaskKind
    from gkd_core.models.sites import Sites
    from gkd_core.training.stage_spec import StageSpec

TIMED_SAMPLES = 32
COUNTED_SAMPLES = 8


@dataclass(frozen=True)
class _Examined:
    """A model that has been evaluated.

    Attributes:
        about: The model, as it is named.
        model: The model itself; None unless one process holds all.
        parameters: Number of its weights.
        evaluation: Its evaluation.
        seconds: How long that took.
    """

    about: ComparedModel
    model: PreTrainedModel | None
    parameters: int
    evaluation: Evaluation
    seconds: float


@dataclass(frozen=True)
class _SampleCost:
    """What one sample costs a model: time, arithmetic and tokens, as in `Row`."""

    milliseconds: float | None = None
    flops: float | None = None
    tokens: float | None = None


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
    adapters = tuple(adapters)
    judge = next((one for one in compared if one.name == teacher), None)
    exam = Exam(spec, compared, judge, adapters, sampling)
    examined = [_examine(exam, one) for one in compared]
    comparison = _comparison(spec, exam, examined)
    alike = _layers(spec, examined, judge, adapters) if layers else None
    files = file_names(one.called or Path(one.model).name for one in compared)
    named = dict(zip(files, examined, strict=True))
    _, split = spec.judged
    measures = {file: row_measure(spec, split, one.evaluation) for file, one in named.items()}
    return Compared(
        comparison,
        _predictions(spec, named),
        {file: measure for file, measure in measures.items() if measure is not None},
        spec.kind,
        alike,
    )


def _examine(exam: Exam, compared: ComparedModel) -> _Examined:
    """Evaluate a model, which is let go of unless one process can hold all."""
    model, parameters = exam.load(compared)
    began = time.perf_counter()
    evaluation = exam.evaluate(compared, model)
    seconds = time.perf_counter() - began
    return _Examined(compared, model if exam.holds_all else None, parameters, evaluation, seconds)


def _comparison(spec: StageSpec, exam: Exam, examined: Sequence[_Examined]) -> Comparison:
    name, split = spec.judged
    metric, judge = spec.metric_on(split), exam.judge
    costs, reference = _sample_costs(exam, examined), _reference(spec, exam, examined)
    judged_by = None
    if judge is not None and spec.is_unlabeled(split):
        judged_by = spec.agreement_with(judge.name)
    return Comparison(
        metric.name,
        name,
        min(len(encoded) for encoded, _ in exam.readings.values()),
        [
            _row(spec.kind, metric, one, cost, reference)
            for one, cost in zip(examined, costs, strict=True)
        ],
        guessed=spec.kind.guess(split.labels) if metric == spec.kind.metric else None,
        judged_by=judged_by,
        cut=exam.cut,
        judge="teacher" if judge is None or judge.called else "first model",
        higher_is_better=metric.higher_is_better,
    )


def _sample_costs(exam: Exam, examined: Sequence[_Examined]) -> list[_SampleCost]:
    """Return what a sample costs each model; not known unless one process holds all."""
    models = [one.model for one in examined if one.model is not None]
    if len(models) < len(examined):
        return [_SampleCost()] * len(examined)
    times = latencies(models, [exam.samples(one.about, TIMED_SAMPLES) for one in examined])
    counted = [exam.samples(one.about, COUNTED_SAMPLES) for one in examined]
    flops = map(forward_flops, models, counted)
    return list(map(_SampleCost, times, flops, map(_mean_tokens, counted)))


def _reference(spec: StageSpec, exam: Exam, examined: Sequence[_Examined]) -> Evaluation | None:
    """Return the evaluation with which the others are compared; None if that would say nothing.

    A teacher's agreement with itself is no quality, and perplexities per token of different
    tokenizers are not comparable.
    """
    _, split = spec.judged
    if spec.is_unlabeled(split) or (spec.kind.is_lm and len(exam.readings) > 1):
        return None
    return next((one.evaluation for one in examined if one.about is exam.judge), None)


def _row(
    kind: TaskKind,
    metric: Metric,
    examined: _Examined,
    cost: _SampleCost,
    reference: Evaluation | None,
) -> Row:
    about, evaluation = examined.about, examined.evaluation
    return Row(
        name=about.name,
        model=about.model,
        metrics=evaluation.metrics,
        parameters=examined.parameters,
        bytes=_bytes(about.model, examined.parameters),
        milliseconds=cost.milliseconds,
        kept=_kept(metric, evaluation, reference),
        agreement=_agreement(kind, evaluation, reference),
        flops=cost.flops,
        tokens=cost.tokens,
        seconds=examined.seconds,
    )


def _layers(
    spec: StageSpec,
    examined: Sequence[_Examined],
    judge: ComparedModel | None,
    adapters: Sequence[type[Sites]],
) -> LayerSimilarity | None:
    """Return the similarity of the layers of the last model and the judge, if it is defined."""
    student = examined[-1].model
    teacher = next((one.model for one in examined if one.about is judge), None)
    if student is None or teacher is None or processes(1) > 1 or no_similarity(spec):
        return None
    try:
        return compare_layers(spec, student, teacher, adapters)
    except MethodError:
        return None  # an architecture whose layers are not known can be distilled from its logits


def _predictions(spec: StageSpec, named: Mapping[str, _Examined]) -> Predictions:
    """Return the predictions of each model for the rows, by the name of its file."""
    kind, classes = spec.kind, spec.data.classes
    name, split = spec.judged
    rows = rows_table(split, kind, classes)
    tables = {file: model_table(one.evaluation, rows, kind, classes) for file, one in named.items()}
    tokenizers = named if kind.is_lm else {}
    return Predictions(
        About(name, kind.name, classes, spec.metric_on(split).name),
        rows,
        tables,
        {file: one.about.name for file, one in named.items()},
        {f: digest.of_value(vocabulary(one.about.tokenizer)) for f, one in tokenizers.items()},
    )


def _mean_tokens(samples: Sequence[Batch]) -> float:
    counts = [int(sample.inputs["attention_mask"].sum()) for sample in samples]
    return sum(counts) / len(counts)


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
