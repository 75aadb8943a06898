"""What each finished phase leaves in the ledger. Written by the driver, read by whoever shows a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from search.budget import Budget
from search.evidence import Evidence
from search.latency.reading import Comparison
from search.plugins import Start
from search.space import Space

Cost = Mapping[str, int]

# Below `Field(default_factory=dict)` and not `{}`, of which pydantic makes a deep copy whenever a result is read.


class Result(BaseModel):
    """What a later version has put down as well is passed over: servers are replaced one by one, and back."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Broken(Result):
    """What is wrong with a file; `file` is relative to the dataset's folder."""

    file: str
    message: str


class DatasetResult(Result):
    """The dataset as the job opened it, before anything was trained."""

    key: str
    """Names what its splits hold."""
    skipped: int = 0
    """Images that they go without, for they cannot be used."""
    images: int = 0
    """Of so many; not said where none is skipped."""
    faults: tuple[Broken, ...] = ()
    """The first of those skipped, by name."""


class TeacherResult(Result):
    """
    `accuracy` is on the test set, `validation_accuracy` on the set the search looks at; both 0..1, of a detector mean
    average precision, and None of a network that nobody has trained.
    """

    name: str
    key: str
    source: Literal["trained", "kept", "weights", "untrained"]
    """
    Trained by this job, found among those kept from earlier jobs, loaded from the file in the spec, or no teacher at
    all: the network that students are cut from, as it was initialised.
    """
    weights: str
    """Key of the artifact that holds its state dict."""
    accuracy: float | None
    validation_accuracy: float | None
    shots: Mapping[str, float] = Field(default_factory=dict)
    """Accuracy on the test set by how many training images a class has, as `search.quality.shots` has it."""
    detection: Mapping[str, float] = Field(default_factory=dict)
    """Of a detector, on the test set, as `search.quality.Grade` has it."""
    dataset: DatasetResult | None = None
    """Of the job and not of the teacher: None where that is kept for others, and on record where nothing is skipped."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a dataset of which nothing needs to be told: an earlier version refuses what it does not know."""
        document: dict[str, Any] = write(self)
        if self.dataset is None or not self.dataset.skipped:
            document.pop("dataset", None)
        return document


class TableResult(Result):
    """The table that one metric is predicted from, and how well."""

    table: str
    """Key of the artifact."""
    error: float | None
    """Median relative error of predictions for networks that were measured but not learned from; None without any."""
    held_out: tuple[tuple[int, int], ...]
    """Those networks: predicted and measured nanoseconds."""
    lane: int
    """Channels that the runtime was found to handle at once."""


class SurveyResult(Result):
    space: str
    """The space's key."""
    sites: int
    size: float
    cost: Cost
    """Of the teacher."""
    smallest: Cost
    """Of the smallest student that the space holds."""
    limits: Cost
    """The budget, worked out: the whole number that each metric has for a limit. Of a ladder, its loosest level's."""
    levels: tuple[Cost, ...] = ()
    """The limits of every level that is searched, loosest first; empty where there is but one."""
    times: Mapping[str, TableResult] = Field(default_factory=dict)
    """By measured metric. The costs above have its predictions."""

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """One a level."""
        return tuple(map(Budget, self.levels or (self.limits,)))


class LibraryResult(Result):
    entries: int
    """Choices of sites, each distilled alone and measured."""
    reused: int
    """Of which so many had been learned before, by this job's former drivers or by other jobs."""
    trained: int
    failed: int
    """Of all entries those that could not be trained; they count as the most harmful."""
    seconds: float
    """Of work that the trained ones took, summed over the workers."""
    index: str
    """Key of the artifact that lists them with their harms."""


class StartResult(Result):
    level: int
    kind: Literal["optimum", "uniform"]
    choices: Mapping[str, int]
    harm: float
    """The sum of its choices' harms, in nats; of those that were not measured, interpolated."""


class PlanResult(Result):
    starts: tuple[StartResult, ...]
    """Candidates known before the search to be worth a trial, in the order in which they are tried."""
    seconds: float

    def known(self, space: Space) -> list[Start]:
        """As a strategy takes them."""
        return [Start(space.candidate(one.choices), one.level, one.kind) for one in self.starts]


class ElasticResult(Result):
    key: str
    """Of the artifact that holds the shared weights."""
    steps: int
    """Of all workers together."""
    reused: bool
    """Whether an earlier job has trained them."""
    seconds: float


class LearnedResult(Result):
    """The widths learned for one level."""

    alive: Mapping[str, int]
    """Channels alive at the end of its training, by width site."""
    cost: Cost
    """Of those, in the limited metrics."""
    choices: Mapping[str, int]
    """The nearest candidate within the budget."""
    weights: str
    """Key of the artifact with the network to graft from."""


