"""The generation settings of a model: how its text is drawn and where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from transformers import GenerationConfig

from gkd_core.models.quiet import quiet
from gkd_core.models.source import locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def adopt_generation_config(model: PreTrainedModel, source: str, origin: str) -> None:
    """Give a model the `generation_config.json` of another, if both are there to generate text.

    Reading weights does not do so where a model is built or divided first.

    Args:
        model: The model.
        source: Directory or hub id of the other model.
        origin: Setting that named it.
    """
    if not model.can_generate():
        return
    try:
        with quiet():
            model.generation_config = GenerationConfig.from_pretrained(locate(source, origin))
    except OSError:  # it has none; the one made from the configuration stays
        return


def end_with(model: PreTrainedModel, token: int) -> None:
    """Make a model's generated text end with a token."""
    if model.generation_config is not None:
        model.generation_config.eos_token_id = token


@contextmanager
def own_settings_aside(model: PreTrainedModel) -> Iterator[None]:
    """Keep a model's own settings out of `generate`, which adds them to those that it is given.

    A repetition penalty, for example, writes text that is not the model's likeliest.
    """
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
