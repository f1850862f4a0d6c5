"""Selection of the device to run on."""

from __future__ import annotations

import torch

from gkd_core.config.schema import ParallelConfig
from gkd_core.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Return the device named by `parallel.device`; `auto` is cuda where available.

    Raises:
        ConfigError: This machine has no such device.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "parallel.device is 'cuda', but PyTorch finds no CUDA device here. Leave it out, or "
            "set parallel.device=cpu"
        )
    return torch.device("cuda" if available and name == "auto" else name.replace("auto", "cpu"))


def check_devices(config: ParallelConfig) -> None:
    """Reject an unavailable device, and more processes than there are GPUs.

    Raises:
        ConfigError: The device is missing, or there are too few GPUs.
    """
    device = pick_device(config.device)
    if device.type == "cuda" and config.nproc > torch.cuda.device_count():
        raise ConfigError(
            f"parallel.nproc is {config.nproc}, but there are {torch.cuda.device_count()} GPUs "
            "here, and each process needs one. Start fewer, or set parallel.device=cpu"
        )
