"""The methods and recipes that this package registers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.api import hookimpl

if TYPE_CHECKING:
    from gkd_core.api import Method


@hookimpl
def gkd_register_methods() -> Iterable[type[Method]]:
    """Return the methods; they are imported here, not at module level, because they need torch."""
    from gkd_methods_classic.annealing_kd import AnnealingKD
    from gkd_methods_classic.continuation_kd import ContinuationKD
    from gkd_methods_classic.distilbert import DistilBERT
    from gkd_methods_classic.dpkd import DPKD
    from gkd_methods_classic.dskd import DSKD
    from gkd_methods_classic.glmd import GLMD
    from gkd_methods_classic.gold import GOLD
    from gkd_methods_classic.hard import Hard
    from gkd_methods_classic.kd import KD
    from gkd_methods_classic.mft import MFT
    from gkd_methods_classic.minillm import MiniLLM
    from gkd_methods_classic.minilm import MiniLM
    from gkd_methods_classic.minilmv2 import MiniLMv2
    from gkd_methods_classic.opd import OPD
    from gkd_methods_classic.pd import PD
    from gkd_methods_classic.pkd import PKD
    from gkd_methods_classic.sdft import SDFT
    from gkd_methods_classic.soft import Soft
    from gkd_methods_classic.uld import ULD

    return [
        AnnealingKD,
        ContinuationKD,
        DistilBERT,
        DPKD,
        DSKD,
        GLMD,
        GOLD,
        Hard,
        KD,
        MFT,
        MiniLLM,
        MiniLM,
        MiniLMv2,
        OPD,
        PD,
        PKD,
        SDFT,
        Soft,
        ULD,
    ]


@hookimpl
def gkd_register_recipes() -> Iterable[Path]:
    """Return the recipe files."""
    return sorted((Path(__file__).parent / "recipes").glob("*.toml"))
