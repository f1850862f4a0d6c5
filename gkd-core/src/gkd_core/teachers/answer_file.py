"""Answers of a teacher in a file of the cache: one run asks, the others read."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gkd_core.atomic import draft
from gkd_core.data.cache import cache_entry, locked_entry, set_aside, warn_unwritable
from gkd_core.data.cache_limit import use_entry
from gkd_core.distributed.ranks import is_first, tell, wait
from gkd_core.hooks.paths import LOGITS, Capture
from gkd_core.teachers.captured_states import capture_of, unit_of
from gkd_core.teachers.values import Answers, PairValues, RowValues, TokenValues, Values

VALUES, STARTS, SPANS = "values", "starts", "spans"
"""The tensors of the logits; the last two are there or not."""

TOKENS, PAIRS = "tokens", "pairs"
"""The first tokens and pairs of all rows, for captures besides the logits; these have their own
names."""

DTYPES = {torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

WRITTEN = 2**24
"""Bytes that are written at once."""


def answer_file(key: str) -> Path:
    """Return the file of the answers with a key, which says what they are about."""
    return cache_entry("answers", f"{key}.safetensors")


def shared(path: Path, ask: Callable[[], Answers | None]) -> Answers | None:
    """Return the answers in a file; if there is none, ask for them and write it.

    Of several runs that need it, one asks and the others wait. A file that is damaged or cannot be
    written is a warning.

    Args:
        path: The file.
        ask: Returns the answers; every rank calls it.
    """
    use_entry(path)
    with locked_entry(path) if is_first() else nullcontext():
        if tell(is_first() and path.exists() and _is_whole(path)):
            return _read(path)
        answers = ask()
        written = answers is not None and is_first() and _write(answers, path)
        wait()
        return _read(path) if tell(written) else answers


def _is_whole(path: Path) -> bool:
    """Return whether a file can be read; one that is damaged is set aside."""
    try:
        _read(path)
    except (OSError, SafetensorError, KeyError) as error:
        set_aside(path, str(error))
        return False
    return True


def _read(path: Path) -> Answers:
    """Return the answers in a file, mapped into memory."""
    tensors = load_file(path)
    starts = {name: tensors.pop(name) for name in (STARTS, TOKENS, PAIRS) if name in tensors}
    logits, spans = tensors.pop(VALUES, None), tensors.pop(SPANS, None) is not None
    found: dict[Capture, Values] = {
        capture: _values(own, capture, starts)
        for capture, own in ((capture_of(name), own) for name, own in tensors.items())
    }
    if logits is None:
        return found
    by_token = STARTS in starts
    of_logits = TokenValues(logits, starts[STARTS], spans) if by_token else RowValues(logits)
    return {LOGITS: of_logits, **found}


def _values(values: Tensor, capture: Capture, starts: Mapping[str, Tensor]) -> Values:
    unit = unit_of(capture)
    if unit == "row":
        return RowValues(values)
    if unit == "token":
        return TokenValues(values, starts[TOKENS], spans=False)
    return PairValues(values, starts[PAIRS])


def _write(answers: Answers, path: Path) -> bool:
    """Write answers to a file; return whether it was possible."""
    try:
        with draft(path) as aside:
            _save(_tensors(answers), aside)
    except OSError as error:
        warn_unwritable(error)
        return False
    return True


def _tensors(answers: Answers) -> dict[str, Tensor]:
    """Return the tensors of a file by name."""
    found: dict[str, Tensor] = {}
    for capture, own in answers.items():
        is_logits = capture == LOGITS
        found[VALUES if is_logits else str(capture)] = own.values
        if isinstance(own, PairValues):
            found[PAIRS] = own.starts
        elif isinstance(own, TokenValues):
            found[STARTS if is_logits else TOKENS] = own.starts
            found |= {SPANS: torch.ones(1)} if own.spans else {}
    return found


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file piece by piece; safetensors itself copies every tensor before."""
    header, end = {}, 0
    ordered = sorted(tensors.items(), key=lambda each: -each[1].itemsize)  # each is then aligned
    for name, tensor in ordered:
        place = [end, end := end + tensor.nbytes]
        dtype, shape = DTYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            content = tensor.contiguous().flatten().view(torch.uint8).numpy()
            for start in range(0, len(content), WRITTEN):
                file.write(content[start : start + WRITTEN].data)
