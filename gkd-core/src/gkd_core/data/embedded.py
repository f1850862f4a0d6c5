"""`embedded`: a task made from the Python that runs, so that nothing has to be downloaded."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import BertConfig, BertForSequenceClassification

from gkd_core.data import docstrings
from gkd_core.data.assemble import LANGUAGE_MODELLING, fingerprint
from gkd_core.data.cache import cache_dir
from gkd_core.data.task import Kind, OwnTeacher, Split, Task, TaskData
from gkd_core.data.vocabulary import train_tokenizer
from gkd_core.errors import ConfigError, DataError
from gkd_core.models.quiet import quiet
from gkd_core.models.save import save_model

STUDENT_ROWS = 200
"""Rows the student gets: one distils on few rows of one's own what a teacher learnt from many."""

VOCAB_SIZE = 6000
MAX_LENGTH = 48
TEACHER_SEED = 0

TEACHER_SHAPE: Mapping[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "attention_probs_dropout_prob": 0.0,
}
"""Fields of the `BertConfig` of the task's own teacher."""

TEACHER_TRAINING: Mapping[str, Any] = {
    "epochs": 4,
    "batch_size": 32,
    "lr": 1e-3,
    "weight_decay": 0.05,
}

Rows = Mapping[str, tuple[list[str], list[int]]]


class Embedded(Task):
    """Paragraphs of the standard library's docstrings, and the chapter each belongs to.

    Paragraphs of one docstring and near-duplicates are always in the same split. As `masked-lm` or
    `causal-lm` it is the same text without labels. The rows depend on the Python installation and
    on nothing else.
    """

    name = "embedded"
    defaults: ClassVar[Mapping[str, Any]] = {
        "student": {"layers": 2, "init": "spaced"},
        "training": {"epochs": 50, "batch_size": 32, "lr": 3e-4, "evaluate_every": 70},
        "task": {"rows": STUDENT_ROWS, "max_length": MAX_LENGTH},
    }

    def check(self) -> None:
        """Refuse settings that belong to other tasks.

        Raises:
            ConfigError: A file is named, or a regression asked for.
        """
        for split in ("train", "validation", "test"):
            value = getattr(self.config, split)
            if value is not None:
                raise ConfigError(
                    f"task.{split} is {value!r}, but the task 'embedded' brings its own rows; "
                    "drop it, or set task.name = 'files'"
                )
        if self.config.kind == "regression":
            raise ConfigError(
                "task.kind is 'regression', but the task 'embedded' has classes; use "
                "'classification', 'masked-lm' or 'causal-lm'"
            )

    def load(self, kind: Kind, seed: int) -> TaskData:
        """Return the rows, classified unless `task.kind` asks for plain text.

        Raises:
            DataError: Python was installed without the sources of its library.
        """
        chosen = self.config.kind or "classification"
        labelled = chosen not in LANGUAGE_MODELLING
        classes = tuple(docstrings.CHAPTERS) if labelled else ()
        splits = {
            name: Split(texts, labels=labels if labelled else None)
            for name, (texts, labels) in _cached_rows().items()
        }
        return TaskData(
            kind=chosen,
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            classes=classes,
            fingerprint=fingerprint(chosen, classes, splits),
            source=f"docstrings of Python {sys.version.split()[0]}",
        )

    def own_teacher(self, data: TaskData) -> OwnTeacher | None:
        """Return a small BERT classifier; there is none for language modelling."""
        if data.kind != "classification":
            return None
        shape = {**TEACHER_SHAPE, "vocab_size": VOCAB_SIZE, "seed": TEACHER_SEED}
        return OwnTeacher(lambda directory: build_teacher(data, directory), TEACHER_TRAINING, shape)


def build_teacher(data: TaskData, directory: Path) -> None:
    """Write the untrained teacher of a classification and a tokenizer for its texts.

    Args:
        data: The task.
        directory: Where to; a model saved there before is replaced.
    """
    longest = TEACHER_SHAPE["max_position_embeddings"]
    tokenizer = train_tokenizer(data.train.text, VOCAB_SIZE, longest)
    config = BertConfig(
        **TEACHER_SHAPE,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(data.classes)),
        label2id={name: index for index, name in enumerate(data.classes)},
    )
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(TEACHER_SEED)
        model = BertForSequenceClassification(config)
    save_model(model, tokenizer, directory)


def _cached_rows() -> Rows:
    library = Path(sysconfig.get_path("stdlib"))
    content = f"{sys.version}\n{library}\n{inspect.getsource(docstrings)}"
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    path = cache_dir() / "embedded" / f"{key}.json"
    if not path.exists():
        _write(_make_rows(library), path)
    try:
        rows: Rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"the cached rows {path} are damaged ({error}); delete the file, it is made again"
        ) from error
    return rows


def _make_rows(library: Path) -> Rows:
    passages = docstrings.unique(docstrings.collect(library))
    return {
        name: ([passage.text for passage in split], [passage.label for passage in split])
        for name, split in docstrings.split(passages).items()
    }


def _write(rows: Rows, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(rows), encoding="utf-8")
    os.replace(aside, path)
