"""Times in the course of one job: the tables that predict them, and students timed before and after their training."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from search.budget import AT_LEAST, Budget, Limit, Verdict
from search.errors import UserError
from search.latency.model import Timed
from search.latency.model import value as value_of
from search.latency.reading import Comparison
from search.latency.table import NETWORKS
from search.limits import Measurement
from search.recipe import Costs
from search.spec import JobSpec
from search.trial import Trial
from workers.backends.base import Backend
from workers.finals import Hopeless, named
from workers.ports import Artifacts, Claim
from workers.results import Exported, TableResult, TimeResult
from workers.timing import Place, Race, Tabled, Tabling, raced, tabulated

logger = logging.getLogger(__name__)

SENT_BACK = 2
"""How often a search may be sent back because no candidate of a level keeps its limits when it is measured."""

HEADROOM = 1.02
"""
How many times less than its limit a candidate has to take to be a finalist. Measurements of one network lie about their
middle (`benchmarks/steadiness.py`): one that just keeps its limit would miss it when its file is measured, every other
time.
"""

Times = Mapping[str, Comparison]
"""By metric."""


class _Kept(BaseModel):
    """What is known of a candidate, as an artifact."""

    model_config = ConfigDict(frozen=True)

    times: Times


class Stopwatch:
    """
    Times what a job asks to be timed, on a worker and one network at a time.

    `note` writes an event and raises when the job shall stop; `ended_early` is what to raise when a worker gave no
    answer. A candidate's times are kept as an artifact, so a job that is taken over does not measure it again.
    """

    def __init__(
        self,
        claim: Claim,
        spec: JobSpec,
        place: Place,
        backend: Backend,
        stopping: Callable[[], bool],
        note: Callable[..., None],
        ended_early: Callable[[], Exception],
    ) -> None:
        self._claim, self._place, self._backend = claim, place, backend
        self._stopping, self._note, self._ended_early = stopping, note, ended_early
        self.measurements: Mapping[str, Measurement] = spec.budget.measurements
        self._limits: Mapping[str, Sequence[Limit]] = spec.budget.limits

    @property
    def _artifacts(self) -> Artifacts:
        return self._place.artifacts

    def check(self) -> None:
        """
        Raises:
            UserError: no worker will ever have the device that times are to be measured on.
        """
        for metric, measurement in self.measurements.items():
            if _gpus(measurement):
                try:
                    self._backend.check(cpus=1, gpus=_gpus(measurement))
                except UserError:
                    raise UserError(
                        f"no worker has a GPU, which {metric} is to be measured on with `{measurement.runtime}`",
                        pointer=f"/budget/{metric}/runtime",
                        allowed=["onnxruntime-cpu", "torch-cpu"],
                    ) from None

    def tables(self) -> dict[str, str]:
        """The key of every metric's table; what two metrics share is measured once."""
        found: dict[Measurement, str] = {}
        for metric, measurement in self.measurements.items():
            if measurement not in found:
                try:
                    found[measurement] = self._tabulated(measurement)
                except UserError as error:  # the worker lacks what the measurement asks for
                    raise error.under(f"/budget/{metric}") from None
        return {metric: found[measurement] for metric, measurement in self.measurements.items()}

    def candidate(self, trial: Trial) -> Times:
        """Times of a trial's network before its training: they do not depend on its weights."""
        key = f"jobs/{self._claim.job_id}/latency/{trial.id}.json"
        if not self._artifacts.has(key):
            kept = _Kept(times=self._times(trial))
            self._artifacts.put(key, kept.model_dump_json().encode())
            told = {
                metric: {"nanoseconds": one.first.nanoseconds, "ratio": one.ratio} for metric, one in kept.times.items()
            }
            self._note("TIMED", trial=trial.id, number=trial.number, times=told)
        return _Kept.model_validate_json(self._artifacts.get(key)).times

    def exported(
        self, trial: Trial, file: str | None, budgets: Mapping[int, Budget], teacher: Mapping[str, int]
    ) -> Times:
        """
        Times of a student: of the ONNX file under the artifact `file`, if there is one and its runtime reads it.

        `budgets` are what it has to keep, by level; `teacher` as in `values`. Where its times do not and the
        candidate's did, one of the two was disturbed: it is measured twice more, and the middle one of three counts.
        """

        def keeps(times: Times) -> bool:
            return all(
                budget.holds({**trial.cost, **self.values(times, teacher, level)}) for level, budget in budgets.items()
            )

        found = self._times(trial, file)
        if not self.measurements or keeps(found) or not keeps(self.candidate(trial)):
            return found
        logger.info("trial %d took longer than before its training; it is measured twice more", trial.number)
        return self._middle([found, self._times(trial, file), self._times(trial, file)])

    def values(self, times: Times, teacher: Mapping[str, int], level: int) -> dict[str, int]:
        """
        What times come to against the limits of a level: for relative ones the ratio to the teacher counts, whose value
        on record is `teacher`.
        """
        return {
            metric: value_of(
                metric,
                times[metric],
                measurement,
                relative_to=teacher[metric] if self._limit(metric, level).relative else None,
            )
            for metric, measurement in self.measurements.items()
        }

    def costing(self, teacher: Mapping[str, int]) -> Callable[[Trial, int], Mapping[str, int]]:
        """What a trial costs at a level, its times measured if they are asked for; `teacher` as in `values`."""

        def cost(trial: Trial, level: int) -> Mapping[str, int]:
            if not self.measurements:
                return trial.cost
            return {**trial.cost, **self.values(self.candidate(trial), teacher, level)}

        return cost

    def _middle(self, three: Sequence[Times]) -> Times:
        """By metric the comparison in the middle: by its ratio, or by the student's time where the limit is a time."""

        def place(metric: str) -> Callable[[Times], float]:
            relative = self._limits[metric][0].relative
            return lambda times: times[metric].ratio if relative else times[metric].first.nanoseconds

        return {metric: sorted(three, key=place(metric))[1][metric] for metric in self.measurements}

    def _limit(self, metric: str, level: int) -> Limit:
        steps = self._limits[metric]
        return steps[level] if len(steps) > 1 else steps[0]

    def _times(self, trial: Trial, file: str | None = None) -> Times:
        found: dict[Measurement, Comparison] = {}
        for measurement in self.measurements.values():
            if measurement not in found:
                race = Race(self._place, measurement, dict(trial.choices), file)
                found[measurement] = self._answer(raced, race, measurement)
        return {metric: found[measurement] for metric, measurement in self.measurements.items()}

    def _tabulated(self, measurement: Measurement) -> str:
        tabled: Tabled = self._answer(tabulated, Tabling(self._place, measurement), measurement)
        return tabled.key

    def _answer(self, function: Callable[[Any], Any], item: object, measurement: Measurement) -> Any:
        """The last thing that a worker says; whole numbers before it are networks done."""
        for _, word in self._backend.map(
            function,
            [item],
            cpus=measurement.threads,
            gpus=_gpus(measurement),
            stopping=self._stopping,
        ):
            if not isinstance(word, int):
                return word
            self._note("PROGRESS", phase="survey", done=word, total=NETWORKS)
        raise self._ended_early()


