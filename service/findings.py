"""What a job tells of itself: what it made ready before its search, and how far its search can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from search.evidence import beats
from workers.ports import JobRecord, Phase
from workers.results import (
    ElasticResult,
    FinalistsResult,
    LibraryResult,
    PlanResult,
    Result,
    SearchResult,
    StructureResult,
    TeacherResult,
)
from workers.standings import Placed

R = TypeVar("R", bound=Result)

Cost = dict[str, int]


class Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, use_attribute_docstrings=True)


class LibraryDocument(Document):
    """Blocks distilled alone, one for each choice that was measured."""

    entries: int
    reused: int
    """Of which so many had been learned before, by this job or by another."""
    trained: int
    failed: int
    """That could not be trained; they count as the most harmful."""
    seconds: float
    """Of work, summed over the workers."""


class StartDocument(Document):
    """A candidate known before the search to be worth a trial."""

    level: int
    """1 for the loosest."""
    kind: Literal["optimum", "uniform"]
    harm: float
    """What its choices would take from the network, by the library: nats of KL to the teacher, summed."""


class ElasticDocument(Document):
    """Shared weights, trained for all candidates at once."""

    steps: int
    reused: bool
    seconds: float


class WayDocument(Document):
    """Where the learning of widths stood after some steps."""

    step: int
    metric: str
    """The limited cost that was furthest above its limit."""
    blocks: Cost
    """What of it the channels alive in each block came to; '' is what no width changes."""


class WidthsDocument(Document):
    """The widths learned for one level."""

    level: int
    """1 for the loosest."""
    alive: Cost
    """Channels alive at the end, by width site."""
    cost: Cost
    """Of those, in the limited metrics."""


class StructureDocument(Document):
    """Widths learned in one training of the teacher."""

    levels: list[WidthsDocument]
    way: list[WayDocument]
    steps: int
    reused: bool
    seconds: float


class PreparationDocument(Document):
    """Each null for a job that did not need it, or has not come to it."""

    library: LibraryDocument | None
    starts: list[StartDocument] | None
    elastic: ElasticDocument | None
    structure: StructureDocument | None


class CorrelationDocument(Document):
    """Spearman's rank correlation between the scores of the same trials after a short and a longer training."""

    steps: int
    later_steps: int
    finalists: bool
    """Whether the longer one is the finalists'."""
    trials: int
    value: float | None
    """Null, as its 95 % interval, where there are too few trials to say."""
    low: float | None
    high: float | None


class NoiseDocument(Document):
    """The standard deviation of an accuracy, 0..1, when the same network is trained again with another seed."""

    value: float
    low: float
    high: float
    difference: float
    """The least difference of two accuracies that is more than chance makes; less is a tie."""
    repeated: int
    """Trials that were scored again."""


class ExemptDocument(Document):
    """Trials let through though they would have been stopped, and how many of them then beat all others."""

    trials: int
    won: int
    rate: float
    low: float
    high: float


class EvidenceDocument(Document):
    """How far the order of trials can be trusted, measured in the job itself; intervals are of 95 %."""

    correlations: list[CorrelationDocument]
    noise: NoiseDocument | None
    exempt: ExemptDocument | None
    advice: str
    """What to change in the next job; empty where nothing speaks for a change."""


class FaultDocument(Document):
    file: str
    """Relative to the dataset's folder."""
    message: str


class SkippedDocument(Document):
    """Images that cannot be used, and that splits go without: no trial, teacher or student has seen them."""

    count: int
    images: int
    """Of so many in the dataset."""
    first: list[FaultDocument]
    """By name, and what is wrong with each; fifty at most."""


class RivalDocument(Document):
    """The best of the other finalists that keep the same budget."""

    trial: str
    number: int
    validation_accuracy: float
    beaten: bool | None
    """Whether the student is ahead by more than chance makes; false is a tie, null that chance was not measured."""


def on_record(record: JobRecord, phase: Phase, kind: type[R]) -> R | None:
    """The result of a phase; None while there is none."""
    known = record.phases.get(phase)
    if known is None or known.result is None:
        return None
    found: R | None = known.read.get(kind)
    if found is None:
        found = known.read[kind] = kind.model_validate(known.result)
    return found


def preparation(
    library: LibraryResult | None,
    plan: PlanResult | None,
    elastic: ElasticResult | None,
    structure: StructureResult | None,
) -> PreparationDocument:
    return PreparationDocument(
        library=None if library is None else LibraryDocument(**library.model_dump(exclude={"index"})),
        starts=None
        if plan is None
        else [StartDocument(level=start.level + 1, kind=start.kind, harm=start.harm) for start in plan.starts],
        elastic=None if elastic is None else ElasticDocument(**elastic.model_dump(exclude={"key"})),
        structure=None if structure is None else _structure(structure),
    )


def _structure(found: StructureResult) -> StructureDocument:
    return StructureDocument(
        levels=[
            WidthsDocument(level=level, alive=dict(one.alive), cost=dict(one.cost))
            for level, one in enumerate(found.levels, 1)
        ],
        way=[WayDocument(step=one.step, metric=one.metric, blocks=dict(one.blocks)) for one in found.way],
        steps=found.steps,
        reused=found.reused,
        seconds=found.seconds,
    )


def skipped_images(taught: TeacherResult | None) -> SkippedDocument | None:
    dataset = None if taught is None else taught.dataset
    if dataset is None or not dataset.skipped:
        return None
    first = [FaultDocument.model_validate(fault) for fault in dataset.faults]
    return SkippedDocument(count=dataset.skipped, images=dataset.images, first=first)


def evidence(search: SearchResult | None, finalists: FinalistsResult | None) -> EvidenceDocument | None:
    """The latest there is; null before the search is over."""
    found = finalists or search
    return None if found is None else EvidenceDocument.model_validate(found.evidence.model_dump())


def rival(student: str, chosen: FinalistsResult, fitting: Mapping[str, Placed]) -> RivalDocument | None:
    """Of the finalists among `fitting` the best but the student; None where the student has none."""
    accuracies = {one.trial: one.accuracy for one in chosen.finalists}
    others = [trial for trial in accuracies if trial in fitting and trial != student]
    if not others:
        return None
    best = others[0]  # finalists are on record best first
    return RivalDocument(
        trial=best,
        number=fitting[best].number,
        validation_accuracy=accuracies[best],
        beaten=beats(accuracies[student], accuracies[best], chosen.evidence.noise),
    )
