"""A release, rehearsed: `make release`. Nothing is uploaded.

The packages are built as wheels and source archives into `dist`, and checked. Then they are
installed by name, as from an index, into environments that were empty: first core with one package
of methods, then all with a plugin of somebody else, which are tried out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "docs" / "examples" / "gkd-method-cosine"
QUICK = ("--set", "training.steps=20", "--no-baseline")
"""What makes a run of the demo's task short."""


def main() -> None:
    """Build, check and try the packages; a step that fails ends it."""
    parser = argparse.ArgumentParser(description="Rehearse a release; nothing is uploaded.")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="only build and check")
    arguments = parser.parse_args()
    built = build(arguments.dist.resolve())
    check(built)
    if not arguments.quick:
        with tempfile.TemporaryDirectory(prefix="gkd-release-") as folder:
            try_out(built, Path(folder))
    print("\nready: twine upload " + " ".join(sorted(str(path) for path in built)))


def packages() -> list[Path]:
    """Return the folders of the packages."""
    return sorted(path.parent for path in ROOT.glob("gkd-*/pyproject.toml"))


def build(dist: Path) -> list[Path]:
    """Build a wheel and a source archive of each package, in place of what is in `dist`."""
    shutil.rmtree(dist, ignore_errors=True)
    for package in packages():
        _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, package)
    return [path for path in dist.iterdir() if path.suffix in (".whl", ".gz")]


def check(built: Sequence[Path]) -> None:
    """Check that an index would take the files, and that they belong together."""
    assert len(built) == 2 * len(packages()), "a wheel and a source archive of each package"
    _run(sys.executable, "-m", "twine", "check", "--strict", *built)
    versions = {path.name.removesuffix(".tar.gz").split("-")[1] for path in built}
    assert len(versions) == 1, f"the packages have different versions: {versions}"


def try_out(built: Sequence[Path], folder: Path) -> None:
    """Install the packages by name into empty environments, and use them there."""
    names = [package.name for package in packages()]
    gkd = _installed(folder / "alone", built, "gkd-core", "gkd-methods-classic")
    _run(gkd, "methods", "pkd", cwd=folder)
    _run(gkd, "run", *QUICK, "--method", "pkd+soft+hard", cwd=folder)
    gkd = _installed(folder / "all", built, *names, str(PLUGIN))
    _run(gkd, "doctor", cwd=folder)
    _run(gkd, "run", cwd=folder)
    _run(gkd, "run", *QUICK, "--method", "cosine+soft", cwd=folder)


def _installed(place: Path, built: Sequence[Path], *names: str) -> Path:
    """Return the command in a new environment with packages and their requirements."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    options = ("--quiet", "-c", ROOT / "constraints.txt", "-f", built[0].parent)
    _run(python, "-m", "pip", "install", *options, *names)
    return place / "bin" / "gkd"


def _run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command without what this environment would add to it."""
    print("\n$ " + " ".join(map(str, command)), flush=True)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [str(part) for part in command],
        check=True,
        cwd=cwd,
        env=own | {"GKD_CACHE": str(cwd / "cache")} if cwd != ROOT else own,
    )


if __name__ == "__main__":
    main()