@dataclass(frozen=True)
class Trimmed:
    """
    The finalists of every level that keep it with headroom; of a level where none does, those that keep it at all, or
    else all of them. `factors` say how far below the limits predictions must be for such a level to be kept; empty when
    no level needs them.
    """

    finalists: list[list[Trial]]
    factors: Mapping[str, float]


def trimmed(
    groups: Sequence[Sequence[Trial]],
    levels: Sequence[Budget],
    cost: Callable[[Trial, int], Mapping[str, int]],
    margins: Mapping[str, float],
) -> Trimmed:
    """
    `cost` gives what a trial costs at a level, times as measured; its own costs are the prediction. `margins` say how
    far predictions are to stay below the limits in any case.
    """
    finalists, factors = [], dict[str, float]()
    for level, (group, budget) in enumerate(zip(groups, levels, strict=True)):
        costs = {trial.id: cost(trial, level) for trial in group}
        fitting = [trial for trial in group if budget.holds(costs[trial.id])]
        roomy = [trial for trial in fitting if budget.holds(_with_headroom(costs[trial.id], margins))]
        finalists.append(roomy or fitting or list(group))
        if group and not roomy:
            for metric, margin in margins.items():
                slower = statistics.median(_slower(metric, trial, costs[trial.id]) for trial in group)
                factor = margin * max(1.0, slower)
                factors[metric] = max(factor, factors.get(metric, 1.0))
    return Trimmed(finalists, factors)


