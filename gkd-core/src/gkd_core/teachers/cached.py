"""`cache`: answers of a teacher that `gkd cache` has written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from gkd_core import digest
from gkd_core.data.collate import EVALUATION_EPOCH
from gkd_core.errors import ConfigError, DataError
from gkd_core.named_path import named_path
from gkd_core.teachers.answer_cache import (
    NOT_THOSE,
    AnswerCache,
    Belongs,
    CacheManifest,
    CacheProgress,
    documents,
    of_batch,
)
from gkd_core.teachers.source import AnswerSource

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.step import Step
    from gkd_core.data.collate import Collator
    from gkd_core.data.encode import Encoded
    from gkd_core.hooks.features import Answer
    from gkd_core.hooks.paths import Capture
    from gkd_core.teachers.answer_form import AnswerForm, Columns

SETTING = "--teacher-cache (teacher.source.path)"

CHECKED = 1024
"""Rows that are looked up at once."""


class Cached(AnswerSource):
    """Logits that `gkd cache` has written, found by the token ids of each text."""

    name = "cache"
    packs = True

    class Config(AnswerSource.Config):
        """Options of `cache`."""

        path: str = Field(description="The directory that `gkd cache` has written.")

    config: Config

    @cached_property
    def cache(self) -> AnswerCache:
        """The cache.

        Raises:
            ConfigError: It is not there, or not finished.
        """
        folder = named_path(self.config.path)
        manifest = CacheManifest.load(folder, SETTING)
        if not manifest.is_finished:
            progress = CacheProgress.of(folder, manifest.shards)
            raise ConfigError(
                f"{SETTING}: the cache is not finished. {progress}. Repeat the gkd cache command "
                "that began it"
            )
        return AnswerCache(folder, manifest)

    def check_belongs(self, here: Belongs) -> None:
        """Reject a cache that is about something else.

        Args:
            here: What the run needs answers about.

        Raises:
            ConfigError: Names what differs.
        """
        different = self.cache.manifest.belongs.differences(here)
        if different:
            raise ConfigError(
                f"{SETTING}: the answers in {self.config.path} are not of the teacher "
                f"'{self.teacher.name}' of this run: {'; '.join(different)}. Write its own with "
                "gkd cache"
            )

    def check_rows(self, encoded: Encoded, collator: Collator) -> None:
        """Reject a cache that lacks some of the training rows, or a file of its own.

        Args:
            encoded: The rows as the teacher reads them.
            collator: Makes batches of them.

        Raises:
            DataError: Says how many rows, or which file.
        """
        self.cache.check_files()
        are_those = encoded.tokens_hash == self.cache.manifest.rows
        if are_those and self.cache.manifest.learned in (None, encoded.learned_hash):
            return
        texts = missing = places = 0
        for start in range(0, len(encoded), CHECKED):
            rows = range(start, min(start + CHECKED, len(encoded)))
            batch = collator.collate(encoded, rows, EVALUATION_EPOCH)
            for document in documents(batch, self._form.scored):
                texts, places = texts + 1, places + len(document.places)
                missing += not self.cache.has(document)
        if missing:
            reason = self._other_words(places) if are_those else NOT_THOSE
            raise DataError(
                f"{SETTING}: {self.config.path} has no answers about {missing:,} of {texts:,} "
                f"texts of the training rows: {reason}"
            )

    def missing(self, capture: Capture) -> str | None:
        """Only what the methods read is stored that the cache was written for."""
        if capture in self._form.captures:
            return None
        there = ", ".join(sorted(map(str, self._form.captures)))
        return f"they are {there}, and gkd cache --method EXPRESSION stores what its methods read"

    def truncated_at(self) -> float | None:
        """Return the temperature of the likeliest words, if they are all that is stored."""
        return self.cache.manifest.temperature

    def gives_head(self) -> bool:
        """Return whether hidden states and the head are stored."""
        return self._form.has_head

    def fingerprint(self) -> str:
        """Return a hash of the names of all files, which have the hashes of their content."""
        manifest = self.cache.manifest
        return digest.of_value([manifest.head, *(part.name for part in manifest.parts)])

    def answer(
        self, captures: Collection[Capture], batch: Batch, step: Step
    ) -> Mapping[Capture, Answer]:
        """Return what is stored about the rows.

        Raises:
            DataError: A method reads something else by now, as those do that draw layers.
        """
        device = batch.rows.device
        columns = {name: own.to(device) for name, own in self._columns(batch).items()}
        answers = self._form.answers(columns, self._head(device))
        for capture in captures:
            if capture not in answers:
                raise DataError(f"teacher.{capture} is read, but {self.missing(capture)}")
        return answers

    @cached_property
    def _form(self) -> AnswerForm:
        return self.cache.manifest.answers

    def _other_words(self, places: int) -> str:
        """Return the difference of a run that learns so many words of the same rows."""
        stored = sum(part.values for part in self.cache.manifest.parts)
        return (
            f"they have the same tokens, but it was written for others that are learned, {stored:,}"
            f" instead of the {places:,} of this run. Write another with gkd cache"
        )

    def _columns(self, batch: Batch) -> Columns:
        """Return the stored values at their places."""
        texts = list(documents(batch, self._form.scored))
        found = [self.cache.find(document) for document in texts]
        return of_batch(texts, found, self._form, batch.mask.shape)

    def _head(self, device: torch.device) -> Mapping[str, Tensor]:
        if not self._form.has_head:
            return {}
        return {name: tensor.to(device) for name, tensor in self.cache.head.items()}
