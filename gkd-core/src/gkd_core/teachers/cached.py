"""`cache`: answers of a teacher that `gkd cache` has written."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from gkd_core.errors import ConfigError
from gkd_core.hooks.paths import LOGITS
from gkd_core.losses.logits import LinearLogits
from gkd_core.teachers.answer_cache import AnswerCache, Belongs, CacheManifest, documents
from gkd_core.teachers.source import AnswerSource

if TYPE_CHECKING:
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.step import Step
    from gkd_core.hooks.features import Answer
    from gkd_core.hooks.paths import Capture

SETTING = "--teacher-cache (teacher.source.path)"


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
        folder = Path(os.path.expanduser(self.config.path))
        manifest = CacheManifest.load(folder, SETTING)
        if not manifest.is_finished:
            raise ConfigError(
                f"{SETTING}: {folder} is not finished. Repeat the gkd cache command that began it"
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

    def missing(self, capture: Capture) -> str | None:
        """Only logits are stored."""
        return None if capture == LOGITS else "gkd cache stores logits only"

    def fingerprint(self) -> str:
        """Return the names of the shards, which are hashes of what is in them."""
        return " ".join(part.name for part in self.cache.manifest.parts)

    def answer(
        self, captures: Collection[Capture], batch: Batch, step: Step
    ) -> Mapping[Capture, Answer]:
        """Return the logits of the rows."""
        values, device = self._values(batch), batch.rows.device
        if self.cache.manifest.form == "logits":
            return {LOGITS: values.to(device)}
        head = self._head(device)
        return {LOGITS: LinearLogits(values.to(device), head["weight"], head.get("bias"))}

    def _values(self, batch: Batch) -> Tensor:
        """Return the stored values as fp32: `[B, ...]`, or `[B, S, ...]`, zero at padding."""
        found = [(one, self.cache.find(one)) for one in documents(batch)]
        if self.cache.manifest.form == "logits":
            return torch.cat([values for _, values in found]).float()
        width = found[0][1].shape[1:]
        made = torch.zeros(*batch.mask.shape, *width)
        for document, values in found:
            made[document.row, document.tokens] = values.float()
        return made

    def _head(self, device: torch.device) -> Mapping[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in self.cache.head.items()}
