"""One micro-batch, and the sets of items a loss can be averaged over."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from gkd_core.errors import MethodError

IGNORE = -100
"""The label of a position that has no target, as PyTorch and Hugging Face use it."""

UNKNOWN = -1
"""The label of a target whose class is not known."""

ItemKind: TypeAlias = str
"""The kind of items that a loss is averaged over: `sample`, `token`, `target`, or `METHOD.NAME` for
those that a method declares; see `Items`."""

RowSource = Literal["data", "student", "teacher"]
"""The origin of a row's text after the prompt: the data, or a model that wrote it."""

ROW_SOURCES: tuple[RowSource, ...] = ("data", "student", "teacher")
Output = Literal["classes", "binary", "value", "vector"]
"""How the logits of an item are read: as a distribution over classes (or tokens), as an independent
yes or no for each class, as a value, or as a vector."""


@dataclass(frozen=True)
class Items:
    """The items a loss is averaged over, and which of them count.

    `batch.samples`, `batch.tokens` and `batch.targets` cover most losses. A method that averages
    over others declares them in `items`, and finds them in the batch: `batch.items(NAME)`.

    Attributes:
        kind: `sample` (rows of the batch), `token` (positions that are not padding), `target`
            (what the task predicts: samples in classification, labeled positions in LM), or
            `METHOD.NAME`. Losses are divided by the number of items of a kind in the whole
            optimizer step, over all micro-batches and ranks.
        mask: Bool tensor, `[B]` or `[B, S]`; True where the item counts.
        index: Positions of the items that count in the flattened mask, int64 `[N]`.
        output: How `soft_labels` and `hard_labels` read the logits of an item.
    """

    kind: ItemKind
    mask: Tensor
    index: Tensor
    output: Output = "classes"

    @classmethod
    def where(cls, kind: ItemKind, mask: Tensor, output: Output = "classes") -> Items:
        """Return the items that a mask selects.

        Args:
            kind: The kind of the items; it decides the count that the loss is divided by.
            mask: Bool `[B]` or `[B, S]`; True where the item counts.
            output: How the logits of an item are read.
        """
        return cls(kind, mask, mask.flatten().nonzero().flatten(), output)

    @property
    def count(self) -> int:
        """Number of items that count."""
        return len(self.index)

    def to(self, device: torch.device) -> Items:
        """Return the items on `device`."""
        mask = self.mask.to(device, non_blocking=True)
        return Items(self.kind, mask, self.index.to(device, non_blocking=True), self.output)


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch as models and methods see it.

    Attributes:
        inputs: Inputs of the model's forward pass: `input_ids`, `attention_mask` and, if the
            tokenizer returns them, `token_type_ids`; `position_ids` if several rows are packed into
            one; int64 `[B, S]`.
        labels: Class ids int64 `[B]`, values fp32 `[B]` (regression), marks fp32 `[B, C]`
            (multi-label), first and last token int64 `[B, 2]` (span extraction), or classes or
            next/masked token ids int64 `[B, S]` with `IGNORE` where there is no target (position s
            holds the target of the logits at s: causal LM labels are already shifted). None if
            unlabeled, or `UNKNOWN` where it takes labels to say which positions are targets.
        rows: Index of each sample in its dataset, int64 `[B]`.
        counted: False if its losses do not count: this rank has fewer rows than others, and
            repeats one so that it takes part in their collectives.
        words: Index of the word that each token belongs to, from 0 in every row, -1 for special
            tokens and padding, int64 `[B, S]`; words are those of the text before masking. None
            in a batch that was not made by a `Collator`.
        output: How the logits of a target are read.
        byte_offsets: Start and end of each token in the UTF-8 text of its row (the second text of a
            pair follows the first), int64 `[B, S, 2]`; -1 for special tokens and padding. Tokens
            that share a character have its offsets. None unless a method `aligns` tokens or
            tokenizers differ.
        views: The batch as models with another tokenizer than the student's read it, by name.
        loss_mask: True at the tokens that losses count, bool `[B, S]`; what it leaves out besides
            padding is the prompt. None if all tokens count.
        sources: Index of each row's source in `ROW_SOURCES`, int64 `[B]`; None without rollouts.
        log_drawn: Log-probability with which each label was drawn, fp64 `[B, S]`, in rows that the
            student wrote, 0 elsewhere. None if no method is `on_policy` and no teacher takes part
            (`rollout.mixture`), or if the engine does not say.
        data_sources: Index in `Models.data.sources` of the data that each row is from, int64 `[B]`,
            -1 for data without training rows; None if all come from one.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor | None
    rows: Tensor
    counted: bool = True
    words: Tensor | None = None
    output: Output = "classes"
    byte_offsets: Tensor | None = None
    views: Mapping[str, Batch] = field(default_factory=dict)
    loss_mask: Tensor | None = None
    sources: Tensor | None = None
    log_drawn: Tensor | None = None
    data_sources: Tensor | None = None
    _declared: dict[ItemKind, Items] = field(default_factory=dict, repr=False, compare=False)
    _owner: str = field(default="", repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mask(self) -> Tensor:
        """True at positions that are not padding, bool `[B, S]`."""
        if self.loss_mask is None:
            return self.tokens.mask
        return self.inputs["attention_mask"].bool()

    @property
    def prompt_mask(self) -> Tensor:
        """True at the tokens of the prompts, bool `[B, S]`."""
        return self.mask & ~self.tokens.mask

    def written_by(self, source: RowSource) -> Tensor:
        """Return the mask of the rows with text from the given source, bool `[B]`."""
        if self.sources is None:
            return torch.full_like(self.rows, source == "data", dtype=torch.bool)
        return self.sources == ROW_SOURCES.index(source)

    @cached_property
    def samples(self) -> Items:
        """Every row of the batch."""
        return Items.where("sample", torch.ones_like(self.rows, dtype=torch.bool))

    @cached_property
    def tokens(self) -> Items:
        """Every position that is neither padding nor part of a prompt."""
        mask = self.inputs["attention_mask"].bool() if self.loss_mask is None else self.loss_mask
        return Items.where("token", mask)

    @cached_property
    def targets(self) -> Items:
        """The predicted items: samples, or the labeled positions of a language model."""
        if self.labels is not None and self.labels.dim() == 2 and self.output == "classes":
            return Items.where("target", self.labels != IGNORE)
        return Items.where("target", self.samples.mask, self.output)

    def require_labels(self) -> Tensor:
        """Return the labels, for a loss that cannot do without.

        Raises:
            MethodError: The batch has none.
        """
        if self.labels is None:
            raise MethodError(f"{self._owner or 'the method'} needs labels, and a batch has none")
        return self.labels

    def view(self, name: str) -> Batch:
        """Return the same rows as a model reads them: its ids, tokens, targets and byte offsets.

        Args:
            name: Name of the model, such as `teacher.model.name`. A model that reads the student's
                token ids has the batch itself.
        """
        return self.views.get(name, self)

    def items(self, name: str) -> Items:
        """Return the items that the method declared under this name in `items`.

        Raises:
            MethodError: It declares none of that name.
        """
        kind = f"{self._owner}.{name}"
        if kind not in self._declared:
            raise MethodError(
                f"{self._owner or 'the method'} does not declare the items '{name}'; return their "
                "mask from `items`"
            )
        return self._declared[kind]

    def declare(self, owner: str, masks: Mapping[str, Tensor]) -> None:
        """Add the items that a method or combiner declares; existing ones are kept.

        Args:
            owner: Its name.
            masks: Bool `[B]` or `[B, S]` by name; True where an item counts. S may also be the
                width of a view.

        Raises:
            MethodError: A mask is not a bool tensor of such a shape.
        """
        shapes = {view.mask.shape for view in (self, *self.views.values())}
        for name, mask in masks.items():
            if mask.dtype != torch.bool or mask.shape not in {self.rows.shape, *shapes}:
                raise MethodError(
                    f"{owner} declares the items '{name}' by a {mask.dtype} mask of shape "
                    f"{tuple(mask.shape)}; return a bool mask with one value per sample or position"
                )
            kind = f"{owner}.{name}"
            self._declared.setdefault(kind, Items.where(kind, mask))

    def seen_by(self, owner: str) -> Batch:
        """Return the batch as a method or combiner sees it, with its own `items`."""
        self._sets()  # found once: methods see the same ones
        seen = copy.copy(self)
        object.__setattr__(seen, "_owner", owner)
        return seen

    def counts(self) -> dict[ItemKind, int]:
        """Return the number of items of each kind that count."""
        return {items.kind: items.count if self.counted else 0 for items in self._sets()}

    def has_counted(self, items: Items) -> bool:
        """Return whether `counts` includes these items."""
        return any(items.kind == own.kind and items.mask is own.mask for own in self._sets())

    def _sets(self) -> tuple[Items, ...]:
        return self.samples, self.tokens, self.targets, *self._declared.values()

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        names = (
            *("labels", "rows", "words", "byte_offsets", "loss_mask"),
            *("sources", "log_drawn", "data_sources"),
        )
        tensors = {name: getattr(self, name) for name in names}
        own = {n: t.to(device, non_blocking=True) for n, t in tensors.items() if t is not None}
        declared = {kind: items.to(device) for kind, items in self._declared.items()}
        # Teachers that share a tokenizer share a view, which is moved once.
        shared = {id(view): view for view in self.views.values()}
        moved_views = {key: view.to(device) for key, view in shared.items()}
        views = {name: moved_views[id(view)] for name, view in self.views.items()}
        moved = replace(self, inputs=inputs, views=views, _declared=declared, **own)
        # The items are found here, on the CPU: `nonzero` on a GPU would wait for the device.
        for name in ("samples", "tokens", "targets"):
            moved.__dict__[name] = getattr(self, name).to(device)
        return moved
