"""Samples of the text that a causal language model writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig

from gkd_core.data.encode import BYTES, TEXTS
from gkd_core.evaluation.answer_check import AnswerCheck
from gkd_core.evaluation.written import exact_match, rouge_l
from gkd_core.models.generation import own_settings_aside

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from gkd_core.data.encode import Encoded

MEASURES: Mapping[str, Callable[[str, str], float]] = {
    "rouge_l": rouge_l,
    "exact_match": exact_match,
}
"""The metrics of a text that was written instead of a target."""

CHECK = "check"
"""Column with what `task.check` says of a text."""

LONGEST_PROMPT = 32
"""Longest prompt in tokens that is taken from the beginning of a text."""


@dataclass(frozen=True)
class Sampling:
    """The number of samples to write.

    Attributes:
        rows: Number of rows, the first ones.
        new_tokens: Longest continuation in tokens; those of a target may be more.
        check: Tells right answers from wrong ones; None if nothing does.
    """

    rows: int
    new_tokens: int = 40
    check: AnswerCheck | None = None


def write_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    split: Encoded,
    sampling: Sampling,
) -> dict[str, list[Any]]:
    """Return columns with prompts and what a model writes after them, greedily; None for the rest.

    Of its own settings for generation, only the tokens that end a text or are no word apply.

    The prompt of a row with a target is its text; of plain text, the first half of its tokens, at
    most `LONGEST_PROMPT`. What is written in the place of a target may be as long as that, and is
    compared with it, in the columns `rouge_l` and `exact_match`; `check` has what the check says.

    Args:
        model: The model, whole and in evaluation mode.
        tokenizer: Its tokenizer.
        split: The rows.
        sampling: How many.
    """
    measured = () if split.prompts is None else tuple(MEASURES)
    checked = () if sampling.check is None else (CHECK,)
    columns: dict[str, list[Any]] = {
        name: [None] * len(split.extra[BYTES])
        for name in ("prompt", "generated", *measured, *checked)
    }
    longest = getattr(model.config, "max_position_embeddings", None) or math.inf
    for row, prompt, target in _prompts(split, sampling.rows):
        most = max(sampling.new_tokens, 0 if target is None else len(target))
        ids = torch.from_numpy(prompt.astype(np.int64))[None].to(model.device)
        settings = _greedy(model, tokenizer, max(1, int(min(most, longest - len(prompt)))))
        with torch.no_grad(), own_settings_aside(model):
            written = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
        question = tokenizer.decode(prompt, skip_special_tokens=True)
        text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        columns["prompt"][row], columns["generated"][row] = question, text
        wanted = None if target is None else tokenizer.decode(target, skip_special_tokens=True)
        if wanted is not None:
            for name, measure in MEASURES.items():
                columns[name][row] = measure(text, wanted)
        if sampling.check is not None:
            columns[CHECK][row] = sampling.check(question, text, wanted)
    return columns


def sample_means(columns: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Return the mean of each measure over the texts that were written.

    Args:
        columns: Those of `write_samples`.
    """
    measured = {name: columns[name] for name in (*MEASURES, CHECK) if name in columns}
    known = {name: [v for v in values if v is not None] for name, values in measured.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def _prompts(
    split: Encoded, rows: int
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.int32] | None]]:
    """Yield the first rows with the tokens to continue, and those of the target if there is one."""
    seen: set[int] = set()
    for block, row in enumerate(split.extra[TEXTS].tolist()):
        if row in seen or row >= rows:
            continue
        seen.add(row)
        ids = split.ids[split.part(block)]
        half = min(LONGEST_PROMPT, (len(ids) + 1) // 2)
        if split.prompts is None:
            yield row, ids[:half], None
        else:
            start = int(split.prompts[block])
            yield row, ids[:start], ids[start : _end_of_answer(split, block, start)]


def _end_of_answer(split: Encoded, block: int, start: int) -> int:
    """Return the place after the last learned token of the turn that begins at `start`."""
    assert split.learned is not None, "only rows with targets have prompts"
    later = np.flatnonzero(~split.learned[split.part(block)][start:])
    return start + int(later[0]) if len(later) else int(split.lengths[block])


def _greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, most: int
) -> GenerationConfig:
    """Return settings for the likeliest text; the model says where it ends, and what is no word."""
    own = model.generation_config
    return GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        pad_token_id=_padding(tokenizer),
        eos_token_id=None if own is None else own.eos_token_id,
        suppress_tokens=None if own is None else own.suppress_tokens,
    )


def _padding(tokenizer: PreTrainedTokenizerFast) -> int:
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)
