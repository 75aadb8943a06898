"""What a job would do, before any of it is done: reached numbers, levels with a student of each, time and cost."""

from __future__ import annotations

import copy
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from search.budget import Budget
from search.distillers.supervised import Supervised
from search.estimate import NOTHING, Pace, compute_hours, middle, pace, phases
from search.evidence import share
from search.planner import Planner
from search.plugins import CostModel, DatasetInfo, Distiller, SplitName
from search.projection import Projector
from search.rungs import Rungs
from search.space import Candidate, Site
from search.spec import JobSpec, Schedule, Trained
from search.surgery import Survey

_DRAWN = 100_000
_PIECE = 10_000
_DRAWING_SECONDS = 3.0


@dataclass(frozen=True)
class Checked:
    """
    A job that can be done: the survey, and what candidates cost, with guessed times where they are limited. At every
    level a student is proved to fit; limits of `unmeasured` metrics are not among theirs. The survey took `seconds`.
    """

    found: Survey
    costs: CostModel
    levels: Sequence[Budget]
    unmeasured: Sequence[str]
    seconds: float


def plan(
    spec: JobSpec,
    rungs: Rungs,
    info: DatasetInfo,
    sizes: Mapping[SplitName, int],
    distillers: Mapping[Trained, Distiller],
    checked: Checked,
    lots: Sequence[Site] = (),
    *,
    learns: bool = False,
) -> dict[str, Any]:
    """
    The plan of a job as JSON; `lots` has the site of every choice that its library measures, and `learns` says whether
    it learns widths.

    Raises:
        TrialError: teacher or student cannot be trained.
    """
    space, costs = checked.found.space, checked.costs
    bounds, draws = Planner(costs.polynomials).bounds(), drawn(costs, _DRAWN)
    students = [Projector(costs, budget).project(space.full()) for budget in checked.levels]
    return {
        "teacher": {"name": spec.teacher.name, "cost": {**_cost(costs, space.full()), **checked.found.cost}},
        "dataset": {
            "name": spec.dataset.name,
            "classes": len(info.classes),
            "shape": list(info.shape),
            "images": dict(sizes),
        },
        "space": {
            "key": space.key,
            "sites": len(space.sites),
            "kinds": dict(Counter(site.kind for site in space.sites)),
            "size": float(space.size),
        },
        "smallest": {metric: least for metric, (least, _) in bounds.items()},
        "largest": {metric: most for metric, (_, most) in bounds.items()},
        "limits": dict(checked.levels[0].limits),
        "levels": [
            _level(budget, _cost(costs, student), draws)
            for budget, student in zip(checked.levels, students, strict=True)
        ],
        "unmeasured": list(checked.unmeasured),
        "trials": spec.search.trials,
        "rungs": list(spec.search.rungs),
        "finalists": spec.finalists.count,
        "estimate": _estimate(spec, rungs, info, sizes, distillers, checked, students, lots, learns),
        "report": [asdict(finding) for finding in checked.found.report],
    }


def drawn(model: CostModel, count: int) -> dict[str, NDArray[np.int64]]:
    """
    The costs `[n]` of candidates drawn evenly over the choices of every site, the same ones each time: `count` of
    them, or fewer where there are so many sites that it takes long.
    """
    rng, began = np.random.default_rng(0), time.monotonic()
    pieces: list[Mapping[str, NDArray[np.int64]]] = []
    for start in range(0, count, _PIECE):
        if time.monotonic() - began > _DRAWING_SECONDS:
            break
        rows = min(_PIECE, count - start)
        choices = [rng.choice(np.asarray(site.choices, dtype=np.int64), rows) for site in model.space.sites]
        pieces.append(model.costs_of(np.stack(choices, axis=1)))
    return {metric: np.concatenate([piece[metric] for piece in pieces]) for metric in pieces[0]}


def _level(budget: Budget, student: Mapping[str, int], draws: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
    count = len(next(iter(draws.values())))
    fitting = int(budget.fits(draws).sum()) if budget.limits else count
    low, high = share(fitting, count)
    binding = {
        metric: int((Budget({metric: limit}).excess(draws) == budget.excess(draws)).sum())
        for metric, limit in budget.limits.items()
    }
    return {
        "limits": dict(budget.limits),
        "binding": max(binding, key=lambda metric: binding[metric]) if binding else None,
        "witness": {"cost": dict(student)},
        "share": {"drawn": count, "fitting": fitting, "low": low, "high": high},
    }


def _cost(model: CostModel, candidate: Candidate) -> dict[str, int]:
    costs = model.costs_of(model.space.array([candidate]))
    return {metric: int(values[0]) for metric, values in costs.items()}


def _estimate(
    spec: JobSpec,
    rungs: Rungs,
    info: DatasetInfo,
    sizes: Mapping[SplitName, int],
    distillers: Mapping[Trained, Distiller],
    checked: Checked,
    students: Sequence[Candidate],
    lots: Sequence[Site],
    learns: bool,
) -> dict[str, Any]:
    """Times the teacher, and of `students`, one a level, the first and the last."""
    resources, found = spec.resources, checked.found
    gpus = resources.gpus_per_trial > 0
    device = "cuda" if gpus and torch.cuda.is_available() else "cpu"

    def timed(model: nn.Module, macs: int, distiller: Distiller, schedule: Schedule) -> Pace:
        threads = resources.cpus_per_trial
        return pace(model, macs, info, distiller, schedule, threads=threads, device=device, found=found)

    def typical(part: Trained) -> Pace:
        """Of the students at both ends."""
        schedule = spec.search.training if part == "search" else spec.finalists.training
        ends = {students[0], students[-1]}
        return middle([timed(found.graft(one), _cost(found, one)["macs"], distillers[part], schedule) for one in ends])

    untaught = Supervised(Supervised.Options())
    teacher = timed(copy.deepcopy(found.teacher), found.cost["macs"], untaught, spec.teacher.training)
    student = typical("search")
    finalist = student if spec.distiller("finalists") == spec.distiller("search") else typical("finalists")
    survey_seconds = checked.seconds
    expected = phases(
        spec,
        rungs,
        sizes,
        len(students),
        teacher,
        student,
        finalist,
        survey_seconds=survey_seconds,
        lots=lots,
        learns=learns,
    )
    unit, cost = compute_hours(spec, expected)
    threads = min(resources.cpus_per_trial, os.cpu_count() or 1)
    basis = f"steps of training timed on this machine, {device}, {threads} thread{'s' if threads > 1 else ''}"
    if gpus and device == "cpu":
        basis += "; the job asks for GPUs and there is none here, so take these times for the most it may need"
    return {
        "phases": [{"phase": phase.name, **asdict(phase.seconds)} for phase in expected],
        "seconds": asdict(sum((phase.seconds for phase in expected), NOTHING)),
        "unit": unit,
        "cost": asdict(cost),
        "basis": basis,
    }
