"""`OtherPrompts`: the prompts that a teacher is asked instead of a row's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gkd_core.contract.batch import IGNORE, Batch
from gkd_core.data.prompts import encode_prompts, prompts_alone
from gkd_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gkd_core.contract.task import Split

ALL_TOKENS = 2**31
"""No prompt is this long, so that none is cut."""


@dataclass(frozen=True)
class OtherPrompts:
    """The prompts that a teacher reads before the answers of the rows.

    Attributes:
        teacher: Name of the teacher.
        ids: Token ids of the prompt of each row, int64.
        pad_id: The token for padding.
        left: Whether shorter rows are padded on the left.
    """

    teacher: str
    ids: Sequence[Tensor]
    pad_id: int
    left: bool

    def longest(self, batch: Batch) -> int:
        """Return the tokens of the longest row of a batch as the teacher reads it.

        Args:
            batch: The rows as the student reads them.
        """
        pairs = zip(batch.rows.tolist(), _answers(batch), strict=True)
        return max(len(self.ids[row]) + len(answer) for row, answer in pairs)

    def view(self, batch: Batch, width: int) -> Batch:
        """Return a batch as the teacher reads it: the same answers after its own prompts.

        Args:
            batch: The rows as the student reads them, with the text that models wrote.
            width: Width to which rows are padded.
        """
        shape = (len(batch), width)
        ids = torch.full(shape, self.pad_id)
        mask, learned = torch.zeros_like(ids), torch.zeros(shape, dtype=torch.bool)
        labels = torch.full(shape, IGNORE)
        pairs = zip(batch.rows.tolist(), _answers(batch), strict=True)
        for line, (row, answer) in enumerate(pairs):
            prompt = self.ids[row]
            length = len(prompt) + len(answer)
            first = width - length if self.left else 0
            begin, end = first + len(prompt), first + length
            ids[line, first:end] = torch.cat([prompt, answer])
            mask[line, first:end], learned[line, begin:end] = 1, True
            labels[line, begin - 1 : end - 1] = answer
        inputs = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in batch.inputs:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        return Batch(
            inputs=inputs,
            labels=labels,
            rows=batch.rows,
            counted=batch.counted,
            loss_mask=learned,
            sources=batch.sources,
            data_sources=batch.data_sources,
        )


def other_prompts(
    teacher: str,
    template: str,
    split: Split,
    texts: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    pad_id: int,
) -> OtherPrompts:
    """Return the prompt of a teacher for each row.

    Args:
        teacher: Name of the teacher.
        template: The text of the prompts, with `{prompt}`, `{answer}` and `{context}`.
        split: Rows with what the template names.
        texts: The row of the split that each encoded row is made of.
        tokenizer: The tokenizer of student and teacher.
        pad_id: The token for padding.
    """
    none = [""] * len(split)  # the template does not name it: checked when the run is planned
    told = zip(split.text, split.target or none, split.context or none, strict=True)
    shown = [_filled(template, *row) for row in told]
    prompts = replace(prompts_alone(split, tokenizer, 0), text=shown, pair=None)
    found = encode_prompts(prompts, tokenizer, ALL_TOKENS)
    ids = [torch.tensor(found[text], dtype=torch.int64) for text in texts]
    if not all(len(one) for one in ids):
        raise DataError(f"the prompt of teacher {teacher!r} is empty for a row")
    return OtherPrompts(teacher, ids, pad_id, tokenizer.padding_side == "left")


def _filled(template: str, text: Any, target: str, context: str) -> Any:
    """Return a prompt, or the messages whose last one is replaced by it."""
    if isinstance(text, str):
        return template.format(prompt=text, answer=target, context=context)
    *before, last = text
    shown = template.format(prompt=last["content"], answer=target, context=context)
    return [*before, {**last, "content": shown}]


def _answers(batch: Batch) -> list[Tensor]:
    """Return the tokens of each row that are learned."""
    assert batch.labels is not None, "text has its next tokens as labels"
    return [row[row != IGNORE] for row in batch.labels]
