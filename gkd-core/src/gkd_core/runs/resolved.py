"""The configuration of a run, resolved with what plugins, tasks and models add to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd_core.config.resolve import Resolved, ResolvedStage, resolve
from gkd_core.contract.model_info import Models
from gkd_core.plugins import registry


def resolve_run(
    files: Sequence[Path] = (),
    recipe: str | None = None,
    settings: Sequence[str] = (),
    flags: Mapping[str, tuple[Any, str]] | None = None,
    before: Resolved | None = None,
) -> Resolved:
    """Return the configuration of a run.

    Args:
        files: Run files, lowest precedence first.
        recipe: Name of a recipe.
        settings: `key=value`, as in `--set`.
        flags: Dotted keys, each with a value and where it was given.
        before: The run to resume.

    Raises:
        GkdError: A value is invalid.
    """
    return resolve(
        registry(),
        files=files,
        recipe=recipe,
        settings=settings,
        flags=flags,
        task_defaults=lambda name, kind: registry().task(name).defaults(kind),
        task_adjustments=lambda name, recipe, stage, values: (
            registry().task(name).adjustments(recipe, stage, values)
        ),
        shapes=_shapes,
        before=before,
    )


def _shapes(stage: ResolvedStage) -> Models:
    from gkd_core.runs import spec_builder

    return spec_builder.read_shapes(stage, registry())
