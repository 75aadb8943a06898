"""Whether a budget can be kept at all: a student that keeps it, or the proof that there is none and what would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from search.budget import AT_LEAST, Budget, spelled
from search.errors import BudgetImpossible
from search.planner import Planner, Relaxed

_REMEDY = "Loosen the budget, or widen the space (smaller `space.divisor` or `space.min_keep`, `space.removal: true`)."


def witness(planner: Planner, budget: Budget, teacher: Mapping[str, int]) -> NDArray[np.int64]:
    """
    The choices `[sites]` of a student within the budget. `teacher` has the teacher's costs.

    Raises:
        BudgetImpossible: it is proved that there is none, or neither could be shown in time. `errors` has one entry
            for each limit to be widened, with a value of it in `allowed`; all of them together can be kept.
    """
    answer = planner.fit(budget.limits)
    if answer.choices is not None:
        return answer.choices
    relaxed = planner.relax(budget.limits)
    if answer.outcome == "unknown":
        told = ["neither a student within this budget was found in time, nor a proof that there is none"]
    else:
        conflicts = planner.conflicts(budget.limits)
        told = [_conflict(planner, budget, teacher, metrics, relaxed) for metrics in conflicts]
    needed: dict[str, int] = {}
    if relaxed is not None:
        needed = {metric: limit for metric, limit in relaxed.limits.items() if limit != budget.limits[metric]}
        if len(budget.limits) > 1:
            told.append(f"The nearest budget that can be kept is {_listed(relaxed.limits)}")
    raise BudgetImpossible(
        f"{'. '.join([told[0], *(text[0].upper() + text[1:] for text in told[1:])])}. {_REMEDY}",
        {metric: spelled(metric, limit) for metric, limit in needed.items()},
    )


def _conflict(
    planner: Planner, budget: Budget, teacher: Mapping[str, int], metrics: Sequence[str], relaxed: Relaxed | None
) -> str:
    asked = _listed({metric: budget.limits[metric] for metric in metrics})
    if len(metrics) == 1:
        metric, full = metrics[0], teacher[metrics[0]]
        best = planner.best(metric)
        bound = best.bound if best.value is None else best.value
        word = "largest" if metric in AT_LEAST else "smallest"
        reachable = (
            f"the {word} reachable is {bound:,.0f} ({100 * bound / max(full, 1):.2f} % of the teacher's {full:,})"
        )
        return f"no student of this teacher has {asked}: {reachable}"
    alone = {} if relaxed is None else relaxed.alone
    instead = [_listed({metric: needed}) for metric in metrics if (needed := alone.get(metric)) is not None]
    remedy = f"; all else as asked, it would take {' or '.join(instead)}" if instead else ""
    return f"no student of this teacher has {asked} together{remedy}"


def _listed(limits: Mapping[str, int]) -> str:
    return " and ".join(
        f"{metric} {'>=' if metric in AT_LEAST else '<='} {limit:,}" for metric, limit in limits.items()
    )
