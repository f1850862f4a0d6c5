"""Side effects that a loss must not have: on features, batches, generators, foreign weights."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from gkd_core.contract.batch import Batch
from gkd_core.hooks.features import Features
from gkd_core.objective.captured import Captured


@contextmanager
def keeps_globals(name: str) -> Iterator[None]:
    """Check that what runs inside changes no state that every part of the process shares.

    Args:
        name: Name of the method, for messages.

    Raises:
        AssertionError: It draws from a global random generator, seeds one, or changes a default.
    """
    states, defaults = _generator_states(), _defaults()
    try:
        yield
        for library, state in _generator_states().items():
            assert state == states[library], (
                f"{name}: it draws from the global generator of {library}, or seeds it; draw from "
                "`step.generator`, which is checkpointed"
            )
        assert _defaults() == defaults, f"{name}: it changes a global default of torch"
    finally:
        dtype, grad = defaults
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)


def _generator_states() -> dict[str, object]:
    _, keys, *place = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "Python": random.getstate(),
        "numpy": (np.asarray(keys).tobytes(), place),
    }


def _defaults() -> tuple[torch.dtype, bool]:
    return torch.get_default_dtype(), torch.is_grad_enabled()


@contextmanager
def keeps_inputs(name: str, captured: Captured, batch: Batch) -> Iterator[None]:
    """Check that what runs inside changes neither features nor the micro-batch in place.

    Args:
        name: Name of the method, for messages.
        captured: The features, of whole models.
        batch: The micro-batch.

    Raises:
        AssertionError: It changes a tensor.
    """
    # Some features are computed when they are read first: the copies compute their own.
    passes = list(_passes(captured))
    copies = [features.moved(lambda tensor: tensor.detach().clone()) for _, features in passes]
    tensors = {key: tensor.clone() for key, tensor in _tensors(batch).items()}
    yield
    changed = [
        f"{side}.{capture}"
        for (side, features), copy in zip(passes, copies, strict=True)
        for capture, tensor in features.tensors.items()
        if not torch.equal(copy[capture], tensor)
    ]
    now = _tensors(batch)
    changed += [f"batch.{key}" for key, tensor in tensors.items() if not now[key].equal(tensor)]
    assert not changed, (
        f"{name}: `loss` changes {', '.join(changed)} in place, which others read too; compute a "
        "new tensor"
    )


def _passes(captured: Captured) -> Iterator[tuple[str, Features]]:
    yield from (("student", features) for features in captured.student.values())
    for found in captured.teachers:
        for features in found.values():
            assert isinstance(features, Features), "features of a trial stay on the device"
            yield "teacher", features


def _tensors(batch: Batch) -> dict[str, Tensor]:
    named: Mapping[str, Tensor | None] = {
        **{f"inputs[{name!r}]": value for name, value in batch.inputs.items()},
        "labels": batch.labels,
        "rows": batch.rows,
        "words": batch.words,
        "byte_offsets": batch.byte_offsets,
        "loss_mask": batch.loss_mask,
        "samples": batch.samples.mask,
        "tokens": batch.tokens.mask,
        "targets": batch.targets.mask,
    }
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def foreign_weights(loss: Tensor, known: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors that a backward pass would give a gradient, except known ones.

    Args:
        loss: The loss.
        known: Weights that may have a gradient.
    """
    found, ours = [], {id(weight) for weight in known}
    left, seen = [loss.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        weight = getattr(node, "variable", None)
        if weight is not None and id(weight) not in ours:
            found.append(weight)
        left += [following for following, _ in node.next_functions]
    return found
