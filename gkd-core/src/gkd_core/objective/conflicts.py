"""Checks for requests that a step cannot meet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gkd_core.contract.method_base import MethodBase
from gkd_core.errors import MethodError
from gkd_core.hooks.operations import Operation, Swap
from gkd_core.hooks.paths import MAIN, Capture

if TYPE_CHECKING:
    from gkd_core.objective.step_plan import PlannedPass, StepRequest


def refuse_undeclared(method: MethodBase, operations: Iterable[Operation]) -> None:
    """Reject undeclared use of teacher blocks: the checks before a run read the declaration."""
    borrowed = next((o for o in operations if isinstance(o, Swap) and o.borrows), None)
    if borrowed is not None and not method.borrows_blocks:
        raise MethodError(
            f"{method.name} runs {borrowed.by} in the student; declare this in its class: "
            "`borrows_blocks = True`"
        )


def refuse_passes(request: StepRequest) -> None:
    """Reject passes that are named but not defined, and duplicate names."""
    names = [extra.name for extra in request.passes]
    used = {
        *request.reads.student,
        *request.reads.teacher,
        *(write.run for write in request.writes),
    }
    unknown = sorted(used - {MAIN, *names})
    if unknown:
        raise MethodError(
            f"{request.member.name} names the pass '{unknown[0]}', which it does not have; its own "
            f"passes: {', '.join(names) or 'none'}. Return it from `passes`"
        )
    if len({MAIN, *names}) <= len(names):
        raise MethodError(
            f"{request.member.name} has passes {', '.join(names)}; give each a unique name "
            f"other than '{MAIN}'"
        )


def refuse_two_writers(planned: PlannedPass) -> None:
    """Reject two requests that change the same place in a pass."""
    writers: dict[tuple[str, int, Capture], StepRequest] = {}
    for side in ("student", "teacher"):
        for request, write in planned.writes(side):
            number = request.number if side == "teacher" else 0
            for place in write.places:
                first = writers.setdefault((side, number, place), request)
                if first is not request:
                    raise MethodError(
                        f"{first.member.name} and {request.member.name} both change "
                        f"{side}.{place}; they cannot be combined"
                        if first.member is not request.member
                        else f"{request.member.name} changes {side}.{place} for each teacher; it "
                        "works with one"
                    )
