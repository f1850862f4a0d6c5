"""GPUs of this machine, and what a process takes of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import torch

from gkd_core.errors import ConfigError

CONTEXT = 2**29
"""Bytes that a process takes of a GPU besides its tensors."""

ASK = """
import json, torch
print(json.dumps([torch.cuda.mem_get_info(gpu) for gpu in range(torch.cuda.device_count())]))
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    Attributes:
        name: What `CUDA_VISIBLE_DEVICES` calls it.
        free: Bytes that processes can still take.
        size: Bytes that it has.
    """

    name: str
    free: int
    size: int


def gpus() -> list[Gpu]:
    """Return the GPUs that this process may use.

    Raises:
        ConfigError: They do not answer.
    """
    if not torch.cuda.is_available():
        return []
    # A process that asks takes memory of each GPU until it ends, so that another one does.
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no answer"]
        raise ConfigError(
            f"no GPU of this machine reports its free memory: {said[-1]}. Wait until one is "
            "available, or add --set parallel.device=cpu"
        )
    found = json.loads(done.stdout)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if visible != [""] else [str(number) for number in range(len(found))]
    return [Gpu(name, free, size) for name, (free, size) in zip(names, found, strict=False)]


def share_taken() -> float:
    """Return the share of its GPU that this process has taken at most; 0 if it has used none."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 0.0
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return (torch.cuda.max_memory_reserved() + CONTEXT) / size
