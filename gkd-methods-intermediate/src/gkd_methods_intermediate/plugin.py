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
    from gkd_methods_intermediate.alp_kd import ALPKD
    from gkd_methods_intermediate.ckd import CKD
    from gkd_methods_intermediate.diito import DIITO
    from gkd_methods_intermediate.lrc_bert import LRCBERT
    from gkd_methods_intermediate.match import Match
    from gkd_methods_intermediate.mgskd import MGSKD
    from gkd_methods_intermediate.mobilebert import MobileBERT
    from gkd_methods_intermediate.rail_kd import RAILKD
    from gkd_methods_intermediate.sid import SID
    from gkd_methods_intermediate.theseus import Theseus
    from gkd_methods_intermediate.tinybert import TinyBERT
    from gkd_methods_intermediate.universal_kd import UniversalKD

    return [
        ALPKD,
        CKD,
        DIITO,
        LRCBERT,
        Match,
        MGSKD,
        MobileBERT,
        RAILKD,
        SID,
        Theseus,
        TinyBERT,
        UniversalKD,
    ]


@hookimpl
def gkd_register_recipes() -> Iterable[Path]:
    """Return the recipe files."""
    return sorted((Path(__file__).parent / "recipes").glob("*.toml"))
