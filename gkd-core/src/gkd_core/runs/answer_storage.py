"""`Storage`: the form of a teacher's stored answers, and their size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gkd_core.errors import ConfigError
from gkd_core.hooks.paths import LOGITS, MAIN, Capture
from gkd_core.runs.belongs import belongs
from gkd_core.teachers.answer_cache import CacheManifest
from gkd_core.teachers.captured_states import names_of

if TYPE_CHECKING:
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.data.encode import Encoded
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.teachers.answer_form import AnswerForm, FormName, StoredType
    from gkd_core.training.stage_spec import StageSpec

OPTIONS = ("captures", "of_logits", "k", "temperature", "learned")
"""What a manifest says of one form only."""


@dataclass(frozen=True)
class Storage:
    """The form of stored answers.

    Attributes:
        dtype: Data type of values.
        form: The form. Default: `states` if methods read more than logits, else `hidden` of a
            language model, `logits` of a classifier.
        k: Words of `top-k`.
        temperature: What the logits of `top-k` are divided by.
    """

    dtype: StoredType = "fp16"
    form: FormName | None = None
    k: int = 64
    temperature: float = 1.0

    def manifest(self, spec: StageSpec, encoded: Encoded) -> CacheManifest:
        """Return the manifest of a cache that is to be written and not yet divided into shards.

        Raises:
            ConfigError: Answers cannot be stored, or not so.
        """
        _check_rows(spec)
        captures = _read_of_teacher(spec)
        form = self._form_for(spec, captures)
        truncated, states = form == "top-k", form == "states"
        return CacheManifest(
            belongs(spec, 0),
            form,
            self.dtype,
            spec.config.training.precision,
            encoded.tokens_hash,
            shards=0,
            captures=names_of(captures) if states else None,
            of_logits=_of_logits(spec.kind) if states and LOGITS in captures else None,
            k=self.k if truncated else None,
            temperature=self.temperature if truncated else None,
            learned=encoded.learned_hash if truncated else None,
        )

    def _form_for(self, spec: StageSpec, captures: frozenset[Capture]) -> FormName:
        kind, of_logits = spec.kind, _of_logits(spec.kind)
        more = names_of(captures)
        form = self.form or ("states" if more else of_logits)
        if form == "states" and not more:
            raise ConfigError(
                f"--form: {form} is what methods read besides logits, and {spec.expression} reads "
                "nothing else. Name the method that is to learn with --method"
            )
        if form != "states" and more:
            raise ConfigError(
                f"--form: {form} holds logits only, and {spec.expression} reads "
                f"{', '.join(more)} of the teacher. Use states"
            )
        if form != "states" and kind.is_lm == (form == "logits"):
            others = "hidden or top-k" if kind.is_lm else "logits"
            raise ConfigError(f"--form: {form} is not for {kind}. Use {others}")
        return form


def estimate(form: AnswerForm, info: ModelInfo, encoded: Encoded) -> str:
    """Return the size of the answers about rows, in words.

    Args:
        form: The form of the answers.
        info: The shape of the teacher.
        encoded: The rows.
    """
    size, rows = form.size(info), len(encoded)
    tokens, pairs = int(encoded.lengths.sum()), int(np.square(encoded.lengths).sum())
    each = [
        f"{own:,.0f} bytes per {unit}"
        for own, unit in ((size.token, "token"), (size.row, "row"), (size.pair, "pair of tokens"))
        if own
    ]
    whole = form.sizes(info, encoded).sum() / 2**20
    stored = ", ".join(sorted(map(str, form.captures)))
    return (
        f"{form.name} ({stored}) in {form.dtype}: {' and '.join(each)}, about {whole:,.1f} MiB for "
        f"{rows:,} rows of {tokens:,} tokens{f' and {pairs:,} pairs' if size.pair else ''}"
    )


def _check_rows(spec: StageSpec) -> None:
    """Reject rows whose answers cannot be found again by their token ids."""
    kind = spec.kind
    if kind.masks:
        raise ConfigError(f"{kind} masks other tokens in each epoch: its answers cannot be stored")
    if spec.config.rollout is not None:
        raise ConfigError(
            "rollout has models write new text in each step, for which no cache has answers"
        )
    if not kind.is_lm and (kind.predicted not in ("sample", "vector") or kind.markers):
        raise ConfigError(
            f"answers to rows of {kind} cannot be stored by their token ids. Use teacher.keep "
            "= 'disk', which stores them by row"
        )


def _of_logits(kind: TaskKind) -> FormName:
    """Return the form of logits that determines all of them."""
    return "hidden" if kind.is_lm else "logits"


def _read_of_teacher(spec: StageSpec) -> frozenset[Capture]:
    """Return the features that methods read of the first teacher in the course of a stage.

    Raises:
        ConfigError: They read it in a pass of their own, or change its forward pass.
    """
    found: set[Capture] = set()
    for plan in spec.sampled_steps:
        for planned in plan.passes:
            captures = planned.captures("teacher", 0)
            changes = any(True for _ in planned.writes("teacher", 0))
            if changes or (captures and planned.name != MAIN):
                raise ConfigError(
                    f"{spec.expression} makes forward passes of the teacher that differ from step "
                    "to step, which no cache holds. Train with the teacher"
                )
            found |= captures
    if not found:
        raise ConfigError(f"{spec.expression} reads nothing of the teacher: name a --method")
    return frozenset(found)
