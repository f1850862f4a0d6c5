"""Writing a teacher's answers about the training rows of a stage, once and resumably.

Several processes may write one cache: who holds the lease of a shard writes it. In which shard and
batch a row is depends on the rows alone, so that the finished cache has the same bytes, whoever
wrote it and however often they were interrupted.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from gkd_core import digest
from gkd_core.atomic import write_file
from gkd_core.data.collate import EVALUATION_EPOCH
from gkd_core.data.disk_space import check_space
from gkd_core.errors import ConfigError
from gkd_core.launchers.shard import ALL
from gkd_core.lease import HeldElsewhere, hold, holder
from gkd_core.optim.engine import autocast
from gkd_core.runs.answer_division import SHARD_BYTES, shards
from gkd_core.runs.answer_storage import OPTIONS, Storage, estimate
from gkd_core.teachers.answer_cache import (
    HEADS,
    MANIFEST,
    CacheManifest,
    CacheProgress,
    Document,
    documents,
)
from gkd_core.teachers.answer_form import Fidelity
from gkd_core.teachers.answer_shard import (
    AnswerShard,
    WrittenShard,
    is_whole,
    shard_files,
    shard_name,
)
from gkd_core.training.stage_models import load_live_teacher
from gkd_core.training.stage_rows import read_by

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gkd_core.contract.batch import Batch
    from gkd_core.data.collate import Collator
    from gkd_core.data.encode import Encoded
    from gkd_core.hooks.extraction import Extractor
    from gkd_core.hooks.features import Features
    from gkd_core.launchers.shard import Shard
    from gkd_core.plugins import Registry
    from gkd_core.runs.answer_division import ShardRows
    from gkd_core.teachers.answer_form import AnswerForm, Columns
    from gkd_core.training.stage_spec import StageSpec

OUTPUT = "--output"
"""What names the folder of a cache that is written, for errors."""

ROOM = (
    "Free some space or name a folder on another disk. --dtype fp16 takes half of fp32, and of a "
    "language model --form top-k less than its states"
)


@dataclass(frozen=True)
class BegunCache:
    """A cache that can be written: what it is about has been checked.

    Attributes:
        folder: The cache.
        manifest: Its manifest; it names no shards before all are there.
        encoded: The rows as the teacher reads them.
        collator: Makes batches of them.
        device: The device of the teacher.
        shards: The rows of each batch of each shard.
    """

    folder: Path
    manifest: CacheManifest
    encoded: Encoded
    collator: Collator
    device: torch.device
    shards: Sequence[ShardRows]

    @classmethod
    def begin(
        cls,
        spec: StageSpec,
        folder: Path,
        storage: Storage,
        device: torch.device,
        say: Callable[[str], None],
    ) -> BegunCache:
        """Write the manifest of a cache; one that is there must be about the same.

        Args:
            spec: The stage.
            folder: The cache.
            storage: The form of the stored answers.
            device: The device of the teacher.
            say: Told how large the cache becomes, before anything is written.

        Raises:
            ConfigError: The folder holds other answers, or these cannot be stored.
        """
        there = _there(folder)
        encoded, collator = read_by(spec, 0, device)
        undivided, info = storage.manifest(spec, encoded), spec.teachers[0].info
        sizes = undivided.answers.sizes(info, encoded)
        most = SHARD_BYTES if there is None else there.shard_bytes
        divided = shards(encoded, sizes, most)
        manifest = replace(undivided, shards=len(divided), shard_bytes=most)
        say(estimate(manifest.answers, info, encoded))
        if there is not None:
            _check_same(folder, there, manifest)
            _check_files(folder, there)
        begun = cls(folder, there or manifest, encoded, collator, device, divided)
        check_space(folder, begun._left(sizes), f"{OUTPUT} (answers of the teacher)", ROOM)
        if there is None and not _save_first(folder, manifest):
            # Another process has just begun one.
            _check_same(folder, CacheManifest.load(folder, OUTPUT), manifest)
        return begun

    def _left(self, sizes: NDArray[np.float64]) -> float:
        """Return the bytes of the answers that are yet to be written, if each row's are known."""
        batches = (rows for number in self.progress.left for rows in self.shards[number])
        return sum(float(sizes[rows].sum()) for rows in batches)

    @property
    def progress(self) -> CacheProgress:
        """The current progress."""
        return CacheProgress.of(self.folder, self.manifest.shards)

    def finish(self) -> CacheManifest:
        """Return the manifest; once all shards are there it names them, and is written."""
        found = shard_files(self.folder)
        if len(found) < self.manifest.shards:
            return replace(self.manifest, parts=())
        parts = tuple(WrittenShard.read(found[number]) for number in range(self.manifest.shards))
        head = next(self.folder.glob(HEADS), None)
        finished = replace(self.manifest, parts=parts, head=None if head is None else head.name)
        leftovers = list(_leftovers(self.folder))
        if finished != self.manifest or leftovers:  # a finished cache may be in a read-only folder
            with suppress(HeldElsewhere), hold(self.folder):  # others write the same
                finished.save(self.folder)
                for path in leftovers:
                    path.unlink(missing_ok=True)
        return finished