class WayResult(Result):
    """Where the learning stood: what of the cost in `metric` fell to each block, '' being what no width changes."""

    step: int
    strength: float
    """Of the regulariser."""
    metric: str
    blocks: Mapping[str, int]


class StructureResult(Result):
    levels: tuple[LearnedResult, ...]
    way: tuple[WayResult, ...]
    steps: int
    reused: bool
    """Whether an earlier job has learned them."""
    seconds: float

    def known(self, space: Space) -> list[Start]:
        """As a strategy takes them; a network of two levels once."""
        found: dict[str, Start] = {}
        for level, one in enumerate(self.levels):
            start = Start(space.candidate(one.choices), level, "learned")
            found.setdefault(start.candidate.key, start)
        return list(found.values())

    @property
    def weights(self) -> tuple[str, ...]:
        """One key a level."""
        return tuple(level.weights for level in self.levels)


class SearchResult(Result):
    finalists: tuple[str, ...]
    """Ids of the trials that may go on to long training, best first; with levels, those of all of them."""
    levels: tuple[tuple[str, ...], ...] = ()
    """The finalists of every level, best first; empty where there is but one."""
    hypervolume: tuple[float, ...] = ()
    """After each scored trial, in order of number; empty unless a front is looked for. `search.front` says of what."""
    repeats: Mapping[str, tuple[float, float]] = Field(default_factory=dict)
    """By trial its accuracy at the last rung, and that of the same training with another seed."""
    evidence: Evidence = Evidence()
    """How far the order of the trials can be trusted, as the search alone tells."""

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """One a level."""
        return self.levels or (self.finalists,)


class FinalistResult(Result):
    trial: str
    accuracy: float
    kl: float
    """On validation, after long training; KL to the teacher in nats."""
    cached: bool = False
    """Whether the same training had been done before, by this job or by another."""


class Winner(Result):
    trial: str
    accuracy: float
    """On the test set, which is opened here for the first time."""
    kl: float
    shots: Mapping[str, float] = Field(default_factory=dict)
    detection: Mapping[str, float] = Field(default_factory=dict)
    """Both as the teacher's."""


class FinalistsResult(Result):
    finalists: tuple[FinalistResult, ...]
    winner: str
    """Of a ladder, its loosest level's; so are its accuracy, kl, shots and detection, which are `Winner`'s."""
    accuracy: float
    kl: float
    shots: Mapping[str, float] = Field(default_factory=dict)
    detection: Mapping[str, float] = Field(default_factory=dict)
    winners: tuple[Winner, ...] = ()
    """One a level of a ladder, loosest first, or one a student of a front; empty for a job with one student."""
    floor: float | None = None
    """The least validation accuracy, 0..1, of a job that has one to keep."""
    hypervolume: float | None = None
    """Of the students of a front, on validation; None for a job that looks for none."""
    evidence: Evidence = Evidence()
    """The same as the search's, with what the finalists' long training tells of it."""

    @property
    def chosen(self) -> tuple[Winner, ...]:
        """One a student."""
        best = Winner(trial=self.winner, accuracy=self.accuracy, kl=self.kl, shots=self.shots, detection=self.detection)
        return self.winners or (best,)


class TimeResult(Result):
    """One measured metric of an exported student, both numbers in the metric's unit."""

    predicted: int
    """What the search went by."""
    measured: int
    """Of the exported file; where the limit is relative, what the measured ratio makes of the teacher's cost."""
    comparison: Comparison
    """The measurement itself: the student (`first`) and its teacher (`second`) in turns."""


class Exported(Result):
    """Costs are counted and measured on the exported network itself, not taken from the search."""

    trial: str
    cost: Cost
    bytes: int
    """Size of weights.safetensors."""
    deviation: Mapping[str, float]
    """Largest absolute difference of logits to the student's, by exported form."""
    times: Mapping[str, TimeResult] = Field(default_factory=dict)
    """By measured metric."""


class ExportResult(Exported):
    """Of a ladder, the student of its loosest level."""

    levels: tuple[Exported, ...] = ()
    """One a level of a ladder, loosest first; empty for a job without."""

    @property
    def students(self) -> tuple[Exported, ...]:
        """One a student."""
        return self.levels or (self,)


def student_folder(level: int, levels: int) -> str:
    """What the names of a student's files begin with: `student`, or of a ladder `student-1`, `student-2`, ..."""
    return "student" if levels == 1 else f"student-{level + 1}"
