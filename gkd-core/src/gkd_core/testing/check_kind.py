"""`check_kind`: checks of the properties that every kind of task must have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gkd_core.config.schema import TaskConfig
from gkd_core.contract.batch import Batch
from gkd_core.contract.task import Fit, Split
from gkd_core.data.collate import EVALUATION_EPOCH, Collator
from gkd_core.data.encode import Encoded
from gkd_core.data.table import Faults, Table
from gkd_core.distributed.groups import setup
from gkd_core.distributed.layout import Layout
from gkd_core.evaluation.evaluate import Predict, evaluate
from gkd_core.hooks.extraction import Extractor
from gkd_core.kinds.task_kind import Evaluation, TaskKind
from gkd_core.losses import hard_labels, soft_labels
from gkd_core.models.classes import output_names
from gkd_core.models.sites import find_sites
from gkd_core.plugins import registry
from gkd_core.testing.ranks import on_ranks
from gkd_core.testing.tiny import SPECIAL, model_for, word_tokenizer

LENGTH = 32
"""Longest sequence in tokens."""

CPU = torch.device("cpu")
TOLERANCE = 1e-5


def check_kind(
    kind: type[TaskKind],
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
    ranks: int = 1,
) -> None:
    """Check a kind of task on rows of its own, with a tiny random model.

    Rows are read reproducibly, their labels are valid and follow the order of the classes. What a
    row is encoded and collated to depends neither on the others nor on the side of the padding. The
    model has the outputs that the kind declares, logits have the declared shape, and a student's
    configuration says what it was made for. Losses are finite, and zero between equal models. The
    evaluation has the declared metrics and one prediction per row, whatever the batches. Rows to
    plan with have the form of real ones.

    Args:
        kind: The class.
        rows: At least four rows, as they stand in a file: values by column.
        settings: Settings of the table `task`, such as `label`.
        ranks: Number of processes. With 2, those that share the model, and those that share out the
            rows, must measure the same as one; the class stands at the top of a module.

    Raises:
        AssertionError: A property does not hold; the message says which.
        DataError: The rows are none of this kind.
    """
    trial = _KindTrial(kind, tuple(rows), settings or {})
    _check_class(trial)
    _check_reading(trial)
    _check_classes(trial)
    _check_collation(trial)
    _check_sides(trial, replace(trial, side="left"))
    _check_model(trial)
    _check_losses(trial)
    _check_evaluation(trial)
    _check_planning(trial)
    if ranks > 1:
        for shares, model in on_ranks(ranks, _measure_on_rank, replace(trial)):
            _same_metrics(trial, shares, f"{ranks} processes that share out the rows")
            _same_metrics(trial, model, f"{ranks} processes that share the model")


@dataclass(frozen=True)
class _KindTrial:
    """A kind with rows and a tiny model.

    Attributes:
        cls: Its class.
        rows: The rows.
        settings: Settings of the table `task`.
        side: The side of the padding.
    """

    cls: type[TaskKind]
    rows: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    side: str = "right"

    @property
    def name(self) -> str:
        """The name of the kind, for messages."""
        return self.cls.name

    @cached_property
    def kind(self) -> TaskKind:
        """The kind."""
        return self.cls()

    @property
    def config(self) -> TaskConfig:
        """The table `task`."""
        return TaskConfig(**self.settings)

    @property
    def table(self) -> Table:
        """The rows by column."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        columns = {name: [row.get(name) for row in self.rows] for name in names}
        return Table(columns, range(1, len(self.rows) + 1), Faults("the rows"))

    def read(self) -> tuple[Split, tuple[str, ...]]:
        """Read the rows, and return them with the names of the classes."""
        found = self.kind.read({"train": self.table, "validation": self.table}, self.config)
        assert set(found.splits) == {"train", "validation"}, f"{self.name}: `read` loses a split"
        return found.splits["train"], found.classes

    @cached_property
    def split(self) -> Split:
        """The rows as read."""
        return self.read()[0]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes."""
        return self.read()[1]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer of the words of the rows."""
        return word_tokenizer(_words(self.rows), self.side)

    @cached_property
    def encoded(self) -> Encoded:
        """The rows as token ids."""
        return self.encode(self.split)

    def encode(self, split: Split) -> Encoded:
        """Return rows as token ids."""
        return self.kind.encode(split, self.tokenizer, LENGTH, self.classes)

    @cached_property
    def collator(self) -> Collator:
        """The collator that makes batches."""
        return Collator(self.tokenizer, self.kind, mask_share=0.5, seed=0)

    def batch(self, rows: Iterable[int], width: int = 0) -> Batch:
        """Return a batch of some rows."""
        return self.collator.collate(self.encoded, list(rows), EVALUATION_EPOCH, width)

    def single(self, row: int) -> Batch:
        """Return a row by itself."""
        return self.batch([row])

    @property
    def whole(self) -> Batch:
        """All rows in a batch."""
        return self.batch(range(len(self.encoded)))

    @cached_property
    def model(self) -> PreTrainedModel:
        """A random model."""
        return model_for(self.kind, self.classes, layers=2, seed=0)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of the model."""
        with torch.no_grad():
            found: Tensor = self.model(**batch.inputs).logits
        return found

    def evaluate(self, predict: Predict | None = None) -> Evaluation:
        """Return the evaluation of the model."""
        return evaluate(self.model, self.encoded, self.collator, self.kind, CPU, predict)


def _words(value: Any) -> list[str]:
    """Return the words of all texts in rows, in order."""
    if isinstance(value, str):
        return value.split()
    if isinstance(value, Mapping):
        value = list(value.values())
    return [w for one in value for w in _words(one)] if isinstance(value, (list, tuple)) else []


def _check_class(trial: _KindTrial) -> None:
    kind, name = trial.kind, trial.name
    assert type(kind).__doc__, f"{name}: a docstring is needed; `gkd kinds {name}` shows it"
    assert kind.metric.name in kind.metrics, (
        f"{name}: the main metric {kind.metric.name!r} is not among `metrics`, {kind.metrics}"
    )
    assert kind.configs, f"{name}: no architecture has such a head"
    assert isinstance(kind.fit(trial.table, trial.config), Fit), f"{name}: `fit` returns no Fit"


def _check_reading(trial: _KindTrial) -> None:
    name, (split, classes) = trial.name, trial.read()
    assert (split, classes) == trial.read(), f"{name}: read again, the rows are others"
    assert len(split) > 0, f"{name}: no row is read"
    for column in (split.pair, split.labels, split.group, split.target):
        assert column is None or len(column) == len(split), f"{name}: a column lacks rows"
    for label in split.labels or ():
        problem = trial.kind.label_problem(label, classes)
        assert not problem, f"{name}: a row has {problem}"
    train = trial.table
    assert trial.kind.is_labeled(train, train, trial.config) or split.labels is None, (
        f"{name}: `is_labeled` denies that labeled rows have labels"
    )


def _check_classes(trial: _KindTrial) -> None:
    """Check that labels follow their classes into another order, and back."""
    name, kind, split, count = trial.name, trial.kind, trial.split, len(trial.classes)
    if not kind.has_classes or split.labels is None:
        return
    assert count > 1, f"{name}: it has classes, but reads {trial.classes}"
    turned = [(index + 1) % (count + 1) for index in range(count)]
    for label in split.labels:
        moved = kind.renumber(label, turned, count + 1)
        found = {turned[index] for index in kind.classes_of(label)}
        assert set(kind.classes_of(moved)) == found, f"{name}: `renumber` gives other classes"


def _check_collation(trial: _KindTrial) -> None:
    """Check that a row does not depend on the others of its batch."""
    name, encoded, batch = trial.name, trial.encoded, trial.whole
    split_rows = trial.kind.splits_rows
    assert split_rows or len(encoded) == len(trial.split), f"{name}: declare `splits_rows`"
    assert encoded.lengths.max() <= LENGTH, f"{name}: a sequence exceeds the longest allowed"
    assert len(batch) == len(encoded), f"{name}: a batch has other rows than asked for"
    width = batch.inputs["input_ids"].shape[1]
    for row in range(len(encoded)):
        alone = trial.batch([row], width)
        own = encoded.sequences([row])
        for key, value in alone.inputs.items():
            of_rows = len(batch.inputs[key]) == len(batch)
            assert torch.equal(value, batch.inputs[key][[row] if of_rows else own]), (
                f"{name}: `{key}` of a row depends on the other rows of its batch"
            )
        if alone.labels is not None and batch.labels is not None:
            assert torch.equal(alone.labels[0], batch.labels[row]), (
                f"{name}: the label of a row depends on the other rows of its batch"
            )


def _check_sides(trial: _KindTrial, left: _KindTrial) -> None:
    """Check that labels which are or name a position stay with their token."""
    one, other = trial.whole, left.whole
    if one.labels is None or other.labels is None:
        return
    if one.labels.shape == one.mask.shape:
        same = torch.equal(one.labels[one.mask], other.labels[other.mask])
    elif trial.kind.predicted == "span":
        tokens = [b.inputs["input_ids"].gather(1, b.labels) for b in (one, other)]  # type: ignore[arg-type]
        same = torch.equal(*tokens)
    else:
        same = torch.equal(one.labels, other.labels)
    assert same, f"{trial.name}: padding on the left moves the labels to other tokens"


def _check_model(trial: _KindTrial) -> None:
    name, kind, model, config = trial.name, trial.kind, trial.model, trial.model.config
    expected = kind.outputs(trial.classes)
    assert expected in (None, config.num_labels), (
        f"{name}: `outputs` is {expected}, but `configure` writes {config.num_labels}"
    )
    if kind.has_classes:
        assert output_names(config) == trial.classes, (
            f"{name}: `configure` does not write the class names"
        )
    config.architectures = [type(model).__name__]
    languages = [other for other in registry().kinds.values() if other.is_lm]
    assert any(each.made(config) for each in (kind, *languages)), (
        f"{name}: `made` does not recognize a model of this kind"
    )
    kind.prepare(model, trial.classes)  # again, as for a model that several stages use
    batch = trial.whole
    width, (sequences, length) = kind.width(trial.classes, config), batch.mask.shape
    shapes = {
        "sample": (len(batch), width),
        "token": (sequences, length, width),
        "span": (sequences, 2, length),
        "vector": (sequences, width),
    }
    logits = trial.logits(batch)
    assert tuple(logits.shape) == shapes[kind.predicted], (
        f"{name}: logits have the shape {tuple(logits.shape)}; `predicted` = "
        f"{kind.predicted!r} and `width` say {shapes[kind.predicted]}"
    )
    wider = trial.logits(trial.batch(range(len(batch)), length + 3))
    if kind.predicted in ("token", "span"):
        seen, axis = batch.mask, 1 if kind.predicted == "token" else 2
        wider = wider.narrow(axis, 0, length).movedim(axis, 1)[seen]
        logits = logits.movedim(axis, 1)[seen]
    _same(wider, logits, f"{name}: padding changes the predictions")


def _check_losses(trial: _KindTrial) -> None:
    batch, name = trial.whole, trial.name
    logits = trial.model(**batch.inputs).logits
    same = soft_labels(logits, logits.detach(), batch.targets, 2.0).mean()
    assert same.abs() < 1e-9, f"{name}: the distance of a model to itself is {same.item()}"
    if batch.labels is None:
        return
    hard = hard_labels(logits, batch.labels, batch.targets).mean()
    assert hard.isfinite(), f"{name}: the loss of the labels is {hard.item()}"
    hard.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in trial.model.parameters() if p.grad is not None]
    assert any(g.abs().sum() > 0 for g in gradients), f"{name}: the labels teach nothing"
    assert all(g.isfinite().all() for g in gradients), f"{name}: a gradient is not finite"
    trial.model.zero_grad()


def _check_evaluation(trial: _KindTrial) -> None:
    name, kind, found = trial.name, trial.kind, trial.evaluate()
    missing = {"loss", kind.metric.name, *kind.metrics} - set(found.metrics)
    assert not missing, f"{name}: the evaluation lacks {sorted(missing)}"
    for metric, value in found.metrics.items():
        assert isfinite(value), f"{name}: the metric {metric!r} is {value!r}"
    order = range(len(trial.encoded) - 1, -1, -1)
    parts = [kind.observe(trial.logits(batch), batch) for batch in map(trial.single, order)]
    again = kind.summarize(parts, trial.encoded)
    _same_metrics(trial, again.metrics, "batches of one row in another order")
    _check_remeasuring(trial, found)
    rows = len(trial.split)
    for column, values in found.columns.items():
        assert len(values) == rows, (
            f"{name}: the column {column!r} has {len(values)} values for {rows} rows"
        )
    if found.predictions is None:
        return
    count = len(found.predictions)
    assert count == rows, f"{name}: there are {count} predictions for {rows} rows"
    agreed = kind.agreement(found.predictions, again.predictions)
    assert agreed in (None, 1.0), f"{name}: a model agrees with itself on {agreed} of the rows"


def _check_remeasuring(trial: _KindTrial, found: Evaluation) -> None:
    """Check that all rows, as the bootstrap may draw them, have the metrics of the evaluation."""
    name, kind = trial.name, trial.kind
    remeasure = kind.remeasure(found, trial.split, trial.classes)
    if remeasure is None:
        return
    again = remeasure(np.arange(len(trial.split)))
    missing = {kind.metric.name, *kind.metrics} - set(again)
    assert not missing, f"{name}: `remeasure` lacks {sorted(missing)}"
    _same_metrics(trial, {**found.metrics, **again}, "all rows, measured by `remeasure`,")


def _check_planning(trial: _KindTrial) -> None:
    """Check that rows which are only imagined have the form of real ones."""
    name, kind = trial.name, trial.kind
    assert len(trial.encode(kind.one_row(trial.split))) > 0, f"{name}: `one_row` has no row"
    order = np.argsort(-np.diff(trial.encoded.starts), kind="stable")
    real = trial.batch(order[:2].tolist(), LENGTH)
    made = kind.planned(2, LENGTH, SPECIAL.index("[MASK]"), trial.classes)
    planned = trial.collator.collate(made, [0, 1], EVALUATION_EPOCH)
    forms = [(b.mask.shape, b.labels is None, len(b)) for b in (real, planned)]
    assert forms[0] == forms[1], f"{name}: `planned` gives other shapes than real rows have"
    if real.labels is not None and planned.labels is not None:
        assert real.labels.shape == planned.labels.shape, f"{name}: labels of `planned` differ"
        assert real.labels.dtype == planned.labels.dtype, f"{name}: labels of `planned` differ"


def _measure_on_rank(trial: _KindTrial) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Return the metrics of rows that the ranks share out, and of a model that they share."""
    from gkd_core.parallel.sharding import shard_model

    rows = trial.evaluate().metrics
    world = dist.get_world_size()
    shard_model(trial.model, setup(Layout(world=world, tensor=world)).tensor)
    extractor = Extractor(trial.model, find_sites(trial.model))
    return rows, trial.evaluate(lambda batch: extractor.predict(batch.inputs)).metrics


def _same_metrics(trial: _KindTrial, found: Mapping[str, float], how: str) -> None:
    expected = trial.evaluate().metrics
    apart = [name for name in expected if abs(found[name] - expected[name]) > TOLERANCE]
    assert not apart, (
        f"{trial.name}: {how} change {apart[0]} from {expected[apart[0]]} to {found[apart[0]]}"
    )


def _same(found: Tensor, expected: Tensor, message: str) -> None:
    apart = (found - expected)[expected.isfinite()].abs().max()
    assert apart < TOLERANCE, f"{message} (difference {apart.item():.2g})"
