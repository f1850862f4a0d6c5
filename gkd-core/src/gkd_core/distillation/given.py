"""Models and rows that were given as objects, written where a run can read them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from gkd_core.atomic import draft
from gkd_core.contract.task import SPLITS
from gkd_core.errors import ConfigError
from gkd_core.models.save import save_model

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GivenModel: TypeAlias = Union[
    str, "os.PathLike[str]", "tuple[PreTrainedModel, PreTrainedTokenizerBase]"
]
"""A directory or hub id, or a loaded model with its tokenizer."""

GivenData: TypeAlias = Union[str, "os.PathLike[str]", "Dataset", "Mapping[str, Dataset]"]
"""A file, a directory or hub id, or loaded rows: those to train on, or each split by its name."""


def place_of_model(given: GivenModel, folder: Path, argument: str) -> str:
    """Return the directory or hub id of a model; a loaded one is saved.

    Args:
        given: The model.
        folder: Directory for a loaded one.
        argument: The argument that it was given as.

    Raises:
        ConfigError: It is neither a place nor a loaded model with its tokenizer.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if isinstance(given, (str, os.PathLike)):
        return os.fspath(given)
    pair = given if isinstance(given, tuple) and len(given) == 2 else (None, None)
    model, tokenizer = pair
    if not isinstance(model, PreTrainedModel) or not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"{argument} is {_called(given)}; give a directory, a hub id, or a loaded model with "
            f"its tokenizer: {argument}=(model, tokenizer)"
        )
    words, size = model.get_input_embeddings().num_embeddings, len(tokenizer)
    if size > words:
        raise ConfigError(
            f"{argument} is a model that knows {words:,} tokens with a tokenizer of {size:,}; give "
            "the tokenizer that the model was trained with"
        )
    if any(weight.is_meta for weight in model.parameters()):
        raise ConfigError(
            f"{argument} has weights on the device 'meta', which have no values. Load them"
        )
    save_model(model, tokenizer, folder)
    return str(folder)


def place_of_data(given: GivenData, folder: Path) -> tuple[str, str | None]:
    """Return the file, directory or hub id of rows, and the task that reads them if it is known.

    Args:
        given: The rows; loaded ones are written.
        folder: Directory for loaded ones.

    Raises:
        ConfigError: They are neither a place nor loaded rows.
    """
    from datasets import Dataset

    if isinstance(given, (str, os.PathLike)):
        return os.fspath(given), None
    splits = {"train": given} if isinstance(given, Dataset) else given
    if not isinstance(splits, Mapping) or not all(
        isinstance(rows, Dataset) for rows in splits.values()
    ):
        raise ConfigError(
            f"data is {_called(given)}; give a file, a directory, a hub id, a datasets.Dataset, or "
            "one for each split: {'train': ..., 'test': ...}"
        )
    if "train" not in splits or not set(splits) <= set(SPLITS):
        raise ConfigError(
            f"data has the splits {', '.join(map(str, splits))}; 'train' is needed, and "
            "'validation' and 'test' are possible"
        )
    empty = [split for split, rows in splits.items() if not len(rows)]
    if empty:
        raise ConfigError(f"data has no rows in {', '.join(map(repr, empty))}")
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        (folder / f"{split}.parquet").unlink(missing_ok=True)
    for split, rows in splits.items():
        with draft(folder / f"{split}.parquet") as aside:
            rows.to_parquet(str(aside))
    return str(folder), "hub"  # it reads the names of classes, too


def is_loaded(given: GivenModel | GivenData | None) -> bool:
    """Return whether something is to be written before a run can read it."""
    return given is not None and not isinstance(given, (str, os.PathLike))


def _called(given: object) -> str:
    kind = type(given)
    return f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
