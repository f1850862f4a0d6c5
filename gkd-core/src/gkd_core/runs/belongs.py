"""The conditions under which stored answers of a teacher serve a stage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gkd_core import digest
from gkd_core.models.content import WEIGHTS
from gkd_core.named_path import named_path
from gkd_core.runs.fingerprint import revision, vocabulary
from gkd_core.teachers.answer_cache import Belongs

if TYPE_CHECKING:
    from gkd_core.training.stage_spec import StageSpec, TeacherSpec


def belongs(spec: StageSpec, number: int) -> Belongs:
    """Return the subject of a teacher's answers in a stage."""
    teacher = spec.teachers[number]
    return Belongs(
        weights=_weights(teacher),
        config=_config(teacher),
        tokenizer=digest.of_value(vocabulary(teacher.tokenizer)),
        template=digest.of_value(teacher.tokenizer.chat_template),
        kind=spec.kind.name,
        vocabulary=teacher.info.labels,
    )


def _weights(teacher: TeacherSpec) -> str:
    place = named_path(teacher.trained)
    if not place.is_dir():
        return f"{teacher.model} {revision(teacher.config)}"
    files = sorted(place.glob(f"*{WEIGHTS}"))
    return digest.of_files(files) if files else ""


def _config(teacher: TeacherSpec) -> str:
    file = named_path(teacher.trained) / "config.json"
    if not file.is_file():
        return ""
    content = json.loads(file.read_text())
    content.pop("transformers_version", None)  # of who wrote it
    return digest.of_value(content)
