"""What is drawn of a job: learning curves, accuracy against cost, what each choice goes with. Pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from pydantic import AwareDatetime

from search.budget import AT_LEAST
from search.trial import State, Trial
from service.documents import ScoreDocument
from service.findings import Document, on_record
from workers.events import Event
from workers.ports import JobRecord, Phase
from workers.results import FinalistsResult, SurveyResult, TeacherResult

MOST_POINTS = 2000
"""That are sent for one picture."""
_CONFIDENCE = 0.95
MORE_IS_BETTER = AT_LEAST | {"accuracy"}
T = TypeVar("T")


class ReadingDocument(Document):
    """A sign of life from a training under way; at most one a second is on record, of all trials together."""

    at: AwareDatetime
    step: int
    loss: float | None
    """Of the latest batch; null where it was not told."""


class FinalDocument(Document):
    steps: int
    accuracy: float
    kl: float


class CurveDocument(Document):
    trial: str
    number: int
    state: State
    scores: list[ScoreDocument]
    """On validation, one a rung, in order."""
    readings: list[ReadingDocument]
    """As they came; a rung that was trained again comes again. Evenly thinned out where there are many."""
    final: FinalDocument | None
    """Of a finalist, on validation after its long training; else null."""


class PointDocument(Document):
    trial: str
    number: int
    state: State
    rung: int
    """Of the score that is shown."""
    x: float
    y: float
    front: bool
    """Whether no other trial is at least as good in both and better in one."""


class TeacherPoint(Document):
    x: float | None
    y: float | None
    """Each null where it is not known; accuracy is that on validation."""


class ParetoDocument(Document):
    x: str
    y: str
    more_is_better: list[str]
    """Which of the two; of the others less is."""
    rung: int | None
    """At which scores are compared; null: each trial's last, whatever its rung."""
    total: int
    """Trials with such a score, those that failed left out."""
    front: int
    """Of which so many are on the front."""
    points: list[PointDocument]
    """By number: the front, and of the others a sample where there are many. At most 2000."""
    teacher: TeacherPoint
    limits: list[float]
    """Of `x`, one a level, loosest first; empty where it has none."""
    floor: float | None
    """The least accuracy of a job that has one to keep, where `y` is accuracy; else null."""


class ChoiceEffect(Document):
    choice: int
    trials: int
    """With this choice and a score at that rung."""
    accuracy: float | None
    """Their mean accuracy on validation; null without any."""
    low: float | None
    high: float | None
    """
    Where the mean of such trials lies with 95 % confidence, by Student's t; null with fewer than two. Other choices
    differ between these trials as well, and the strategy chose which were tried: this is no effect of the choice alone.
    """
    harm: float | None
    """
    What this choice alone takes from the teacher, measured by the job's library: KL in nats. Null where that was not
    measured, as of the full choice, which takes nothing.
    """


class SiteEffect(Document):
    site: str
    block: str
    """What the site's name begins with: the module that it lies in, where it lies in one."""
    choices: list[ChoiceEffect]
    """By choice, the least first."""
    spread: float | None
    """Between the largest and the smallest mean accuracy; null with fewer than two."""


class SensitivityDocument(Document):
    rung: int
    trials: int
    """With a score at that rung, those that failed left out."""
    confidence: float
    library: bool
    """Whether harms were measured: the job has a library."""
    sites: list[SiteEffect]
    """By name."""


def curve(trial: Trial, progress: Sequence[Event], record: JobRecord) -> CurveDocument:
    """`progress` are the trial's own events of kind PROGRESS."""
    readings = [
        ReadingDocument(at=event.at, step=event.data["step"], loss=event.data.get("loss")) for event in progress
    ]
    chosen = on_record(record, Phase.FINALISTS, FinalistsResult)
    found = next((one for one in chosen.finalists if one.trial == trial.id), None) if chosen else None
    steps = record.spec["finalists"]["steps"]
    return CurveDocument(
        trial=trial.id,
        number=trial.number,
        state=trial.state,
        scores=[ScoreDocument.model_validate(score) for score in trial.scores],
        readings=thinned(readings, MOST_POINTS - len(trial.scores)),
        final=FinalDocument(steps=steps, accuracy=found.accuracy, kl=found.kl) if found else None,
    )


class Seen(NamedTuple):
    """A scored trial as it stands in the plane."""

    trial: str
    number: int
    state: str
    rung: int
    x: float | None
    y: float | None


def axes(record: JobRecord) -> list[str]:
    """What there is to be drawn of a job: nothing but scores until its costs are known."""
    surveyed = on_record(record, Phase.SURVEY, SurveyResult)
    return ["accuracy", "kl", *(surveyed.cost if surveyed else ())]


