"""The device that a setting stands for."""

from __future__ import annotations

import torch

from gkd_core.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Return the device of `parallel.device`; `auto` is cuda where there is one.

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
