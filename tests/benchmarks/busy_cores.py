"""Steps per second of a small model on all cores of a machine that is idle, or runs other work.

The other work is one busy process per core. Threads wait as gkd has them wait, or as PyTorch's
OpenMP does by default:

    python tests/benchmarks/busy_cores.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

from gkd_core.cli.threads import POLICY, SPIN, share_cores

SECONDS = 15

TRAIN = f"""
import time
import torch
from torch import nn

torch.manual_seed(0)
layers = [nn.TransformerEncoderLayer(128, 4, 512, batch_first=True) for _ in range(4)]
model, rows = nn.Sequential(*layers), torch.randn(16, 32, 128)
optimizer = torch.optim.AdamW(model.parameters())
steps, begun = -3, time.monotonic()
while time.monotonic() - begun < {SECONDS}:
    optimizer.zero_grad()
    model(rows).square().mean().backward()
    optimizer.step()
    steps += 1
    begun = begun if steps else time.monotonic()
print(steps / (time.monotonic() - begun))
"""


def main() -> None:
    """Print the steps per second of each case."""
    plain = {k: v for k, v in os.environ.items() if k not in (SPIN, POLICY, "OMP_NUM_THREADS")}
    shared = dict(plain)
    share_cores(shared)
    for name, busy in (("idle", 0), ("busy", os.cpu_count() or 1)):
        with ExitStack() as others:
            for _ in range(busy):
                process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                others.callback(process.kill)
            for how, own in (("gkd", shared), ("default", plain)):
                done = subprocess.run(
                    [sys.executable, "-c", TRAIN], env=own, capture_output=True, check=True
                )
                print(f"{name}, {how:<7} {float(done.stdout):.2f} steps per second")


if __name__ == "__main__":
    main()
