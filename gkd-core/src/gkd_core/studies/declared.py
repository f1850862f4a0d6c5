"""The comparisons that methods declare: which knowledge of a teacher, in which layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gkd_core.contract.method import Method
from gkd_core.contract.model_info import Models
from gkd_core.contract.schedule import ALWAYS_1
from gkd_core.errors import GkdError
from gkd_core.hooks.paths import Capture
from gkd_core.objective.step_plan import ActiveMethod, sample_steps
from gkd_core.runs.token_checks import EXAMPLE

KNOWLEDGE = {
    "logits": "logits",
    "hidden": "hidden states",
    "pooled": "hidden states",
    "ffn": "hidden states",
    "neurons": "hidden states",
    "probs": "attention",
    "scores": "attention",
}
"""The type of knowledge of a site; that of the others is `queries, keys, values`."""

REST = "queries, keys, values"
NO_TEACHER = "labels"


@dataclass(frozen=True)
class Declared:
    """The comparisons of a method, by its default options.

    Attributes:
        knowledge: Types of knowledge, as in `hidden states + attention`.
        matching: Layers of the teacher that it reads: `none`, `last`, `some` or `all`.
    """

    knowledge: str
    matching: str


def declared(method: type[Method]) -> Declared | None:
    """Return a method's declared reads of a teacher with 12 layers; None if it declares none.

    Args:
        method: The method.
    """
    if method.teachers == "none":
        return Declared(NO_TEACHER, "none")
    try:
        member = ActiveMethod(method.name, ALWAYS_1, (method(),), (EXAMPLE,), torch.Generator())
        plans = sample_steps([member], "example")
    except GkdError:  # options that have no default
        return None
    requests = [one for plan in plans for one in plan.requests[method.name]]
    reads = {
        capture
        for request in requests
        for captures in request.reads.teacher.values()
        for capture in captures
    }
    types = sorted({KNOWLEDGE.get(capture.site, REST) for capture in reads})
    return Declared(" + ".join(types), _matching(reads, EXAMPLE)) if types else None


def _matching(captures: Iterable[Capture], models: Models) -> str:
    """Return the number of the teacher's blocks that are read."""
    assert models.teacher is not None
    depth = models.teacher.layers
    layers = {capture.layer for capture in captures if capture.layer}
    if not layers:
        return "none"
    if len(layers) == depth:
        return "all"
    return "last" if layers == {depth} else "some"
