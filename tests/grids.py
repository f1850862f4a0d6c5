"""Grids of cases of which `make test` runs a part, and `make test-exhaustive` the rest."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_of(cases: Iterable[Any], number: int = 1) -> list[Any]:
    """Return cases for `parametrize`: all after the first `number` are exhaustive.

    Args:
        cases: Values, or tuples with a value for each of several names.
        number: How many run in `make test`. What comes first should stand for the others.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if index < number else [pytest.mark.exhaustive],
        )
        for index, case in enumerate(cases)
    ]
