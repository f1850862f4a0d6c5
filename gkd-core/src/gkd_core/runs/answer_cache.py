"""Writing a teacher's answers about the training rows of a stage, once and resumably."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save

from gkd_core.atomic import write_file
from gkd_core.data.collate import EVALUATION_EPOCH
from gkd_core.distributed.device import pick_device
from gkd_core.errors import ConfigError
from gkd_core.hooks.paths import LOGITS
from gkd_core.optim.engine import autocast
from gkd_core.runs.belongs import belongs
from gkd_core.teachers.answer_cache import (
    HEAD,
    MANIFEST,
    AnswerShard,
    CacheManifest,
    WrittenShard,
    documents,
    is_whole,
)
from gkd_core.teachers.answer_form import Fidelity
from gkd_core.teachers.kept import ROWS
from gkd_core.training.stage import load_live_teacher, read_by

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.data.collate import Collator
    from gkd_core.data.encode import Encoded
    from gkd_core.hooks.extraction import Extractor
    from gkd_core.hooks.features import Features
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.plugins import Registry
    from gkd_core.teachers.answer_form import AnswerForm, Columns, FormName, StoredType
    from gkd_core.training.stage_spec import StageSpec

BATCHES = 16
"""Batches in a shard. Of the first of each, the stored values are compared with the computed."""


@dataclass(frozen=True)
class Storage:
    """How answers are stored.

    Attributes:
        dtype: Data type of values.
        form: The form. Default: `hidden` of a language model, `logits` of a classifier.
        k: Words of `top-k`.
        temperature: What the logits of `top-k` are divided by.
    """

    dtype: StoredType = "fp16"
    form: FormName | None = None
    k: int = 64
    temperature: float = 1.0

    def manifest(self, spec: StageSpec, encoded: Encoded, shards: int) -> CacheManifest:
        """Return the manifest of a cache that is to be written.

        Raises:
            ConfigError: Answers cannot be stored, or not so.
        """
        form = self._form_for(spec.kind, spec.config.rollout is not None)
        truncated = form == "top-k"
        return CacheManifest(
            belongs(spec, 0),
            form,
            self.dtype,
            spec.config.training.precision,
            encoded.tokens_hash,
            shards,
            k=self.k if truncated else None,
            temperature=self.temperature if truncated else None,
        )

    def _form_for(self, kind: TaskKind, writes: bool) -> FormName:
        if kind.masks:
            raise ConfigError(
                f"{kind} masks other tokens in each epoch: its answers cannot be stored"
            )
        if writes:
            raise ConfigError(
                "rollout has models write new text in each step, which no cache knows"
            )
        if not kind.is_lm and (kind.predicted not in ("sample", "vector") or kind.markers):
            raise ConfigError(
                f"answers about rows of {kind} cannot be stored by their token ids. Use "
                "teacher.keep = 'disk', which stores them by row"
            )
        default: FormName = "hidden" if kind.is_lm else "logits"
        form = self.form or default
        if kind.is_lm == (form == "logits"):
            others = "hidden or top-k" if kind.is_lm else "logits"
            raise ConfigError(f"--form: {form} is not for {kind}. Use {others}")
        return form


def write_cache(
    spec: StageSpec,
    registry: Registry,
    folder: Path,
    storage: Storage,
    say: Callable[[str], None],
) -> CacheManifest:
    """Write the answers of the first teacher about the training rows; shards that are there stay.

    In which shard and batch a row is depends on the rows alone, so that a cache that was
    interrupted ends with the same bytes.

    Args:
        spec: The stage.
        registry: Provides adapters for architectures.
        folder: The cache.
        storage: How they are stored.
        say: Told of progress.

    Raises:
        ConfigError: The folder holds other answers, or these cannot be stored.
        DataError: A value cannot be stored.
    """
    device = pick_device(spec.config.parallel.device)
    encoded, collator = read_by(spec, 0, device)
    shards = _shards(encoded)
    manifest = _begin(folder, storage.manifest(spec, encoded, len(shards)))
    writer = _Writer(folder, manifest.answers, collator, encoded, device)
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
    for name in ("form", "dtype", "precision", "rows", "k", "temperature"):
        was, now = getattr(there, name), getattr(begun, name)
        different += [] if was == now else [f"{name}: {was} in the cache, {now} here"]
    if different:
        raise ConfigError(
            f"--output: {folder} holds other answers: {'; '.join(different)}. Name another folder"
        )
    return there


@dataclass(frozen=True)
class _Writer:
    """Writes the shards of a cache.

    Attributes:
        folder: The cache.
        form: The form of the answers.
        collator: Makes batches.
        encoded: The rows.
        device: The device of the teacher.
    """

    folder: Path
    form: AnswerForm
    collator: Collator
    encoded: Encoded
    device: torch.device

    def write(
        self, teacher: Extractor, number: int, batches: Sequence[Sequence[int]]
    ) -> WrittenShard:
        """Ask the teacher about the rows of a shard, and write it."""
        keys: list[bytes] = []
        answers: list[Columns] = []
        fidelity = Fidelity(0.0)
        for index, rows in enumerate(batches):
            batch = self.collator.collate(self.encoded, rows, EVALUATION_EPOCH).to(self.device)
            features = teacher.run(frozenset({LOGITS}), batch.inputs)
            columns = self.form.stored(features, batch)
            if index == 0:
                fidelity = self.form.fidelity(features, columns, batch)
                self._write_head(features)
            for document, own in self._documents(batch, columns):
                keys.append(document)
                answers.append(own)
        shard = AnswerShard.of(keys, answers)
        path = shard.save(self.folder, number)
        return WrittenShard(path.name, len(keys), shard.size, fidelity.divergence, fidelity.tail)

    def _write_head(self, features: Features) -> None:
        path, logits = self.folder / HEAD, features.deferred
        if path.exists() or self.form.name != "hidden":
            return
        assert logits is not None, "its hidden states are stored"
        head = {"weight": logits.weight, "bias": logits.bias}
        write_file(
            path, save({n: t.float().cpu().contiguous() for n, t in head.items() if t is not None})
        )

    def _documents(self, batch: Batch, stored: Columns) -> Iterator[tuple[bytes, Columns]]:
        """Yield the key and the values of each document of a batch."""
        columns = {name: own.cpu() for name, own in stored.items()}
        for document in documents(batch, self.form.scored):
            of_row = {name: own[document.row] for name, own in columns.items()}
            yield (
                document.key,
                {
                    name: own[document.places] if self.form.unit == "token" else own[None]
                    for name, own in of_row.items()
                },
            )
