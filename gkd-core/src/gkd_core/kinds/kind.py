"""`Kind`: the name of what a task predicts."""

from __future__ import annotations

from typing import Literal

Kind = Literal["classification", "regression", "masked-lm", "causal-lm"]

LM_KINDS: tuple[Kind, ...] = ("masked-lm", "causal-lm")
"""The kinds that predict tokens, for which plain text is enough."""