def pareto(record: JobRecord, seen: Sequence[Seen], x: str, y: str, rung: int | None) -> ParetoDocument:
    """`seen` are in order of number."""
    able = [one for one in seen if one.x is not None and one.y is not None and one.state != State.FAILED]
    front = _front(able, x in MORE_IS_BETTER, y in MORE_IS_BETTER)
    best = thinned([one for one in able if one.number in front], MOST_POINTS // 2)
    others = thinned([one for one in able if one.number not in front], MOST_POINTS - len(best))
    surveyed = on_record(record, Phase.SURVEY, SurveyResult)
    chosen = on_record(record, Phase.FINALISTS, FinalistsResult)
    return ParetoDocument(
        x=x,
        y=y,
        more_is_better=[name for name in (x, y) if name in MORE_IS_BETTER],
        rung=rung,
        total=len(able),
        front=len(front),
        points=[
            PointDocument(**{**one._asdict(), "front": one.number in front})
            for one in sorted([*best, *others], key=lambda one: one.number)
        ],
        teacher=TeacherPoint(x=_of_teacher(record, x), y=_of_teacher(record, y)),
        limits=[budget.limits[x] for budget in surveyed.budgets if x in budget.limits] if surveyed else [],
        floor=chosen.floor if chosen and y == "accuracy" else None,
    )


def _front(seen: Sequence[Seen], more_x: bool, more_y: bool) -> set[int]:
    """The numbers of those that no other beats, in one sweep: sorting is what takes longest."""
    ways = (-1.0 if more_x else 1.0, -1.0 if more_y else 1.0)
    places = sorted((ways[0] * (one.x or 0.0), ways[1] * (one.y or 0.0), one.number) for one in seen)
    front: set[int] = set()
    last = (math.nan, math.inf)
    for x, y, number in places:
        if y < last[1] or (x, y) == last:
            front.add(number)
            last = (x, y)
    return front


def _of_teacher(record: JobRecord, metric: str) -> float | None:
    taught = on_record(record, Phase.TEACHER, TeacherResult)
    surveyed = on_record(record, Phase.SURVEY, SurveyResult)
    match metric:
        case "accuracy":
            return taught.validation_accuracy if taught else None
        case "kl":
            return 0.0 if taught and taught.validation_accuracy is not None else None
    return surveyed.cost.get(metric) if surveyed else None


def sensitivity(
    rung: int, scored: Sequence[tuple[Mapping[str, int], float]], harms: Mapping[tuple[str, int], float | None] | None
) -> SensitivityDocument:
    """
    `scored` has choices and accuracy of every trial with a score at `rung`; `harms` are by site and choice, None for a
    job without a library.
    """
    reached: dict[str, dict[int, list[float]]] = {}
    for choices, accuracy in scored:
        for site, choice in choices.items():
            reached.setdefault(site, {}).setdefault(choice, []).append(accuracy)
    for site, choice in harms or {}:
        reached.setdefault(site, {}).setdefault(choice, [])
    sites = []
    for site in sorted(reached):
        effects = [
            _effect(choice, reached[site][choice], (harms or {}).get((site, choice)))
            for choice in sorted(reached[site])
        ]
        means = [effect.accuracy for effect in effects if effect.accuracy is not None]
        spread = max(means) - min(means) if len(means) > 1 else None
        sites.append(SiteEffect(site=site, block=site.rpartition(".")[0] or site, choices=effects, spread=spread))
    return SensitivityDocument(
        rung=rung, trials=len(scored), confidence=_CONFIDENCE, library=harms is not None, sites=sites
    )


def _effect(choice: int, accuracies: Sequence[float], harm: float | None) -> ChoiceEffect:
    count = len(accuracies)
    mean = math.fsum(accuracies) / count if count else None
    low = high = None
    if mean is not None and count > 1:
        from scipy.special import stdtrit  # nobody else here needs it

        variance = math.fsum((accuracy - mean) ** 2 for accuracy in accuracies) / (count - 1)
        half = float(stdtrit(count - 1, (1 + _CONFIDENCE) / 2)) * math.sqrt(variance / count)
        low, high = mean - half, mean + half
    return ChoiceEffect(choice=choice, trials=count, accuracy=mean, low=low, high=high, harm=harm)


def harms_of(index: bytes) -> dict[tuple[str, int], float | None]:
    """By site and choice, as `workers.shelves.Index` has written them; that module would load torch."""
    return {(one["site"], one["choice"]): one["harm"] for one in json.loads(index)["shelved"]}


def thinned(points: Sequence[T], most: int) -> list[T]:
    """Evenly, the first and the last among those that stay; `most` is two at least."""
    if len(points) <= most:
        return list(points)
    return (
        [points[round(at * (len(points) - 1) / (most - 1))] for at in range(most)] if most > 1 else list(points[:most])
    )