def write_cache(
    spec: StageSpec,
    registry: Registry,
    cache: BegunCache,
    say: Callable[[str], None],
    share: Shard = ALL,
) -> None:
    """Write the answers of the first teacher about the training rows.

    Shards that are there stay, and those that another process writes are left to it.

    Args:
        spec: The stage.
        registry: Provides adapters for architectures.
        cache: The cache.
        say: Told of progress.
        share: The shards to write.

    Raises:
        DataError: A value cannot be stored.
        LeaseLost: Another process has taken over a shard.
    """
    writer = _Writer(spec, registry, cache)
    writer.write_head()
    there = shard_files(cache.folder)
    for number in share.of(range(len(cache.shards)), str):
        if number in there and is_whole(there[number]):
            continue
        if writer.write_once(number, cache.shards[number]):
            say(f"shard {number + 1} of {len(cache.shards)}")


def _there(folder: Path) -> CacheManifest | None:
    """Return the manifest of a cache that is there; None if there is nothing.

    Raises:
        ConfigError: There is something else.
    """
    if (folder / MANIFEST).exists():
        return CacheManifest.load(folder, OUTPUT)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{OUTPUT}: {folder} is a file. Name a folder")
    if folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise ConfigError(f"{OUTPUT}: {folder} is not empty and holds no cache")
    return None


def _save_first(folder: Path, manifest: CacheManifest) -> bool:
    """Write the manifest of a cache that is begun; return whether there was none.

    Raises:
        ConfigError: The folder cannot be written.
        OSError: The disk is full.
    """
    try:
        return manifest.begin(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"{OUTPUT}: {folder} cannot be written: {error.strerror}. Name another folder"
        ) from error


def _check_same(folder: Path, there: CacheManifest, begun: CacheManifest) -> None:
    """Reject a cache that is about something else.

    Raises:
        ConfigError: Names what differs.
    """
    different = there.belongs.differences(begun.belongs)
    for name in ("form", "dtype", "precision", "rows", "shards", *OPTIONS):
        was, now = getattr(there, name), getattr(begun, name)
        different += [] if was == now else [f"{name}: {was} in the cache, {now} here"]
    if different:
        raise ConfigError(
            f"{OUTPUT}: {folder} holds other answers: {'; '.join(different)}. Name another folder"
        )


def _check_files(folder: Path, manifest: CacheManifest) -> None:
    """Reject a folder with files of another cache.

    Raises:
        ConfigError: Names one.
    """
    for path in sorted(folder.glob("*.safetensors")):
        if f"-{manifest.origin}-" not in path.name:
            raise ConfigError(
                f"{OUTPUT}: {path} is of another cache than {folder / MANIFEST}. Move it, and all "
                "that came with it, to a folder of their own, or name another folder"
            )


