"""Layer assignment from the cost of each pair of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Flow: TypeAlias = Mapping[tuple[int, int], float]
"""Positive weights of (student, teacher) pairs of blocks, counted from 1."""

NEGLIGIBLE = 1e-9
"""Largest flow that is considered a rounding error of the solver."""


def transport(costs: Tensor) -> Flow:
    """Return the optimal transport of uniform layer weights from the student to the teacher.

    The flow out of each student block is 1 / L_s and into each teacher block 1 / L_t, so it sums
    to 1 (BERT-EMD, Li et al., EMNLP 2020, with uniform layer weights). If a cost is not finite, the
    flow is spread over all pairs, so that the loss is not finite either.

    Args:
        costs: Cost of each pair, `[L_s, L_t]`.
    """
    import numpy as np
    from scipy.optimize import linprog

    students, teachers = costs.shape
    values = costs.double().cpu().numpy().ravel()
    flow = np.full(values.size, 1 / values.size)
    if np.isfinite(values).all():
        leaves = np.kron(np.eye(students), np.ones(teachers))
        arrives = np.kron(np.ones(students), np.eye(teachers))
        # The solver's tolerances are absolute, so costs are scaled to at most 1.
        scaled = values / (np.abs(values).max() or 1.0)
        carried = [1 / students] * students + [1 / teachers] * teachers
        flow = linprog(scaled, A_eq=np.vstack([leaves, arrives]), b_eq=carried).x
    return {
        (pair // teachers + 1, pair % teachers + 1): weight
        for pair, weight in enumerate(flow.tolist())
        if weight > NEGLIGIBLE
    }


def monotone(costs: Tensor) -> Flow:
    """Return the cheapest order-preserving pairing of all student blocks.

    Found by dynamic programming: the first s student blocks are paired with the first t teacher
    blocks either without block t, or with (s, t) as the last pair.

    Args:
        costs: Cost of each pair, `[L_s, L_t]` with L_s <= L_t.
    """
    # NaN would make `min` depend on the order of its arguments.
    cost = [[math.inf if math.isnan(c) else c for c in row] for row in costs.tolist()]
    students, teachers = costs.shape
    best = [[0.0] * (teachers + 1)]
    for s in range(students):
        row = [math.inf]
        for t in range(teachers):
            row.append(min(row[t], best[s][t] + cost[s][t]))
        best.append(row)
    flow = {}
    t = teachers
    for s in range(students, 0, -1):
        while t > s and best[s][t] == best[s][t - 1]:  # teacher block t is not needed
            t -= 1
        flow[s, t] = 1.0
        t -= 1
    return flow
