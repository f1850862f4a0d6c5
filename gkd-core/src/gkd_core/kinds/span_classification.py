"""`span-classification`: one class for two spans of a text, read in their context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.contract.task import Fit, Split
from gkd_core.data.columns import find_label, has_labels
from gkd_core.data.encode import Encoded, encode_samples
from gkd_core.data.table import Faults
from gkd_core.errors import ConfigError, DataError
from gkd_core.kinds.class_kind import ClassKind
from gkd_core.kinds.language_model import sees_both_sides
from gkd_core.kinds.task_kind import ReadRows

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.data.collate import Uncollated
    from gkd_core.data.table import Table

COLUMN = "spans"


class SpanClassification(ClassKind):
    """One of several classes for two spans of a text or a pair of texts, as in WiC and WSC.

    The classifier reads the state of the first token and the mean state of each span: it is linear
    on their concatenation. The model is a token classifier with 3 C outputs: the first C count at
    the first token, the next C are averaged over the tokens of the first span, the last C over
    those of the second. Rows have a column `spans` with `[part, start, end]` for each span: part 0
    is the text and 1 the second one, `end` the character after the last.

    Attributes:
        count: Number of spans of a row.
    """

    name = "span-classification"
    head = "token-classification head"
    pools = False
    markers = ("spans",)
    count: ClassVar[int] = 2

    @property
    def auto(self) -> Any:
        """The Auto class of token classifiers."""
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def check_model(self, config: PretrainedConfig, origin: str) -> None:
        """Reject a decoder, whose states of a span do not know what follows it."""
        if not sees_both_sides(config):
            raise ConfigError(
                f"{origin}: {config.model_type} is no encoder, and task.kind = '{self}' reads "
                "states of spans that know what follows them; use an encoder, or task.kind = "
                "'causal-cloze'"
            )

    def made(self, config: PretrainedConfig) -> bool:
        """Recognize a token classifier in which every class has an output for each state read."""
        names = list(config.id2label.values())
        blocks = [*dict.fromkeys(names)] * (1 + self.count)
        return super().made(config) and names == blocks

    def outputs(self, classes: Sequence[str]) -> int:
        """Return the number of outputs: one per class for each state read."""
        return (1 + self.count) * len(classes)

    def configure(self, config: PretrainedConfig, classes: Sequence[str]) -> None:
        """Write the class names, once for each state read."""
        config.id2label = dict(enumerate([*classes] * (1 + self.count)))
        config.label2id = {name: index for index, name in enumerate(classes)}

    def fit(self, table: Table, config: TaskConfig) -> Fit:
        """Take rows with labels and spans."""
        spans = table.columns.get(COLUMN, ())[:1]
        found = bool(spans) and not _problem(spans[0], self.count)
        return Fit.CERTAIN if found and has_labels(table, find_label([table], config)) else Fit.NO

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the rows with their spans.

        Raises:
            DataError: A column is missing, or a row is invalid.
        """
        for table in tables.values():
            _check_column(table)
            for number, value in zip(table.numbers, table.columns[COLUMN], strict=True):
                if problem := _problem(value, self.count):
                    table.faults.add(number, problem)
        found = super().read(tables, config)
        splits = {n: _with_spans(split, tables[n]) for n, split in found.splits.items()}
        return replace(found, splits=splits)

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize texts, and find the tokens of their spans.

        Raises:
            ConfigError: `max_length` leaves no room besides the special tokens.
            DataError: A span is beyond the tokens that are kept.
        """
        located = replace(split, byte_offsets=True)
        encoded = encode_samples(located, tokenizer, max_length, self.label_array(split))
        assert encoded.byte_offsets is not None, "asked for"
        faults = Faults("the rows", unit="row", advice="Raise task.max_length, or shorten the rows")
        spans = np.zeros((len(split), self.count, 2), np.int64)
        for row, places in enumerate(split.spans or ()):
            texts, tokens = _texts(split, row), encoded.byte_offsets[encoded.part(row)]
            for number, place in enumerate(places):
                covered = _covered(tokens, *_bytes(texts, place))
                if covered is None:
                    part, start, end = place
                    problem = f"the span {texts[part][start:end]!r} is beyond {max_length} tokens"
                    faults.add(row + 1, f"{problem} (task.max_length)")
                else:
                    spans[row, number] = covered
        faults.check()
        if not split.byte_offsets:
            encoded = replace(encoded, byte_offsets=None)
        return replace(encoded, extra={"spans": spans})

    def mark(self, rows: Uncollated) -> Mapping[str, Tensor]:
        """Return the mask of the tokens of each span, int64 `[B, N, S]`."""
        spans = rows.encoded.extra["spans"]
        marks = [
            [_mark(len(ids), *span) for span in spans[row]]
            for ids, row in zip(rows.ids, rows.numbers, strict=True)
        ]
        of_each = [rows.padded(list(each), 0) for each in zip(*marks, strict=True)]
        return {"spans": torch.stack(of_each, 1)}

    def logits(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the outputs for the first token and for each span, `[B, C]`."""
        logits: Tensor = output.logits
        first = inputs["attention_mask"].long().argmax(1)
        here = torch.arange(logits.shape[1], device=logits.device) == first.unsqueeze(1)
        read = torch.cat([here.long().unsqueeze(1), inputs["spans"]], 1).to(logits.dtype)
        shares = read / read.sum(-1, keepdim=True)
        blocks = logits.reshape(*logits.shape[:-1], 1 + self.count, -1)
        return torch.einsum("bns,bsnc->bc", shares, blocks)

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return rows whose spans are their first token."""
        made = super().planned(rows, length, token, classes)
        return replace(made, extra={"spans": np.zeros((rows, self.count, 2), np.int64)})


def _check_column(table: Table) -> None:
    table.check_filled()
    if COLUMN not in table.columns:
        raise DataError(
            f"{table.source} has no column {COLUMN!r}, with [part, start, end] for each span: the "
            f"columns are {', '.join(map(repr, table.columns))}"
        )


def _problem(spans: Any, count: int) -> str:
    """Return the problem with the form of the spans of a row; empty if there is none."""
    if not isinstance(spans, (list, tuple)) or len(spans) != count:
        return f"expected {count} spans, [part, start, end] each (column {COLUMN!r})"
    for span in spans:
        if not isinstance(span, (list, tuple)) or len(span) not in (2, 3):
            return f"the span {span!r} is not [part, start, end] (column {COLUMN!r})"
        if not all(isinstance(one, int) for one in span):
            return f"the span {span!r} has something other than whole numbers (column {COLUMN!r})"
    return ""


def _with_spans(split: Split, table: Table) -> Split:
    """Return rows with the spans of a table, which are checked against the texts."""
    spans = [[_whole(span) for span in row] for row in table.columns[COLUMN]]
    split = replace(split, spans=spans)
    for row, number in enumerate(table.numbers):
        texts = _texts(split, row)
        for part, start, end in spans[row]:
            inside = 0 <= part < len(texts) and 0 <= start < end <= len(texts[part])
            if not inside or not texts[part][start:end].strip():
                place = f"characters {start} to {end} of part {part}"
                table.faults.add(number, f"a span is at {place}, where there is no text")
    table.faults.check()
    return split


def _whole(span: Sequence[int]) -> tuple[int, int, int]:
    """Return a span with its part, which is the text if none is given."""
    part, start, end = span if len(span) == 3 else (0, *span)
    return part, start, end


def _texts(split: Split, row: int) -> list[str]:
    """Return the text of a row, and the second one if it has one."""
    return [split.text[row], *([] if split.pair is None else [split.pair[row]])]


def _bytes(texts: Sequence[str], place: tuple[int, int, int]) -> tuple[int, int]:
    """Return the first byte of a span in the texts of its row, and the one after the last."""
    part, start, end = place
    span = texts[part][start:end]
    before = "".join(texts[:part]) + texts[part][:start] + span[: len(span) - len(span.lstrip())]
    begin = len(before.encode())
    return begin, begin + len(span.strip().encode())


def _covered(tokens: NDArray[np.int32], begin: int, end: int) -> tuple[int, int] | None:
    """Return the first and the last token of some bytes; None unless tokens cover them."""
    found = np.flatnonzero((tokens[:, 0] < end) & (tokens[:, 1] > begin) & (tokens[:, 0] >= 0))
    if not len(found) or tokens[found[0], 0] > begin or tokens[found[-1], 1] < end:
        return None
    return int(found[0]), int(found[-1])


def _mark(length: int, first: int, last: int) -> NDArray[np.int64]:
    """Return 1 from the first to the last position, and 0 elsewhere."""
    places = np.arange(length)
    return ((places >= first) & (places <= last)).astype(np.int64)
