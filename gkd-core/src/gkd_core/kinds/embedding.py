"""`embedding`: one vector per text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gkd_core.contract.task import Split
from gkd_core.data.encode import Encoded, encode_samples
from gkd_core.errors import DataError
from gkd_core.kinds.metrics import correlations
from gkd_core.kinds.task_kind import Evaluation, ReadRows, RowMeasure, whole
from gkd_core.kinds.vector_kind import VectorKind, interleaved, mean_vectors, scored_rows

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from gkd_core.config.schema import TaskConfig
    from gkd_core.contract.batch import Batch
    from gkd_core.data.table import Table
    from gkd_core.losses.logits import Logits


class Embedding(VectorKind):
    """A vector for each text: the mean of the last hidden states over its tokens.

    Teachers are plain encoders or decoders, such as MiniLM sentence embedders; training needs texts
    alone, and both texts of a pair are trained on, each a row by itself; `similarity` learns the
    scores of pairs. A model is judged by pairs with a score of their similarity
    (`task.validation`): the correlation of the cosines with the scores, as in the STS tasks. The
    logits that methods see are the vectors, `[B, D]`.
    """

    name = "embedding"
    predicted = "vector"
    splits_rows = True
    output = "vector"
    augments = True

    def width(self, classes: Sequence[str], config: PretrainedConfig) -> int:
        """Return the width of the vectors."""
        size: int = config.hidden_size
        return size

    def read(self, tables: Mapping[str, Table], config: TaskConfig) -> ReadRows:
        """Return texts or pairs, with the scores where there are any."""
        splits = {name: scored_rows(table, config) for name, table in tables.items()}
        judged = splits.get("validation", splits["train"])
        if judged.pair is None or judged.labels is None:
            name = tables["validation" if "validation" in tables else "train"].source
            raise DataError(
                f"{name} has no pairs with a score, by which embeddings are judged; name a "
                "file or split with them in task.validation, or the column in task.label"
            )
        return ReadRows(splits)

    def encode(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        classes: Sequence[str] = (),
    ) -> Encoded:
        """Tokenize each text by itself: the two of a pair are rows 2i and 2i + 1.

        Raises:
            ConfigError: `max_length` leaves no room besides the special tokens.
        """
        texts = split.text if split.pair is None else interleaved(split)
        encoded = encode_samples(Split(texts), tokenizer, max_length, None)
        return encoded.with_labels(None, {"scores": split.labels})

    def logits(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of the last hidden states over the tokens that are not padding."""
        return mean_vectors(output, inputs)

    def observe(self, logits: Logits, batch: Batch) -> Any:
        """Return the vectors."""
        return whole(logits).float().cpu(), batch.rows.cpu()

    def summarize(self, parts: Sequence[Any], split: Encoded) -> Evaluation:
        """Return the correlations of the cosines of pairs with their scores."""
        vectors, rows = map(torch.cat, zip(*parts, strict=True))
        vectors = vectors[rows.argsort()]
        cosines = cosine_similarity(vectors[::2].double(), vectors[1::2].double())
        scores = torch.tensor(split.extra["scores"], dtype=torch.float64)
        losses = (_scaled(cosines) - _scaled(scores)).square()
        metrics = {"loss": float(losses.mean()), **correlations(cosines, scores)}
        return Evaluation(metrics, cosines, {"loss": losses})

    def remeasure(
        self, evaluation: Evaluation, split: Split, classes: Sequence[str]
    ) -> RowMeasure | None:
        """Return a function that computes the correlations of some of the pairs."""
        if not isinstance(evaluation.predictions, Tensor):
            return None
        both = evaluation.predictions, torch.tensor(split.labels, dtype=torch.float64)
        return lambda rows: correlations(*(side[torch.from_numpy(rows)] for side in both))

    def planned(self, rows: int, length: int, token: int, classes: Sequence[str]) -> Encoded:
        """Return rows without labels."""
        return super().planned(rows, length, token, classes).with_labels(None)


def _scaled(values: Tensor) -> Tensor:
    """Return values moved and scaled to mean 0 and length 1, so that cosines compare to scores."""
    centered = values - values.mean()
    norm = centered.norm()
    return centered / norm if norm > 0 else centered
