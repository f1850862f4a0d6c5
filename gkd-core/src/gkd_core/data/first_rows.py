"""The first rows of a dataset of the hub: streamed once, then read from the disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from gkd_core import digest
from gkd_core.data.array_spool import ROOM
from gkd_core.data.cache import cache_entry, read_entry, write_entry

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

logger = logging.getLogger(__name__)


def first_rows(path: str, configuration: str | None, count: int) -> DatasetDict:
    """Return the first rows of each split of a dataset, without downloading the others.

    `datasets` keeps them in its cache until the dataset changes. Where the hub cannot be reached,
    those of the last time are returned, with a warning.

    Args:
        path: A name on the hub, or a directory.
        configuration: The configuration; None if there is only one.
        count: Rows of each split, if it has as many.

    Raises:
        DatasetsError, OSError, RuntimeError, ValueError: As `load_dataset` does.
    """
    from datasets import DatasetDict, load_dataset_builder

    note = cache_entry(ROOM, f"hub-{digest.of_value([path, configuration, count])}.json")
    try:
        builder = load_dataset_builder(path, configuration)
        streams = builder.as_streaming_dataset()
    except (OSError, RuntimeError, ValueError) as error:
        keys = read_entry(note, dict)
        if keys is None:
            raise
        logger.warning("%s: the first %d rows are those of the last time (%s)", path, count, error)
        gone = partial(_raised, error)
        return DatasetDict({split: _kept(split, key, gone) for split, key in keys.items()})
    # The name of the directory has the revision on the hub, or the times of local files, in it.
    keys = {split: digest.of_value([str(builder.cache_dir), split, count]) for split in streams}
    # `stream.take` would read on, perhaps in another file, before it ends.
    found = {
        split: _kept(split, keys[split], partial(islice, stream, count), stream.features)
        for split, stream in streams.items()
    }
    write_entry(note, keys)
    return DatasetDict(found)


def _kept(
    split: str, key: str, rows: Callable[[], Iterable[Any]], features: Features | None = None
) -> Dataset:
    """Return the rows of a split from the cache of `datasets`.

    Args:
        split: The split.
        key: Identifies the rows.
        rows: Yields them, if they are not there.
        features: Types of their columns.
    """
    from datasets import Dataset

    return Dataset.from_generator(rows, features, split=split, fingerprint=key)


def _raised(error: Exception) -> NoReturn:
    raise error
