"""Values as bytes for other ranks: JSON and tensors, which run no code when they are read."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

LENGTH = 8
"""Bytes that say how long the JSON is."""


def pack(value: Any) -> bytes:
    """Return a value as bytes.

    Args:
        value: None, a boolean, number, text or path, a tensor or array, or a list, tuple, mapping,
            dataclass or named tuple of these. Dataclasses stand at the top of a module.

    Raises:
        TypeError: It contains something else.
    """
    tensors: dict[str, Tensor] = {}
    head = json.dumps(_plain(value, tensors)).encode()
    body: bytes = save(tensors)
    return len(head).to_bytes(LENGTH, "big") + head + body


def unpack(content: bytes) -> Any:
    """Return the value in bytes that `pack` made.

    Raises:
        TypeError: It contains a record of a class that is none, or that is not imported here.
    """
    start = LENGTH + int.from_bytes(content[:LENGTH], "big")
    return _value(json.loads(content[LENGTH:start]), load(content[start:]))


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON; lists are as they are, and what JSON lacks is a `{kind: content}`."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item(), tensors)
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, Tensor):
        return {"tensor": _put(value, tensors)}
    if isinstance(value, np.ndarray):
        return {"array": _put(torch.from_numpy(value), tensors)}
    if isinstance(value, Mapping):
        return {"mapping": [_plain([key, held], tensors) for key, held in value.items()]}
    if _is_record(type(value)):
        fields = {name: _plain(held, tensors) for name, held in _fields(value).items()}
        return {"record": [*_name(type(value)), fields]}
    if isinstance(value, (list, tuple)):
        plain = [_plain(held, tensors) for held in value]
        return plain if isinstance(value, list) else {"tuple": plain}
    raise TypeError(f"a value of type {type(value).__qualname__} cannot be sent to other ranks")


def _value(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that `_plain` turned into JSON."""
    if isinstance(plain, list):
        return [_value(held, tensors) for held in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    match kind:
        case "path":
            return Path(content)
        case "tensor":
            return tensors[content]
        case "array":
            return tensors[content].numpy()
        case "mapping":
            return {_value(key, tensors): _value(held, tensors) for key, held in content}
        case "tuple":
            return tuple(_value(held, tensors) for held in content)
    module, name, fields = content
    made = _record(module, name)
    return made(**{field: _value(held, tensors) for field, held in fields.items()})


def _put(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    """Add a tensor to those that are sent, as a copy of its own; return its name."""
    name = str(len(tensors))
    tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return name


def _is_record(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a record, by name."""
    if isinstance(value, tuple):
        return dict(zip(value._fields, value, strict=True))  # type: ignore[attr-defined]
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.init}


def _name(kind: type) -> tuple[str, str]:
    """Return the module and the name by which other ranks find a class of records."""
    if _record(kind.__module__, kind.__qualname__) is not kind:
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} is now the name of another class")
    return kind.__module__, kind.__qualname__


def _record(module: str, name: str) -> type:
    """Return a class of records of a module that is imported; nothing else is looked up.

    Raises:
        TypeError: There is none of that name.
    """
    place: Any = sys.modules.get(module)
    found = reduce(lambda outer, part: getattr(outer, part, None), name.split("."), place)
    if not (isinstance(found, type) and _is_record(found)):
        raise TypeError(f"{module}.{name} is no dataclass or named tuple that this rank knows")
    return found
