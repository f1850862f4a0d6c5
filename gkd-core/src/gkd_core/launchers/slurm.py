"""`Slurm`: writes, and perhaps submits, an array job for a SLURM cluster."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

from pydantic import Field

from gkd_core.atomic import write_file
from gkd_core.contract.launcher import RESUMABLE, JobEvent, Launch, Launcher
from gkd_core.errors import ConfigError
from gkd_core.launchers.on_node import own_environment

SCRIPT = "slurm.sh"
LOGS = "slurm"
MARGIN = 120
"""Seconds before the time limit at which a cell is asked to save a checkpoint."""

EARLY = 60
"""Seconds by which SLURM may send the signal too early."""

NO_LIMIT = ("0", "INFINITE", "UNLIMITED")
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")

DEFAULT_ARRAY = 1001
"""MaxArraySize where SLURM does not tell."""

TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}{throttle}
#SBATCH --cpus-per-task={threads}
#SBATCH --mem={memory}M
#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{margin}
#SBATCH --output={log}
{more}
cd {directory} || exit 1
{environment}
export OMP_NUM_THREADS={threads}
{command} --shards {tasks} &
child=$!
trap 'kill -USR1 $child 2>/dev/null' USR1 TERM
# A signal ends `wait` early: what counts is how the process ended.
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
# {unready}: the signal came before gkd could heed it, so that nothing had begun.
if [ "$status" -eq {resumable} ] || [ "$status" -eq {unready} ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$status"
"""


class Slurm(Launcher):
    """An array job of a SLURM cluster: a script, which `submit=true` hands to sbatch."""

    name = "slurm"

    class Config(Launcher.Config):
        """Options of `slurm`."""

        submit: bool = Field(False, description="Submit the script, too.")
        time: str = Field(
            "04:00:00",
            coerce_numbers_to_str=True,
            description="Time limit of a job, as sbatch reads it; the job is requeued at its end.",
        )
        tasks: int | None = Field(
            None,
            ge=1,
            description="Jobs of the array; each runs its share of the cells one after the other. "
            "Default: one for each cell, as far as MaxArraySize allows.",
        )
        sbatch: list[str] = Field(
            [],
            description="More options of sbatch, such as --partition=gpu. --gres, which is "
            "otherwise as many GPUs as a cell needs, may stand here, too.",
        )

    config: Config

    def check(self) -> None:
        """Raise `ConfigError` if jobs have no time, or the script cannot be submitted from here."""
        if seconds_of(self.config.time) <= MARGIN + EARLY:
            raise ConfigError(
                f"--option time={self.config.time}: cells save a checkpoint up to {MARGIN + EARLY} "
                "s before the time limit of a job, which leaves no time to train. Raise the limit"
            )
        if self.config.submit and shutil.which("sbatch") is None:
            raise ConfigError(
                "--option submit=true needs sbatch, which is not in PATH. Omit it, and submit the "
                "script on a machine of the cluster"
            )

    def launch(self, launch: Launch) -> Generator[JobEvent, None, None]:
        """Write the script; submit it if that is asked for."""
        path = launch.folder / SCRIPT
        (launch.folder / LOGS).mkdir(exist_ok=True)
        tasks = min(self.config.tasks or len(launch.jobs), len(launch.jobs), max_array_size())
        write_file(path, self.script(launch, tasks))
        launch.say(f"wrote {path}: {tasks} jobs for {len(launch.jobs)} cells")
        if self.config.submit:
            launch.say(_submit(path))
        else:
            launch.say(f"submit it with: sbatch {shlex.quote(str(path))}")
        yield from ()

    def script(self, launch: Launch, tasks: int) -> str:
        """Return the script of an array of so many jobs."""
        threads = max((job.threads or 1 for job in launch.jobs), default=1)
        memory = max((job.memory for job in launch.jobs), default=0)
        return TEMPLATE.format(
            name=shlex.quote(f"gkd-{launch.folder.resolve().name}"),
            last=tasks - 1,
            throttle="" if launch.limit is None else f"%{launch.limit}",
            threads=threads,
            memory=max(1, -(-memory // 2**20)),
            time=self.config.time,
            margin=MARGIN,
            log=shlex.quote(f"{launch.folder / LOGS}/%A_%a.log"),
            more="\n".join(f"#SBATCH {option}" for option in self._more(launch)),
            directory=shlex.quote(str(Path.cwd())),
            environment="\n".join(_environment()),
            command=shlex.join(launch.share),
            tasks=tasks,
            resumable=RESUMABLE[0],
            unready=128 + signal.SIGUSR1,
        )

    def _more(self, launch: Launch) -> Iterator[str]:
        """Yield the options of sbatch that not all cells need; a share of a GPU takes it all."""
        gpus = math.ceil(max((job.gpus for job in launch.jobs), default=0.0))
        named = any(option.startswith(("--gres", "--gpus", "-G")) for option in self.config.sbatch)
        if gpus and not named:
            yield f"--gres=gpu:{gpus}"
        yield from self.config.sbatch


def seconds_of(time: str) -> float:
    """Return the seconds of a time limit as sbatch reads it; infinity if it sets none.

    Raises:
        ConfigError: It is no time limit.
    """
    if time in NO_LIMIT:
        return math.inf
    match = TIME.fullmatch(time)
    if match is None:
        raise ConfigError(
            f"--option time={time}: expected MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS or "
            "DAYS-HOURS:MINUTES:SECONDS"
        )
    parts = [int(part) for part in match["parts"].split(":")]
    units = (3600, 60, 1) if match["days"] or len(parts) == 3 else (60, 1)
    clock = sum(part * unit for part, unit in zip(parts, units, strict=False))
    return int(match["days"] or 0) * 86400 + clock


def max_array_size() -> int:
    """Return the maximum number of jobs in an array."""
    try:
        found = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return DEFAULT_ARRAY
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", found)
    return int(match[1]) if match else DEFAULT_ARRAY


def _environment() -> Iterator[str]:
    """Yield the lines of the script that set what jobs need as well."""
    for name, value in own_environment().items():
        yield f"export {name}={shlex.quote(value)}"


def _submit(path: Path) -> str:
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"sbatch {path}: {done.stderr.strip()}")
    return done.stdout.strip()
