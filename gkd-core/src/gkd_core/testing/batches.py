"""Variants of a tiny batch: padded, cut, reordered, without labels, with prompts."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from gkd_core.contract.batch import IGNORE, UNKNOWN, Batch


def pad(batch: Batch, columns: int, left: bool = False) -> Batch:
    """Return a batch with more padding.

    Args:
        batch: The batch.
        columns: Number of positions to add to each sequence.
        left: Whether to add them before the tokens.
    """
    sides = (columns, 0) if left else (0, columns)
    length = batch.mask.shape[-1]
    inputs = {
        name: functional.pad(value, sides) if value.shape[-1] == length else value
        for name, value in batch.inputs.items()
    }
    labels, words, spans, drawn = batch.labels, batch.words, batch.byte_offsets, batch.log_drawn
    if labels is not None and labels.shape == batch.inputs["input_ids"].shape:
        labels = functional.pad(labels, sides, value=IGNORE)
    return replace(
        batch,
        inputs=inputs,
        labels=labels,
        words=None if words is None else functional.pad(words, sides, value=-1),
        byte_offsets=None if spans is None else functional.pad(spans, (0, 0, *sides), value=-1),
        log_drawn=None if drawn is None else functional.pad(drawn, sides),
        views={name: pad(view, columns, left) for name, view in batch.views.items()},
        _declared={},  # items are declared for each batch anew
    )


def take(batch: Batch, rows: Tensor) -> Batch:
    """Return rows of a batch, in the order in which they are given."""

    def some(values: Tensor) -> Tensor:
        # A row may have several sequences.
        return values.reshape(len(batch), -1, *values.shape[1:])[rows].flatten(0, 1)

    def some_or_none(values: Tensor | None) -> Tensor | None:
        return None if values is None else some(values)

    return replace(
        batch,
        inputs={name: some(value) for name, value in batch.inputs.items()},
        labels=None if batch.labels is None else batch.labels[rows],
        rows=batch.rows[rows],
        words=some_or_none(batch.words),
        byte_offsets=some_or_none(batch.byte_offsets),
        loss_mask=some_or_none(batch.loss_mask),
        sources=None if batch.sources is None else batch.sources[rows],
        log_drawn=some_or_none(batch.log_drawn),
        data_sources=None if batch.data_sources is None else batch.data_sources[rows],
        views={name: take(view, rows) for name, view in batch.views.items()},
        _declared={},
    )


def without_labels(batch: Batch) -> Batch:
    """Return a batch as unlabeled rows give it; labels that mark positions are unknown."""
    labels = batch.labels
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        labels = labels.masked_fill(labels != IGNORE, UNKNOWN)
    else:
        labels = None
    views = {name: without_labels(view) for name, view in batch.views.items()}
    return replace(batch, labels=labels, views=views, _declared={})


def with_prompts(batch: Batch, length: int) -> Batch:
    """Return a batch of a language model whose rows begin with a prompt; the first is only that.

    Args:
        batch: The batch.
        length: Number of tokens of the prompts.
    """
    counts = batch.inputs["attention_mask"].bool().clone()
    width = counts.shape[-1]
    counts[:, :length] = False
    counts[0] = False
    follows = counts.roll(-1, dims=1)
    follows[:, -1] = False
    labels = None if batch.labels is None else batch.labels.masked_fill(~follows, IGNORE)
    of_view = {n: length * view.mask.shape[-1] // width for n, view in batch.views.items()}
    views = {name: with_prompts(view, of_view[name]) for name, view in batch.views.items()}
    return replace(batch, labels=labels, loss_mask=counts, views=views, _declared={})
