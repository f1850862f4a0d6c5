"""`similarity`: how similar the two texts of a pair are, learned from scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gkd_core.data.encode import Encoded, encode_samples
from gkd_core.errors import DataError
from gkd_core.kinds.task_kind import ReadRows
from gkd_core.kinds.value_kind import ValueKind
from gkd_core.kinds.vector_kind import VectorKind, interleaved, mean_vectors, scored_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.contract.task import Split
    from gkd_core.data.table import Table


class Similarity(VectorKind, ValueKind):
    """How similar two texts are: the cosine of their vectors.

    The models are those of `embedding`, which this kind fine-tunes: every row is a pair with a
    score, and the hard loss is the squared difference of cosine and score. Scores that exceed 1 are
    divided by the largest of the training rows. A micro-batch of B rows has 2 B sequences, and
    `[B, 1]` logits.
    """

    name = "similarity"

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return the pairs, with scores that a cosine can reach."""
        splits = {name: scored_rows(table, config) for name, table in tables.items()}
        for name, split in splits.items():
            if split.pair is None or split.labels is None:
                raise DataError(
                    f"{tables[name].source} has no pairs with a score; name the columns with "
                    "task.text, task.text_pair and task.label"
                )
        largest = max(1.0, *map(abs, splits["train"].labels or ()))
        return ReadRows({name: _scaled(split, largest) for name, split in splits.items()})

    def label_problem(self, label: Any, classes: Sequence[str]) -> str:
        """Expect a finite score."""
        return "" if np.isfinite(label) else f"the score {label!r}"

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize each text by itself; a row has two sequences.

        Raises:
            ConfigError: `max_length` leaves no room besides the special tokens.
        """
        texts = replace(split, text=interleaved(split), pair=None, labels=None, group=None)
        encoded = encode_samples(texts, tokenizer, max_length, self.label_array(split))
        return replace(encoded, per_row=2)

    def logits(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the cosine of each pair, `[B, 1]`."""
        vectors = mean_vectors(output, inputs)
        return cosine_similarity(vectors[::2], vectors[1::2]).unsqueeze(-1)

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return pairs with a score each."""
        made = super().planned(2 * rows, length, token, classes)
        return replace(made, labels=np.zeros(rows, np.float32), per_row=2)


def _scaled(split: Split, largest: float) -> Split:
    return replace(split, labels=[score / largest for score in split.labels or ()])