def _with_headroom(cost: Mapping[str, int], timed: Iterable[str]) -> dict[str, int]:
    """The cost with those metrics that were `timed` so much worse."""
    slower = {
        metric: math.floor(cost[metric] / HEADROOM) if metric in AT_LEAST else math.ceil(cost[metric] * HEADROOM)
        for metric in timed
    }
    return {**cost, **slower}


def _slower(metric: str, trial: Trial, measured: Mapping[str, int]) -> float:
    """How many times slower than predicted."""
    predicted = trial.cost[metric]
    return predicted / measured[metric] if metric in AT_LEAST else measured[metric] / predicted


def margins(costs: Costs) -> dict[str, float]:
    """By measured metric, how far predictions are to stay below limits: by their median error, and the headroom."""
    timings = costs.timings if isinstance(costs, Timed) else {}
    return {metric: HEADROOM * (1 + (learned.error or 0.0)) for metric, learned in timings.items()}


def table_results(costs: Costs, tables: Mapping[str, str]) -> dict[str, TableResult]:
    timings = costs.timings if isinstance(costs, Timed) else {}
    return {
        metric: TableResult(table=tables[metric], error=learned.error, held_out=learned.held_out, lane=learned.lane)
        for metric, learned in timings.items()
    }


def with_times(student: Exported, predicted: Mapping[str, int], times: Times, measured: Mapping[str, int]) -> Exported:
    """The student with its measured times among its costs, and beside what was `predicted`."""
    results = {
        metric: TimeResult(predicted=predicted[metric], measured=value, comparison=times[metric])
        for metric, value in measured.items()
    }
    return student.model_copy(update={"cost": {**student.cost, **measured}, "times": results})


def check_times(students: Sequence[Exported], budgets: Sequence[Budget]) -> None:
    """Raises `Hopeless` when one of the exported students, one a budget, misses a limit by what was measured of it."""
    for level, (student, budget) in enumerate(zip(students, budgets, strict=True)):
        for verdict in budget.judge(student.cost):
            if verdict.metric in student.times and not verdict.fits:
                raise Hopeless(_too_slow(verdict, f" of {named(budgets, level)}" if len(budgets) > 1 else ""))


def _too_slow(verdict: Verdict, where: str) -> str:
    if verdict.at_least:
        return (
            f"the exported student{where} answers {verdict.value:,.0f} images a second and the limit is "
            f"{verdict.limit:,.0f}, {_REMEDY}"
        )
    return (
        f"the exported student{where} takes {verdict.value / 1e6:.4g} ms a batch and the limit is "
        f"{verdict.limit / 1e6:.4g} ms, {_REMEDY}"
    )


_REMEDY = (
    f"though the search may be sent back {SENT_BACK} times; the student can be pulled all the same. "
    "Loosen the limit, or measure on a machine that nothing else uses"
)


def _gpus(measurement: Measurement) -> int:
    return 1 if measurement.runtime.endswith("-cuda") else 0


def tightened(budget: Budget, factors: Mapping[str, float], bounds: Mapping[str, tuple[int, int]]) -> Budget:
    """
    The budget with times to be predicted by as much below their limits as `factors` say, 1.0 leaving them as they are;
    never below what the fastest student is predicted to take.
    """
    limits = dict(budget.limits)
    for metric, factor in factors.items():
        if metric in AT_LEAST:
            limits[metric] = min(math.ceil(limits[metric] * factor), max(limits[metric], bounds[metric][1]))
        else:
            limits[metric] = max(math.floor(limits[metric] / factor), min(limits[metric], bounds[metric][0]))
    return Budget(limits)
