"""The rank of this process, read from its launcher's environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from gkd_core.errors import ConfigError

STORE = "GKD_STORE"
"""Variable with the file in which ranks of one machine meet."""

FIRST_PORT = 20000
PORTS = 20000
"""SLURM gives no port: it is derived from the job, so that jobs on one node do not collide."""


@dataclass(frozen=True)
class RankInfo:
    """The rank of a process and its rendezvous address.

    Attributes:
        rank: Global rank.
        world: Number of processes.
        local_rank: Rank on this machine.
        address: Host name of the machine of rank 0.
        port: Port that rank 0 listens on.
        store: The file in which ranks of one machine meet instead; they listen on no port.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    port: int
    store: str | None = None

    def export(self) -> None:
        """Set the environment variables of torchrun, which PyTorch and DeepSpeed read."""
        os.environ |= {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def read_launcher_env(environment: Mapping[str, str]) -> RankInfo | None:
    """Return the rank assigned by torchrun, deepspeed or srun; None if there is no launcher.

    Args:
        environment: Environment variables.

    Raises:
        ConfigError: A variable of the launcher has an impossible value.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        world = _number(environment, "WORLD_SIZE", range(1, 2**31))
        return RankInfo(
            rank=_number(environment, "RANK", range(world)),
            world=world,
            local_rank=_number(environment, "LOCAL_RANK", range(world)),
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT", range(2**16)),
            store=environment.get(STORE),
        )
    # An sbatch script is not itself a task of a step: it has SLURM_NTASKS but no step node list.
    if {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NODELIST"} <= environment.keys():
        return _slurm_rank(environment)
    return None


def _number(environment: Mapping[str, str], name: str, allowed: range) -> int:
    """Return the number in a variable of a launcher; 0 if it is not set."""
    text = environment.get(name, "0")
    if re.fullmatch("[0-9]{1,10}", text) and int(text) in allowed:
        return int(text)
    raise ConfigError(
        f"{name} = {text!r} in the environment is not a number from {allowed[0]} to "
        f"{allowed[-1]}. The launcher sets it; unset RANK and WORLD_SIZE to run without one"
    )


def _slurm_rank(environment: Mapping[str, str]) -> RankInfo | None:
    world = int(environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"]))
    if world == 1:
        return None
    job = int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))
    return RankInfo(
        rank=int(environment["SLURM_PROCID"]),
        world=world,
        local_rank=int(environment.get("SLURM_LOCALID", 0)),
        address=environment.get("MASTER_ADDR", first_node(environment["SLURM_STEP_NODELIST"])),
        port=int(environment.get("MASTER_PORT", FIRST_PORT + job % PORTS)),
    )


def first_node(nodes: str) -> str:
    """Return the first host of a SLURM node list: `node07` of `node[07-09,12],login1`."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)
