"""`Ray`: runs cells as tasks of a Ray cluster that is there."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Generator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

import gkd_core
from gkd_core.contract.launcher import CellJob, JobEvent, Launch, Launcher
from gkd_core.errors import ConfigError
from gkd_core.launchers import on_node
from gkd_core.launchers.local import GRACE

TOKEN = ".token"
"""A file by which every node shows that it sees the folder of the cells."""

REACH = 10.0
"""Seconds within which a cluster answers."""

TRIES = 3
"""The number of times that a cell is started if its worker or node dies."""


class Ray(Launcher):
    """Tasks of a Ray cluster that is there; gkd starts none."""

    name = "ray"

    class Config(Launcher.Config):
        """Options of `ray`."""

        address: str = Field(
            "auto", description="Address of the cluster, such as 10.0.0.1:6379; auto finds it."
        )
        gpus: float = Field(
            0.0,
            ge=0,
            description="GPUs of a cell; 0.5 for two on one GPU. Default: what cells have taken so "
            "far; one, if the machine of the command has a GPU.",
        )

    config: Config

    def check(self) -> None:
        """Raise `ConfigError` if Ray is not installed."""
        if find_spec("ray") is None:
            raise ConfigError(
                "--launcher ray needs the package ray: pip install 'gkd-core[ray]', on every node"
            )

    def launch(self, launch: Launch) -> Generator[JobEvent, None, None]:
        """Run cells as tasks; Ray starts one again whose worker or node dies."""
        import ray

        self._connect(ray)
        try:
            _check_nodes(ray, launch.folder)
            yield from self._run(ray, launch)
        finally:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        try:
            _reach(self.config.address)
            ray.init(
                address=self.config.address,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=False,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster answers at {self.config.address!r} ({error}). gkd does not start "
                "one: start it with `ray start --head`, or name it: --option address=HOST:PORT"
            ) from error

    def _run(self, ray: Any, launch: Launch) -> Generator[JobEvent, None, None]:
        waiting = list(launch.jobs)
        running: dict[Any, CellJob] = {}
        limit = launch.limit or len(waiting)
        launch.say(self._room(ray.cluster_resources(), launch.jobs))
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    job = waiting.pop(0)
                    running[self._submit(ray, job)] = job
                    yield JobEvent(job)
                done, _ = ray.wait(list(running), timeout=1.0)
                for task in done:
                    yield JobEvent(running.pop(task), _status(ray, task))
        finally:
            for task in running:
                ray.cancel(task)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=GRACE)

    def _room(self, resources: Mapping[str, float], jobs: Sequence[CellJob]) -> str:
        """Return the resources of a cluster, and the share of its GPUs that cells need.

        Raises:
            ConfigError: A cell takes more of them than there are.
        """
        cores, gpus = (resources.get(name, 0.0) for name in ("CPU", "GPU"))
        taken = max(map(self._gpus, jobs), default=0.0)
        if taken > gpus:
            raise ConfigError(
                f"a cell takes {taken:g} GPUs, of which Ray has {gpus:g}. Add --option gpus=SHARE, "
                "or --set parallel.device=cpu"
            )
        about = f" and {gpus:g} GPUs; a cell takes {taken:.3g} of them" if gpus else ""
        return f"Ray has {cores:g} processors{about}"

    def _gpus(self, job: CellJob) -> float:
        return self.config.gpus or job.gpus

    def _submit(self, ray: Any, job: CellJob) -> Any:
        threads = job.threads or 1
        task = ray.remote(on_node.run).options(
            name=job.label,
            num_cpus=threads,
            num_gpus=self._gpus(job),
            memory=job.memory or None,
            max_retries=TRIES - 1,
        )
        return task.remote(list(job.command), str(Path.cwd()), on_node.own_environment(), threads)


def _reach(address: str) -> None:
    """Connect to an address HOST:PORT: Ray itself waits for minutes if nobody answers there.

    Raises:
        OSError: Nobody does.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()


def _status(ray: Any, task: Any) -> int:
    """Return the exit status of a cell; that of a killed process if its worker is gone."""
    try:
        return int(ray.get(task))
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError):
        return -9
    except ray.exceptions.RayError:
        return 1


def _check_nodes(ray: Any, folder: Path) -> None:
    """Make sure that each node sees the folder of the cells and has the same gkd.

    Raises:
        ConfigError: One does not.
    """
    token = secrets.token_hex(8)
    (folder / TOKEN).write_text(token)
    try:
        for host, found in _ask(ray, folder.resolve() / TOKEN):
            if found.token != token:
                raise ConfigError(
                    f"the node {host} does not see {folder.resolve()}: cells must write to a disk "
                    "that all nodes share. Choose another with --output"
                )
            if found.version != gkd_core.__version__:
                raise ConfigError(
                    f"the node {host} has gkd {found.version or 'none'}, not "
                    f"{gkd_core.__version__}. Install the same version on every node"
                )
    finally:
        (folder / TOKEN).unlink(missing_ok=True)


def _ask(ray: Any, token: Path) -> Sequence[tuple[str, on_node.Seen]]:
    """Return the view of each node, with the name of its host."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    questions = [
        ray.remote(on_node.look)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote(str(token))
        for node in nodes
    ]
    found = ray.get(questions, timeout=120)
    return [(node["NodeManagerHostname"], seen) for node, seen in zip(nodes, found, strict=True)]
