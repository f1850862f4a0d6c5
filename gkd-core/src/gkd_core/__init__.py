"""gkd: distil large language models.

`run` is what `gkd run` does. What a plugin may import is in `gkd_core.api`; the names that the
smallest method needs are here too. Names are loaded on first use: `import gkd_core` imports neither
torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_core.contract.method import Method as Method
    from gkd_core.distillation.run import run as run
    from gkd_core.hookspecs import hookimpl as hookimpl
    from gkd_core.losses.distances import cosine as cosine

_HOME = {
    "Method": "contract.method",
    "cosine": "losses.distances",
    "hookimpl": "hookspecs",
    "run": "distillation.run",
}

__all__ = sorted(_HOME)
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(
            f"module 'gkd_core' has no attribute {name!r}; what a plugin may import is in "
            "gkd_core.api"
        )
    return getattr(import_module(f"gkd_core.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
