"""The prompts of rows of a causal language model, and rows made of prompts and new answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gkd_core.contract.task import Split
from gkd_core.data.chat import ASSISTANT, ChatTemplate
from gkd_core.data.encode import encode_targets
from gkd_core.data.holdout import take

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompts_alone(split: Split, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int) -> Split:
    """Return rows without their answers; of a conversation, without the last one.

    Args:
        split: The rows.
        tokenizer: Says what the first tokens are.
        prompt_tokens: First tokens of a row that are its prompt, if the rows are plain text.
    """
    if split.target is not None:
        return replace(split, target=None)
    if split.chat:
        return replace(split, text=[_before_answer(text) for text in split.text])
    made = tokenizer(list(split.text), add_special_tokens=False, verbose=False)["input_ids"]
    return replace(split, text=[tokenizer.decode(ids[:prompt_tokens]) for ids in made])


def _before_answer(text: Any) -> Any:
    if isinstance(text, str):
        return text
    spoken = [number for number, turn in enumerate(text) if turn["role"] == ASSISTANT]
    return list(text[: spoken[-1]] if spoken else text)


def encode_prompts(
    prompts: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[list[int] | None]:
    """Return the token ids of prompts.

    Of a long prompt, the end is kept; a conversation that is too long is None.

    Args:
        prompts: Rows without answers.
        tokenizer: The tokenizer of the model that continues them.
        max_length: Maximum tokens of a prompt.
    """
    if not prompts.chat or tokenizer.chat_template is None:
        encoded = encode_targets(prompts, tokenizer, max_length)
        return [encoded.ids[encoded.part(row)].tolist() for row in range(len(encoded))]
    template = ChatTemplate(tokenizer)
    tools = [None] * len(prompts) if prompts.tools is None else prompts.tools
    texts = [
        template.prompt([{"role": "user", "content": text}] if isinstance(text, str) else text, own)
        for text, own in zip(prompts.text, tools, strict=True)
    ]
    made = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [ids if len(ids) <= max_length else None for ids in made]


def answered(prompts: Split, rows: Sequence[int], answers: Sequence[str]) -> Split:
    """Return rows with new answers.

    Args:
        prompts: Rows without answers.
        rows: The row of each answer.
        answers: The answers.
    """
    return replace(take(prompts, rows), target=list(answers))


def as_columns(split: Split) -> list[dict[str, Any]]:
    """Return rows with answers as a data file holds them.

    Args:
        split: The rows.
    """
    assert split.target is not None, "the rows have answers"
    found: list[dict[str, Any]] = []
    for number, (text, target) in enumerate(zip(split.text, split.target, strict=True)):
        if not split.chat:
            pair = [] if split.pair is None else [split.pair[number]]
            row: dict[str, Any] = {"text": " ".join([text, *pair]), "target": target}
        elif isinstance(text, str):
            row = {"prompt": text, "response": target}
        else:
            row = {"messages": [*text, {"role": ASSISTANT, "content": target}]}
        if split.tools is not None:
            row["tools"] = split.tools[number]
        found.append(row)
    return found
