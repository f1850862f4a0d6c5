"""`gkd doctor`: what gkd finds on this machine."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gkd_core.cli.json_output import json_option

if TYPE_CHECKING:
    from rich.console import Console

COMPILER = "c++"


@click.command()
@json_option()
def doctor(as_json: bool) -> dict[str, Any] | None:
    """Show versions, devices, plugins, caches, and what is missing.

    Paste the output into a report of a problem. Nothing is changed or downloaded.
    """
    from rich.console import Console

    found = {
        "versions": _versions(),
        "devices": _devices(),
        "plugins": _plugins(),
        "extras": _extras(),
        "communication": _communication(),
        "caches": _caches(),
    }
    if as_json:
        return found
    _print(Console(highlight=False), found)
    return None


def _versions() -> dict[str, str]:
    from gkd_core import __version__
    from gkd_core.cli.installation import requirements

    own = {"gkd": __version__, "python": platform.python_version(), "system": platform.platform()}
    unfit = "is not installed in a version that fits"
    return own | {
        need.name: need.version if need.fits and need.version else f"{need} {unfit}"
        for need in requirements()
    }


def _devices() -> list[dict[str, Any]]:
    import torch

    from gkd_core.launchers.capacity import free_cores, free_memory

    cpu = {"name": "cpu", "cores": free_cores(), "memory": _finite(free_memory())}
    gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return [
        cpu,
        *(
            {"name": f"cuda:{number}", "model": gpu.name, "memory": gpu.total_memory}
            for number, gpu in enumerate(gpus)
        ),
    ]


def _finite(size: float) -> int | None:
    return int(size) if size < float("inf") else None


def _plugins() -> dict[str, Any]:
    from gkd_core.plugins import DISABLE, registry

    known = registry()
    return {
        "loaded": [str(plugin) for plugin in known.plugins.values()],
        "skipped": [str(skipped) for skipped in known.skipped],
        "disabled": os.environ.get(DISABLE, ""),
    }


def _extras() -> dict[str, dict[str, Any]]:
    from gkd_core.cli.installation import extras

    return {
        name: {
            "installed": [str(need) for need in needs if need.fits],
            "missing": [str(need) for need in needs if not need.fits],
        }
        for name, needs in sorted(extras().items())
    }


def _communication() -> dict[str, Any]:
    """Return the requirements of runs on several processes, other than packages."""
    from torch import distributed

    compiler = os.environ.get("CXX", COMPILER)
    return {
        "gloo": distributed.is_available() and distributed.is_gloo_available(),
        "nccl": distributed.is_available() and distributed.is_nccl_available(),
        "compiler": shutil.which(compiler),
    }


def _caches() -> dict[str, Any]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from gkd_core.data.cache import cache_dir
    from gkd_core.data.cache_limit import cache_items, cache_limit

    rooms: dict[str, int] = {}
    for item in cache_items():
        rooms[item.room] = rooms.get(item.room, 0) + item.size
    own, hub = cache_dir(), Path(HF_HUB_CACHE)
    return {
        "gkd": {
            "folder": str(own),
            "problem": _obstacle(own),
            "limit": cache_limit(),
            "rooms": rooms,
        },
        "hugging face hub": {"folder": str(hub), "size": _size(hub)},
    }


def _obstacle(folder: Path) -> str | None:
    """Return why nothing can be kept in a folder, which may not exist yet; None if it can."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    if not place.is_dir():
        return f"{place} is a file"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"


def _size(folder: Path) -> int:
    """Return the bytes below a folder; a link counts as what it takes itself."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _print(console: Console, found: Mapping[str, Any]) -> None:
    versions = dict(found["versions"])
    own = f"gkd {versions.pop('gkd')}, Python {versions.pop('python')}, {versions.pop('system')}"
    console.print(own, style="bold", markup=False)
    _section(console, "packages", {"": ", ".join(f"{n} {v}" for n, v in versions.items())})
    _section(console, "devices", dict(map(_device, found["devices"])))
    _section(console, "plugins", _told_plugins(found["plugins"]))
    _section(console, "extras", {n: _extra(n, e) for n, e in found["extras"].items()})
    _section(console, "runs on several processes", _told_communication(found))
    _section(console, "caches", _told_caches(found["caches"]))


def _section(console: Console, title: str, lines: Mapping[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines.items():
        table.add_row(f"  {name}" if name else "", Text(text))
    console.print(f"\n{title}", style="bold")
    console.print(table)


def _device(device: Mapping[str, Any]) -> tuple[str, str]:
    from gkd_core.analysis.sizes import readable

    parts = [f"{device['cores']} cores"] if "cores" in device else [device["model"]]
    if device["memory"] is not None:
        parts.append(f"{readable(device['memory'])} of memory{' free' * ('cores' in device)}")
    return device["name"], ", ".join(parts)


def _told_plugins(plugins: Mapping[str, Any]) -> dict[str, str]:
    lines = {"loaded": "\n".join(plugins["loaded"])}
    if plugins["skipped"]:
        lines["skipped"] = "\n".join(plugins["skipped"])
    if plugins["disabled"]:
        lines["disabled"] = plugins["disabled"]
    return lines


def _extra(name: str, needs: Mapping[str, Any]) -> str:
    if not needs["missing"]:
        return ", ".join(needs["installed"])
    return f"missing: {', '.join(needs['missing'])}: pip install 'gkd-core[{name}]'"


def _told_communication(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the available and the missing parts, in words."""
    has, missing = found["communication"], found["extras"].get("parallel", {}).get("missing", ())
    has_gpu = len(found["devices"]) > 1
    lines = {"processes": "ready on the CPU" if has["gloo"] else "this PyTorch has no gloo"}
    if has_gpu:
        lines["processes"] = "ready on GPUs" if has["nccl"] else "this PyTorch has no NCCL"
    if missing:
        needed = "more than one process, parallel.tensor and parallel.zero need"
        lines["processes"] = f"{needed} pip install 'gkd-core[parallel]'"
    lines["compiler"] = has["compiler"] or (
        f"there is no {COMPILER}, which parallel.offload_optimizer=cpu needs"
    )
    return lines


def _told_caches(caches: Mapping[str, Any]) -> dict[str, str]:
    from gkd_core.analysis.sizes import readable

    own, hub = caches["gkd"], caches["hugging face hub"]
    size = readable(sum(own["rooms"].values()))
    rooms = "".join(f"\n{room}: {readable(size)}" for room, size in own["rooms"].items())
    limit, problem = readable(own["limit"]), own["problem"]
    failing = f"{problem}, so nothing is kept: set GKD_CACHE to another folder\n" if problem else ""
    sizes = f"{size} of at most {limit} (GKD_CACHE_SIZE); gkd clean{rooms}"
    return {
        "gkd": f"{own['folder']}\n{failing}{sizes}",
        "hub": f"{hub['folder']}\n{readable(hub['size'])}",
    }
