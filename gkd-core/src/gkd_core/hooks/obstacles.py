"""The sites of a model that cannot be read or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_core.hooks.paths import ATTENTION_SITES, FFN_SITES, LOGITS, POOLED, Capture

if TYPE_CHECKING:
    from gkd_core.models.sites import Sites


POSITIONS_FIRST = ("xlnet",)
"""Model types whose hidden states are not `[B, S, D]`."""


def obstacle_at(place: Capture, sites: Sites) -> str | None:
    """Return the obstacle to capturing or changing a tensor; None if there is none."""
    model = type(sites.model).__name__
    if sites.model.config.model_type in POSITIONS_FIRST and place not in (POOLED, LOGITS):
        return f"the states inside {model} are not read: they have positions before rows"
    if place.site in ATTENTION_SITES:
        return sites.obstacle
    if place.site in FFN_SITES and not sites.ffns:
        return (
            f"the blocks of {model} have no linear map from the feed-forward width to the hidden "
            "size"
        )
    if place == POOLED and sites.classifier is None:
        return f"{model} has no head that classifies whole rows"
    return None
