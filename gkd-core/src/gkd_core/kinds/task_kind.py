"""`TaskKind`: what a task predicts, and everything that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.contract.batch import Items
from gkd_core.contract.task import Fit, Split
from gkd_core.data.columns import CheckedRows, find_columns, find_label, has_labels, select
from gkd_core.data.encode import Encoded, encode_samples
from gkd_core.data.holdout import take
from gkd_core.errors import ConfigError
from gkd_core.kinds.metrics import Metric
from gkd_core.losses import hard_labels

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.contract.batch import Batch, Output
    from gkd_core.contract.model_info import Predicted
    from gkd_core.data.collate import Uncollated
    from gkd_core.data.table import Table
    from gkd_core.losses.logits import Logits


RowMeasure: TypeAlias = Callable[[NDArray[np.int64]], Mapping[str, float]]
"""Returns the metrics by name of some rows, given their numbers; a row may occur several times."""

PREPARED = "_gkd_prepared"
"""Attribute of a model whose output has the logits of its kind; copies of the model have it too."""


@dataclass(frozen=True)
class ReadRows:
    """The rows of a task.

    Attributes:
        splits: The splits by name: `train` and, if given, `validation` and `test`.
        classes: Names of the classes in the order of their ids; empty if the kind has none.
    """

    splits: Mapping[str, Split]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on a split.

    Attributes:
        metrics: Values by name; `loss` is always present.
        predictions: The prediction for each row of the split, in order; None in language modeling.
        columns: What else is known of each row, in the same order, by name: `scores` and `loss`, or
            sums over its tokens. Never logits over a vocabulary.
    """

    metrics: Mapping[str, float]
    predictions: Tensor | Sequence[Any] | None
    columns: Mapping[str, Tensor | NDArray[Any] | Sequence[Any]] = field(default_factory=dict)


