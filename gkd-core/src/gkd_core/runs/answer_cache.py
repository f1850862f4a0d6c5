"""Writing a teacher's answers about the training rows of a stage, once and resumably."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from gkd_core.atomic import write_file
from gkd_core.data.collate import EVALUATION_EPOCH
from gkd_core.distributed.device import pick_device
from gkd_core.errors import ConfigError, DataError
from gkd_core.hooks.paths import LOGITS
from gkd_core.losses.divergences import kl
from gkd_core.losses.logits import LinearLogits, Logits
from gkd_core.optim.engine import autocast
from gkd_core.runs.belongs import belongs
from gkd_core.teachers.answer_cache import (
    DTYPES,
    HEAD,
    MANIFEST,
    AnswerShard,
    CacheManifest,
    Form,
    StoredType,
    WrittenShard,
    documents,
    is_whole,
)
from gkd_core.teachers.kept import ROWS
from gkd_core.training.stage import load_live_teacher, read_by

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.data.collate import Collator
    from gkd_core.data.encode import Encoded
    from gkd_core.hooks.extraction import Extractor
    from gkd_core.hooks.features import Features
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec

BATCHES = 16
"""Batches in a shard. Of the first of each, the stored values are compared with the computed."""


def form_for(spec: StageSpec) -> Form:
    """Return the form in which answers about the rows of a stage are stored.

    Raises:
        ConfigError: They cannot be stored.
    """
    kind = spec.kind
    if kind.masks:
        raise ConfigError(f"{kind} masks other tokens in each epoch: its answers cannot be stored")
    if spec.config.rollout is not None:
        raise ConfigError("rollout has models write new text in each step, which no cache knows")
    if kind.is_lm:
        return "hidden"
    if kind.predicted not in ("sample", "vector") or kind.markers:
        raise ConfigError(
            f"answers about rows of {kind} cannot be stored by their token ids. Use teacher.keep = "
            "'disk', which stores them by row"
        )
    return "logits"


def write_cache(
    spec: StageSpec,
    registry: Registry,
    folder: Path,
    dtype: StoredType,
    say: Callable[[str], None],
) -> CacheManifest:
    """Write the answers of the first teacher about the training rows; shards that are there stay.

    In which shard and batch a row is depends on the rows alone, so that a cache that was
    interrupted ends with the same bytes.

    Args:
        spec: The stage.
        registry: Provides adapters for architectures.
        folder: The cache.
        dtype: Data type of what is stored.
        say: Told of progress.

    Raises:
        ConfigError: The folder holds other answers, or these cannot be stored.
        DataError: A value is not finite in `dtype`.
    """
    device = pick_device(spec.config.parallel.device)
    form = form_for(spec)
    encoded, collator = read_by(spec, 0, device)
    shards, precision = _shards(encoded), spec.config.training.precision
    begun = CacheManifest(
        belongs(spec, 0), form, dtype, precision, encoded.tokens_hash, len(shards)
    )
    manifest = _begin(folder, begun)
    writer = _Writer(folder, form, dtype, collator, encoded, device)
    written = {part.name for part in manifest.parts if is_whole(folder / part.name)}
    teacher: Extractor | None = None
    for number, batches in enumerate(shards):
        parts = manifest.parts
        if number >= len(parts) or parts[number].name not in written:
            teacher = teacher or load_live_teacher(spec, 0, registry, device)
            with torch.no_grad(), autocast(spec.config.training, device):
                part = writer.write(teacher, number, batches)
            manifest = replace(manifest, parts=(*parts[:number], part, *parts[number + 1 :]))
            manifest.save(folder)
        say(f"shard {number + 1} of {len(shards)}")
    for draft in folder.glob("*.tmp"):
        draft.unlink()
    return manifest


def _shards(encoded: Encoded) -> list[list[list[int]]]:
    """Return the rows of each batch of each shard, the longest first."""
    order = np.argsort(-encoded.lengths, kind="stable").tolist()
    batches = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
    return [batches[start : start + BATCHES] for start in range(0, len(batches), BATCHES)]


def _begin(folder: Path, begun: CacheManifest) -> CacheManifest:
    """Return the manifest of a cache, which is written if there is none.

    Raises:
        ConfigError: It is about something else.
    """
    if not (folder / MANIFEST).exists():
        if folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
            raise ConfigError(f"--output: {folder} is not empty and holds no cache")
        folder.mkdir(parents=True, exist_ok=True)
        begun.save(folder)
        return begun
    there = CacheManifest.load(folder, "--output")
    different = there.belongs.differences(begun.belongs)
    for name in ("form", "dtype", "precision", "rows"):
        was, now = getattr(there, name), getattr(begun, name)
        different += [] if was == now else [f"{name}: {was} in the cache, {now} here"]
    if different:
        raise ConfigError(
            f"--output: {folder} holds other answers: {'; '.join(different)}. Name another folder"
        )
    return there


def _restored(logits: LinearLogits, stored: Tensor) -> LinearLogits:
    """Return logits whose hidden states have been stored."""
    return replace(logits, hidden=stored.to(logits.hidden.dtype))


@dataclass(frozen=True)
class _Writer:
    """Writes the shards of a cache.

    Attributes:
        folder: The cache.
        form: The form of the answers.
        dtype: Data type of what is stored.
        collator: Makes batches.
        encoded: The rows.
        device: The device of the teacher.
    """

    folder: Path
    form: Form
    dtype: StoredType
    collator: Collator
    encoded: Encoded
    device: torch.device

    def write(
        self, teacher: Extractor, number: int, batches: Sequence[Sequence[int]]
    ) -> WrittenShard:
        """Ask the teacher about the rows of a shard, and write it."""
        keys: list[bytes] = []
        values: list[Tensor] = []
        divergence = 0.0
        for index, rows in enumerate(batches):
            batch = self.collator.collate(self.encoded, rows, EVALUATION_EPOCH).to(self.device)
            features = teacher.run(frozenset({LOGITS}), batch.inputs)
            stored = self._stored(features)
            if index == 0:
                divergence = self._divergence(features, stored, batch)
                self._write_head(features)
            for document, own in self._documents(batch, stored.cpu()):
                keys.append(document)
                values.append(own)
        path = AnswerShard.of(keys, values).save(self.folder, number)
        return WrittenShard(path.name, len(keys), sum(map(len, values)), divergence)

    def _stored(self, features: Features) -> Tensor:
        """Return what is stored of a batch."""
        if self.form == "logits":
            found = features[LOGITS]
        elif features.deferred is None:
            raise ConfigError(
                "the teacher's logits are not those of a linear layer: what its head gets does not "
                "determine them, and cannot be stored in their place"
            )
        else:
            found = features.deferred.hidden
        stored = found.to(DTYPES[self.dtype])
        if not bool(stored.isfinite().all()):
            raise DataError(
                f"an answer of the teacher is nan or inf, or too large for {self.dtype}. "
                "Use --dtype bf16 or fp32"
            )
        return stored

    def _divergence(self, features: Features, stored: Tensor, batch: Batch) -> float:
        """Return the mean KL from what the teacher said to what is stored of it."""
        kept: Logits = stored.float()
        over = batch.samples
        if features.deferred is not None:
            kept, over = _restored(features.deferred, stored), batch.tokens
        elif batch.output != "classes":
            return 0.0
        term = kl(kept, features.prediction, over, 1.0, False)
        return float(term.values.sum() / over.count)

    def _write_head(self, features: Features) -> None:
        path, logits = self.folder / HEAD, features.deferred
        if path.exists() or self.form == "logits":
            return
        assert isinstance(logits, LinearLogits), "its hidden states are stored"
        head = {"weight": logits.weight, "bias": logits.bias}
        write_file(
            path, save({n: t.float().cpu().contiguous() for n, t in head.items() if t is not None})
        )

    def _documents(self, batch: Batch, stored: Tensor) -> Iterator[tuple[bytes, Tensor]]:
        """Yield the key and the values of each document of a batch."""
        for document in documents(batch):
            own = stored[document.row]
            yield (
                document.key,
                own[None] if self.form == "logits" else own[document.tokens],
            )
