"""Silencing of transformers' warnings, load reports and progress bars."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers inside; its return values carry the same information."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    if not torch.accelerator.is_available():
        # transformers may import DeepSpeed, which warns where it is not told that there is no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