def _leftovers(folder: Path) -> Iterator[Path]:
    """Yield what killed processes have left in a cache whose files are all there."""
    yield from folder.glob("*.tmp")
    for marker in folder.glob(".shard-*.lease"):
        if holder(folder / marker.stem[1:]) is None:
            yield marker


@dataclass
class _Writer:
    """Writes the shards of a cache.

    Attributes:
        spec: The stage.
        registry: Provides adapters for architectures.
        cache: The cache.
    """

    spec: StageSpec
    registry: Registry
    cache: BegunCache

    @cached_property
    def form(self) -> AnswerForm:
        """The form of the answers."""
        return self.cache.manifest.answers

    @cached_property
    def teacher(self) -> Extractor:
        """The teacher, which is loaded when a shard is missing."""
        return load_live_teacher(self.spec, 0, self.registry, self.cache.device)

    def write_head(self) -> None:
        """Write the teacher's head, if the form has one and it is not there."""
        there = list(self.cache.folder.glob(HEADS))
        if not self.form.has_head or any(map(is_whole, there)):
            return
        shortest = self.cache.shards[-1][-1]
        with self._asked(shortest) as (_, features):
            head = self.form.head(features)
        content = save({name: own.float().cpu().contiguous() for name, own in head.items()})
        for damaged in there:
            damaged.unlink()
        name = HEADS.replace("*", f"{self.cache.manifest.origin}-{digest.of_bytes([content])}")
        write_file(self.cache.folder / name, content)

    def write_once(self, number: int, batches: ShardRows) -> bool:
        """Write a shard, unless another process writes it or has done so.

        Returns:
            Whether it was written.
        """
        place = self.cache.folder / shard_name(number)
        if holder(place) is not None:
            return False
        try:
            with hold(place) as lease:
                if self._is_there(number):
                    return False
                shard, fidelity = self._answered(batches)
                lease.check()
                name = f"{place.name}-{self.cache.manifest.origin}"
                written = shard.save(self.cache.folder, name, fidelity)
        except HeldElsewhere:
            return False
        for damaged in self.cache.folder.glob(f"{place.name}-*.safetensors"):
            if damaged != written:
                damaged.unlink()
        return True

    def _is_there(self, number: int) -> bool:
        path = shard_files(self.cache.folder).get(number)
        return path is not None and is_whole(path)

    def _answered(self, batches: ShardRows) -> tuple[AnswerShard, Fidelity]:
        """Ask the teacher about the rows of a shard."""
        keys: list[bytes] = []
        lengths: list[int] = []
        answers: list[Columns] = []
        fidelity = Fidelity(0.0)
        for index, rows in enumerate(batches):
            with self._asked(rows) as (batch, features):
                columns = self.form.stored(features, batch)
                if index == 0:
                    fidelity = self.form.fidelity(features, columns, batch)
            for document, own in self._documents(batch, columns):
                keys.append(document.key)
                lengths.append(len(document.places) if self.form.unit == "token" else 1)
                answers.append(own)
        return AnswerShard.of(keys, lengths, answers), fidelity

    @contextmanager
    def _asked(self, rows: Sequence[int]) -> Iterator[tuple[Batch, Features]]:
        """Yield rows and what the teacher answers, in the precision of the run."""
        batch = self.cache.collator.collate(self.cache.encoded, rows, EVALUATION_EPOCH)
        batch = batch.to(self.cache.device)
        with torch.no_grad(), autocast(self.spec.config.training, self.cache.device):
            yield batch, self.teacher.run(self.form.captures, batch.inputs)

    def _documents(self, batch: Batch, stored: Columns) -> Iterator[tuple[Document, Columns]]:
        """Yield each document of a batch with its values."""
        columns = {name: own.cpu() for name, own in stored.items()}
        for document in documents(batch, self.form.scored):
            yield (
                document,
                {
                    name: document.values(own, self.form.unit_of(name))
                    for name, own in columns.items()
                },
            )
