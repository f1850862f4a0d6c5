"""`Kind`: the kind of a task, named after its prediction target."""

from __future__ import annotations

from typing import Literal

Kind = Literal["classification", "regression", "masked-lm", "causal-lm"]
"""What a task predicts: a class or a value per row, or masked or next tokens."""

LM_KINDS: tuple[Kind, ...] = ("masked-lm", "causal-lm")
"""The kinds that predict tokens, which need only plain text."""