class TaskKind:
    """A kind of task: data, head, labels, predictions and metrics.

    The base class is for tasks with one label per row of text (or pair of texts), and a model with
    a sequence-classification head. A subclass sets `name`, `head`, `metric` and `metrics`,
    overrides what differs, and is registered through `gkd_register_kinds`. Its docstring is what
    `gkd kinds` shows. Instances have no state.

    Attributes:
        name: The value of `task.kind` that selects it.
        head: Name of the model's head in messages.
        metric: The metric that selects the best student and is compared.
        metrics: Names of all metrics, besides `loss`.
        predicted: What has a prediction: each `sample`, each `token`, ...; see `ModelInfo`.
        output: How the logits of an item are read: as a distribution over classes, as independent
            classes, as a value or as a vector.
        has_classes: Whether the labels are classes, whose names and order models must share.
        problem_type: `problem_type` of the models in their configuration; None writes nothing.
        splits_rows: Whether a row of the data can become several rows to train on.
        is_lm: Whether it is language modeling: plain text, without labels, cut into blocks.
        masks: Whether the model's inputs hide the tokens that it predicts.
        generates: Whether its models continue a text, so that they can write rollouts.
        augments: Whether words of its training rows can be replaced (`task.augment`).
        keeps_scores: Whether what is kept of each row has the distribution that a model predicts;
            one that is too large is compared while both models read the rows (`divergences`).
        pools: Whether its head classifies one vector of each row, which methods read as `pooled`.
        markers: Names of the inputs of a batch that say where `logits` looks, such as the places of
            spans; the model's forward pass does not see them. See `mark`.
    """

    name: ClassVar[str]
    head: ClassVar[str]
    metric: ClassVar[Metric]
    metrics: ClassVar[tuple[str, ...]] = ()
    predicted: ClassVar[Predicted] = "sample"
    output: ClassVar[Output] = "classes"
    has_classes: ClassVar[bool] = False
    problem_type: ClassVar[str | None] = None
    splits_rows: ClassVar[bool] = False
    is_lm: ClassVar[bool] = False
    masks: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    augments: ClassVar[bool] = False
    keeps_scores: ClassVar[bool] = True
    pools: ClassVar[bool] = True
    markers: ClassVar[tuple[str, ...]] = ()

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def counts_as(self, names: Collection[str]) -> bool:
        """Return whether this kind, or one that its class extends, is among those named."""
        return any(getattr(base, "name", None) in names for base in type(self).__mro__)

    # The model

    @property
    def auto(self) -> Any:
        """The transformers Auto class of models with a head for this kind."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    @property
    def configs(self) -> Mapping[Any, Any]:
        """Model classes by configuration class: the architectures that have such a head."""
        mapping: Mapping[Any, Any] = self.auto._model_mapping
        return mapping

    def check_model(self, config: PretrainedConfig, origin: str) -> None:
        """Reject an architecture that has such a head but cannot be used for this kind.

        Args:
            config: The Hugging Face configuration.
            origin: Setting that named the model.

        Raises:
            ConfigError: It cannot.
        """

    def made(self, config: PretrainedConfig) -> bool:
        """Return whether a model was made for this kind, according to its configuration."""
        known = self.configs.get(type(config), ())
        models = known if isinstance(known, tuple) else (known,)
        names = {model.__name__ for model in models}
        return bool(names & set(config.architectures or ()))

    def unused(self, name: str) -> bool:
        """Return whether a checkpoint may lack a weight, because predictions do not depend on it.

        Args:
            name: Name of the weight.
        """
        return False

    def outputs(self, classes: Sequence[str]) -> int | None:
        """Return the `num_labels` that a trained model must have; None if any will do."""
        return len(classes) if self.has_classes else None

    def configure(self, config: PretrainedConfig, classes: Sequence[str]) -> None:
        """Write the head into a configuration: class names, number of outputs, problem type."""
        if self.has_classes:
            config.id2label = dict(enumerate(classes))
            config.label2id = {name: index for index, name in enumerate(classes)}
        if self.problem_type is not None:
            config.problem_type = self.problem_type

    def width(self, classes: Sequence[str], config: PretrainedConfig) -> int:
        """Return the width of the logits: the number of values per prediction.

        Args:
            classes: The task's classes.
            config: The model's configuration.
        """
        return len(classes)

    # The data

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Return the fit of a training table without a configured kind to this one."""
        return Fit.NO

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the rows of the tables: texts and parsed labels.

        Rows to train on may all be without labels; then those of the other tables may be, too.

        Args:
            tables: `train` and, if given, `validation` and `test`, in this order.
            config: Names of columns that the user gave.

        Raises:
            DataError: A column is missing, or a row is invalid.
        """
        refuse_target(config, self.name)
        train, *others = tables.values()
        columns = find_columns(train, config, labeled=True, others=others)
        labeled = has_labels(train, columns.label)
        splits: dict[str, Split] = {}
        classes: tuple[str, ...] = ()
        for name, table in tables.items():
            rows = select(table, columns, labeled)
            declared = table.classes.get(columns.label or "", ())
            if rows.labels is None:
                classes = classes or declared
                splits[name] = rows.split(None)
            else:
                classes = classes or self.find_classes(rows, declared)
                splits[name] = rows.split(self.parse(rows, classes))
        return ReadRows(splits, classes)

    def find_classes(self, rows: CheckedRows, declared: tuple[str, ...]) -> tuple[str, ...]:
        """Return the classes of rows in the order of their ids.

        Args:
            rows: The training rows, or else the first ones that have labels.
            declared: Class names in id order that the source of the data defines.

        Raises:
            DataError: The labels are not those of this kind.
        """
        return ()

    def parse(self, rows: CheckedRows, classes: Sequence[str]) -> Sequence[Any]:
        """Return the label of each row; bad labels are recorded in the faults of the rows' table.

        Args:
            rows: Rows with a label each, as strings.
            classes: The task's classes.
        """
        raise NotImplementedError

    def is_labeled(self, table: Table, train: Table, config: TaskConfig) -> bool:
        """Return whether a test table has labels, in the column that has them in training."""
        return has_labels(table, find_label([train, table], config))

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `DataError` if a tokenizer lacks what this kind needs."""

    def label_problem(self, label: Any, classes: Sequence[str]) -> str:
        """Return the problem with the parsed label of a row; empty if there is none."""
        return ""

    def renumber(self, label: Any, ids: Sequence[int], count: int = 0) -> Any:
        """Return the label of a row with other class ids.

        Args:
            label: The label.
            ids: The new id of each class.
            count: Number of classes afterwards, if there are more than before.
        """
        return ids[int(label)]

    def classes_of(self, label: Any) -> Iterable[int]:
        """Return the ids of the classes that the label of a row names."""
        return [int(label)]

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize a split.

        Args:
            split: The split.
            tokenizer: The tokenizer.
            max_length: Maximum length of a sequence in tokens.
            classes: The task's classes.

        Raises:
            ConfigError: `max_length` leaves no room besides the special tokens.
            DataError: A text yields no tokens.
        """
        return encode_samples(split, tokenizer, max_length, self.label_array(split))

    def label_array(self, split: Split) -> NDArray[Any] | None:
        """Return the labels of a split as an array with one entry per row; None if it has none."""
        return None if split.labels is None else np.array(split.labels, np.int64)

    def collate(self, rows: Uncollated) -> tuple[Sequence[NDArray[np.int64]], Tensor | None]:
        """Return the token ids of a micro-batch, changed if need be, and its labels.

        Args:
            rows: The rows of the micro-batch.
        """
        labels = rows.encoded.labels
        return rows.ids, None if labels is None else torch.from_numpy(labels[list(rows.numbers)])

    def mark(self, rows: Uncollated) -> Mapping[str, Tensor]:
        """Return the markers of a micro-batch by name, with one entry per row or per sequence.

        Args:
            rows: The rows of the micro-batch.
        """
        return {}

    # Rows without labels

    def any_labels(self, split: Split, classes: Sequence[str]) -> Sequence[Any]:
        """Return a placeholder label for each row of a split without labels.

        Args:
            split: Rows without labels.
            classes: The task's classes.
        """
        return [0] * len(split)

    def answers(self, predictions: Any, split: Split, classes: Sequence[str]) -> Sequence[Any]:
        """Return predictions as labels, so that another model can be compared with them.

        Args:
            predictions: Those of an `Evaluation` of the split.
            split: Rows without labels.
            classes: The task's classes.
        """
        return predictions.tolist() if isinstance(predictions, Tensor) else list(predictions)

    def shown(self, labels: Tensor | Sequence[Any], classes: Sequence[str]) -> list[Any]:
        """Return labels or predictions as files have them, with names instead of class ids.

        Args:
            labels: Labels of rows, or predictions of an `Evaluation`.
            classes: The task's classes.
        """
        values = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        return [_named(value, classes) for value in values] if self.has_classes else values

    # Predictions

    def logits(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits that methods see, made from the output of a model.

        Args:
            output: What the model's forward pass returned.
            inputs: The inputs of the forward pass, and the markers.
        """
        logits: Tensor = output.logits
        return logits

    def prepare(self, model: PreTrainedModel, classes: Sequence[str]) -> None:
        """Make a model output the `logits` of this kind, unless it does so already.

        Args:
            model: The model, with a head for this kind.
            classes: The task's classes.
        """
        if type(self).logits is not TaskKind.logits and not is_prepared(model):
            read_output(model, self.logits, self.markers)

    def observe(self, logits: Logits, batch: Batch) -> Any:
        """Return the values of a batch that the evaluation keeps, on the CPU.

        It is sent to other ranks: tensors, arrays, numbers, texts, and lists, tuples, mappings and
        dataclasses of them.

        Args:
            logits: The model's logits for the batch.
            batch: The batch, with labels.
        """
        return whole(logits).float().cpu(), batch.require_labels().cpu(), batch.rows.cpu()

    def summarize(self, parts: Sequence[Any], split: Encoded) -> Evaluation:
        """Return the evaluation of a split.

        Args:
            parts: What `observe` returned for each of its batches, in any order.
            split: The rows.
        """
        logits, labels, rows = map(torch.cat, zip(*parts, strict=True))
        order = rows.argsort()
        logits, labels = logits[order], labels[order]
        predictions = self.score(logits)
        columns = {"scores": logits} | self._losses(logits, labels)
        return Evaluation(self.measure(logits, predictions, labels), predictions, columns)

    def _losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss of each row; that of a vector is not known here."""
        if self.output == "vector":
            return {}
        every = Items.where("sample", torch.ones(len(logits), dtype=torch.bool), self.output)
        return {"loss": hard_labels(logits, labels, every).values}

    def score(self, logits: Tensor) -> Tensor:
        """Return the prediction for each row, given all logits `[N, C]`."""
        raise NotImplementedError

    def measure(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the metrics by name, with `loss`.

        Args:
            logits: `[N, C]`.
            predictions: The result of `score`.
            labels: The labels of all rows.
        """
        raise NotImplementedError

    def remeasure(
        self, evaluation: Evaluation, split: Split, classes: Sequence[str]
    ) -> RowMeasure | None:
        """Return a function that computes the metrics of some of the rows, by their numbers.

        It is called very often, to draw samples of the rows. None if an evaluation does not have
        what is needed.

        Args:
            evaluation: An evaluation of the split.
            split: The rows, with labels.
            classes: The task's classes.
        """
        scores, predictions = evaluation.columns.get("scores"), evaluation.predictions
        labels = self.label_array(split)
        if not isinstance(scores, Tensor) or not isinstance(predictions, Tensor) or labels is None:
            return None
        columns = scores, predictions, torch.from_numpy(labels)
        return lambda rows: self.measure(*(column[torch.from_numpy(rows)] for column in columns))

    def right(self, predictions: Sequence[Any], gold: Sequence[Any]) -> Sequence[bool] | None:
        """Return whether each prediction is right; None if that is a matter of degree.

        Args:
            predictions: The predictions, as `shown` returns them.
            gold: The labels likewise.
        """
        if self.output in ("value", "vector"):
            return None
        return list(map(_equal, predictions, gold))

    def divergences(self, values: NDArray[np.float64], split: Encoded) -> NDArray[np.float64]:
        """Return the divergence of two models for each row, for a kind that keeps no scores.

        Args:
            values: The sum over the predictions of each row that the models read.
            split: These rows.
        """
        return values

    def guess(self, labels: Sequence[Any] | None) -> float | None:
        """Return the main metric of guesses that ignore the text; None if it is not known."""
        return None

    def agreement(self, mine: Any, theirs: Any) -> float | None:
        """Return the share of the rows with the same prediction; None if it is not defined."""
        if isinstance(mine, Tensor):
            if mine.is_floating_point():
                return None
            same = mine.eq(theirs).reshape(len(mine), -1).all(1)
            return float(same.double().mean())
        return sum(map(_equal, mine, theirs)) / max(len(mine), 1)

    # Planning

    def one_row(self, split: Split) -> Split:
        """Return a representative row of a split, for uses in which only its shape matters."""
        return take(split, [0])

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return rows of maximum length to simulate a step with.

        Args:
            rows: Number of rows.
            length: Tokens of each row.
            token: Id of an ordinary token.
            classes: The task's classes.
        """
        return Encoded(
            ids=np.full(rows * length, token, np.int32),
            type_ids=None,
            offsets=np.arange(rows + 1, dtype=np.int64) * length,
            labels=np.zeros(rows, np.int64),
            num_truncated=0,
        )

    def planned_for(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        rows: int,
        length: int,
        token: int,
        classes: Sequence[str],
    ) -> Encoded:
        """Return rows as `planned` does, with other properties of a split that affect the cost.

        Args:
            split: Rows of the task.
            tokenizer: The tokenizer that reads them.
            rows: Number of rows to return.
            length: Tokens of each row.
            token: Id of an ordinary token.
            classes: The task's classes.
        """
        return self.planned(rows, length, token, classes)


def read_output(
    model: PreTrainedModel,
    read: Callable[[Any, Mapping[str, Tensor]], Tensor],
    markers: Sequence[str] = (),
) -> MarkedPass:
    """Use a function to compute the `logits` of a model's output; see `TaskKind.logits`.

    Args:
        model: The model.
        read: The function.
        markers: Names of the inputs that it sees, but not the model.

    Returns:
        The markers of the pass under way.
    """
    marked = MarkedPass(markers)
    if markers:
        model.register_forward_pre_hook(marked.begin, with_kwargs=True)
        if model.base_model is not model:  # which also runs alone, for its hidden states
            model.base_model.register_forward_pre_hook(marked.hide, with_kwargs=True)

    def set_logits(module: Any, args: Any, inputs: dict[str, Any], output: Any) -> Any:
        output.logits = read(output, {**inputs, **marked.end()})
        return output

    model.register_forward_hook(set_logits, with_kwargs=True)
    return marked


class MarkedPass:
    """Keeps the markers of a forward pass from the model, for what reads its output.

    Args:
        names: Their names.

    Attributes:
        found: Those of the pass under way, by name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)
        self.found: Mapping[str, Tensor] = {}

    def begin(self, model: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Note the markers, and hide them."""
        self.found = {name: inputs[name] for name in self._names & inputs.keys()}
        return self.hide(model, args, inputs)

    def hide(self, model: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the inputs without the markers."""
        return args, {name: x for name, x in inputs.items() if name not in self._names}

    def end(self) -> Mapping[str, Tensor]:
        """Return the markers, and forget them."""
        found, self.found = self.found, {}
        return found


def whole(logits: Logits) -> Tensor:
    """Return the logits of a kind whose heads are not over a vocabulary: these are never deferred.

    Args:
        logits: The logits of a batch.
    """
    assert isinstance(logits, Tensor), "only heads over a vocabulary defer their logits"
    return logits


def is_prepared(model: PreTrainedModel) -> bool:
    """Return whether the output of a model has been prepared before, and note that it is now."""
    before = hasattr(model, PREPARED)
    setattr(model, PREPARED, True)
    return before


def _named(value: Any, classes: Sequence[str]) -> Any:
    """Return the names of class ids; an id that no class has is None."""
    if isinstance(value, list):
        return [_named(each, classes) for each in value]
    if isinstance(value, int):
        return classes[value] if 0 <= value < len(classes) else None
    return value


def _equal(mine: object, theirs: object) -> bool:
    return mine == theirs


def refuse_target(config: TaskConfig, kind: str) -> None:
    """Raise `ConfigError` if a kind of task other than `causal-lm` is to write a target text."""
    if config.target is not None:
        raise ConfigError(
            f"task.target = {config.target!r} is a text to write, which {kind} does not; set "
            "task.kind = 'causal-lm', or name the labels with task.label"
        )
