"""The verification of an exported model: it says what the student says, on real rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from gkd_core.data.holdout import take
from gkd_core.data.loader import evaluation_batches
from gkd_core.evaluation.evaluate import EVALUATION_BATCH
from gkd_core.evaluation.predictions import digest_of_rows, row_hashes
from gkd_core.evaluation.statistics import SampleEstimate, bootstrap, paired_bootstrap
from gkd_core.models.generation import own_settings_aside
from gkd_core.models.quiet import quiet
from gkd_core.training.agreement import answered
from gkd_core.training.row_measure import row_measure

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from gkd_core.contract.batch import Batch
    from gkd_core.contract.task import Split
    from gkd_core.data.encode import Encoded
    from gkd_core.deploy.onnx_model import OnnxDecoder
    from gkd_core.kinds.metrics import Metric
    from gkd_core.kinds.task_kind import Evaluation
    from gkd_core.training.stage_spec import StageSpec

TOLERANCE = 1e-4
"""Largest difference of the outputs of an exact export, times the largest output above 1."""

LM_BATCH = 8
"""Rows read at once by language models, whose logits are over a vocabulary."""

ENOUGH = 500
"""Rows below which a verification of quality is called weak."""

BEGINNING, WRITTEN, CONTINUED = 8, 32, 4
"""Tokens that a continued text begins with, tokens that are written, and number of texts."""

LOSS = 0.01
"""The share of the metric that an inexact export may lose: a point of a metric up to 1 or 100."""


@dataclass(frozen=True)
class Verification:
    """The comparison of an exported model with the student.

    Attributes:
        split: The rows: `validation` or `test`.
        rows: Number of rows.
        difference: Largest absolute difference of the outputs.
        largest: Largest absolute output of the student.
        differing: Number of predictions that differ; ties of likeliest tokens do not count. None
            where predictions are numbers or vectors.
        metric: Name of the main metric.
        before: Its value for the student.
        after: Its value for the exported model.
        change: The metric of the exported model minus that of the student, with a paired bootstrap
            interval; None if the kind of task cannot measure a part of the rows.
        estimate: The metric of the exported model, with a bootstrap interval; None likewise.
        rows_digest: A digest of the content of the rows.
        weak: Why the verification says little; empty if it does not.
        problems: Why the exported model is not to be used; empty if it may be.
    """

    split: str
    rows: int
    difference: float
    largest: float
    differing: int | None
    metric: str
    before: float
    after: float
    change: SampleEstimate | None
    estimate: SampleEstimate | None = None
    rows_digest: str = ""
    weak: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifiedRows:
    """Rows that models are compared on.

    Attributes:
        spec: The stage that they belong to.
        name: `validation` or `test`.
        split: The rows.
        encoded: The rows as the student reads them, with labels.
    """

    spec: StageSpec
    name: str
    split: Split
    encoded: Encoded

    @classmethod
    def of(
        cls,
        spec: StageSpec,
        tokenizer: PreTrainedTokenizerFast,
        student: PreTrainedModel,
        most: int,
    ) -> VerifiedRows:
        """Return the first test rows of a stage (validation rows if there are none).

        Args:
            spec: The stage.
            tokenizer: The student's tokenizer.
            student: The student, whose answers stand for labels that rows lack.
            most: Largest number of rows.
        """
        name, split = spec.judged
        if len(split) > most:
            split = take(split, list(range(most)))
        judged = split
        if spec.is_unlabeled(split):
            judged = answered(spec, split, student, tokenizer, torch.device("cpu"))
        return cls(spec, name, split, spec.encode(judged, tokenizer))

    def batches(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """Return the batches of the rows, padded on the right, as exported models read them."""
        collator = self.spec.collator(tokenizer)
        collator.pads_left = False
        size = LM_BATCH if self.spec.kind.is_lm else EVALUATION_BATCH
        return evaluation_batches(self.encoded, collator, size)


@dataclass
class _Apart:
    """The distance between the outputs of two models, over the batches seen so far."""

    difference: float = 0.0
    largest: float = 0.0
    tokens: int = 0

    def add(self, student: Tensor, exported: Tensor, batch: Batch, is_lm: bool) -> None:
        """Compare the outputs for a batch."""
        here = (student, exported)
        if is_lm:  # what follows a text is padding, which has no position of its own
            student, exported = student[batch.mask], exported[batch.mask]
        both = student.isfinite() & exported.isfinite()
        if not torch.equal(student.isfinite(), exported.isfinite()):
            self.difference = float("inf")
        self.difference = max(self.difference, _largest((student - exported)[both]))
        self.largest = max(self.largest, _largest(student[both]))
        if is_lm:
            self.tokens += self._differing_tokens(*here, batch)

    @property
    def tolerance(self) -> float:
        """The difference that rounding explains."""
        return TOLERANCE * max(1.0, self.largest)

    def _differing_tokens(self, student: Tensor, exported: Tensor, batch: Batch) -> int:
        """Return the number of likeliest tokens that differ, without ties of the student."""
        at = batch.targets.mask
        mine, theirs = student[at], exported[at].argmax(-1)
        ahead = mine.max(-1).values - mine.gather(-1, theirs.unsqueeze(-1)).squeeze(-1)
        return int((ahead > self.tolerance).sum())


def verify(
    student: PreTrainedModel,
    exported: nn.Module,
    rows: VerifiedRows,
    tokenizer: PreTrainedTokenizerFast,
    exact: bool,
) -> Verification:
    """Compare an exported model with the student that it was made from.

    Args:
        student: The student, prepared for its kind of task, in eval mode.
        exported: The exported model, prepared likewise.
        rows: The rows.
        tokenizer: The student's tokenizer.
        exact: Whether the outputs must be the same but for rounding; otherwise the metric may fall
            by a point.
    """
    apart = _Apart()
    before, after = _evaluate(student, exported, rows, tokenizer, apart)
    metric = rows.spec.metric_on(rows.split)
    known = Verification(
        split=rows.name,
        rows=len(rows.split),
        difference=apart.difference,
        largest=apart.largest,
        differing=apart.tokens if rows.spec.kind.is_lm else _differing(before, after),
        metric=metric.name,
        before=before.metrics[metric.name],
        after=after.metrics[metric.name],
        change=_change(rows, before, after),
        estimate=_estimate(rows, after),
        rows_digest=digest_of_rows(row_hashes(rows.split)),
    )
    if exact:
        return replace(known, problems=_inexact(known, apart.tolerance))
    return replace(known, weak=_weak(known), problems=_worse(known, metric))


def _evaluate(
    student: PreTrainedModel,
    exported: nn.Module,
    rows: VerifiedRows,
    tokenizer: PreTrainedTokenizerFast,
    apart: _Apart,
) -> list[Evaluation]:
    """Return the evaluations of both models, and add the distance of their outputs to `apart`."""
    spec, kind = rows.spec, rows.spec.kind
    parts: tuple[list[Any], list[Any]] = [], []
    with torch.no_grad():
        for batch in rows.batches(tokenizer):
            found = [model(**batch.inputs).logits for model in (student, exported)]
            apart.add(found[0], found[1], batch, kind.is_lm)
            for kept, logits in zip(parts, found, strict=True):
                kept.append(kind.observe(logits, batch))
    return [spec.measured(kind.summarize(each, rows.encoded), rows.split) for each in parts]


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _differing(before: Evaluation, after: Evaluation) -> int | None:
    mine, theirs = before.predictions, after.predictions
    if mine is None or theirs is None:
        return None
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if mine.is_floating_point():
            return None
        return int(mine.ne(theirs).reshape(len(mine), -1).any(1).sum())
    return sum(bool(one != other) for one, other in zip(mine, theirs, strict=True))


def _change(rows: VerifiedRows, before: Evaluation, after: Evaluation) -> SampleEstimate | None:
    measures = [row_measure(rows.spec, rows.split, each) for each in (after, before)]
    if measures[0] is None or measures[1] is None:
        return None
    groups: Sequence[Hashable] | None = rows.split.group
    return paired_bootstrap(measures[0], measures[1], len(rows.split), groups=groups)


def _estimate(rows: VerifiedRows, after: Evaluation) -> SampleEstimate | None:
    measure = row_measure(rows.spec, rows.split, after)
    if measure is None:
        return None
    return bootstrap(measure, len(rows.split), groups=rows.split.group)


def _inexact(found: Verification, tolerance: float) -> tuple[str, ...]:
    problems = []
    if not found.difference <= tolerance:
        problems.append(
            f"its outputs differ from the student's by up to {found.difference:.2g}, more than "
            f"rounding explains ({tolerance:.2g})"
        )
    if found.differing:
        problems.append(f"{found.differing} predictions differ on {found.rows} rows")
    return tuple(problems)


def _worse(found: Verification, metric: Metric) -> tuple[str, ...]:
    """Return the reason that the metric may have fallen by more than a point."""
    if found.change is None or found.change.interval is None:
        loss = (found.before - found.after) * (1 if metric.higher_is_better else -1)
        where = "its value"
    else:
        low, high = found.change.interval.low, found.change.interval.high
        loss = -low if metric.higher_is_better else high
        where = "the bound of its 95% interval"
    # Metrics are shares of 1 or percentages; those of which less is better have no such scale.
    scale = 100.0 if metric.higher_is_better and abs(found.before) > 1 else 1.0
    if not metric.higher_is_better:
        scale = abs(found.before)
    if loss < LOSS * scale:
        return ()
    return (
        f"{found.metric} is {found.after:.4f} and the student's {found.before:.4f}: {where} is "
        f"{loss:.4f} worse, and {LOSS * scale:.4f} is the limit",
    )


def _weak(found: Verification) -> str:
    if found.change is None or found.change.interval is None:
        return f"no interval of {found.metric} is known for these rows"
    if found.rows < ENOUGH:
        return f"{found.rows} rows are few to judge by ({ENOUGH} or more are not)"
    return ""


def differing_continuations(
    student: PreTrainedModel, exported: OnnxDecoder, rows: VerifiedRows, longest: int
) -> int:
    """Return the number of texts that a student and its exported graph continue differently.

    Both write the likeliest tokens, `WRITTEN` of them if the model reads as many.

    Args:
        student: The student.
        exported: The graph.
        rows: The rows; the first tokens of some are the beginnings.
        longest: Largest number of tokens that the student reads.
    """
    count = min(WRITTEN, longest - BEGINNING)
    settings = GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0)
    apart = 0
    for row in range(min(CONTINUED, len(rows.encoded))):
        ids = torch.from_numpy(rows.encoded.row(row)["input_ids"][:BEGINNING]).long().unsqueeze(0)
        with torch.no_grad(), quiet(), own_settings_aside(student):
            expected = student.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
        written = exported.continue_greedily(ids, count)
        apart += not torch.equal(expected, written)
    return apart
