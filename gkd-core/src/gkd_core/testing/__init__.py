"""For authors of methods: the properties every method must have, and tiny models to try it on."""

from __future__ import annotations

from gkd_core.testing.check_method import check_method
from gkd_core.testing.tiny import tiny_batch, tiny_model

__all__ = ["check_method", "tiny_batch", "tiny_model"]
