"""What each finished phase leaves in the ledger. Written by the driver, read by whoever shows a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

Cost = Mapping[str, int]


class Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TeacherResult(Result):
    """`accuracy` is on the test set, `validation_accuracy` on the set the search looks at; both 0..1."""

    name: str
    key: str
    source: Literal["trained", "kept", "weights"]
    """Trained by this job, found among those kept from earlier jobs, or loaded from the file in the spec."""
    weights: str
    """Key of the artifact that holds its state dict."""
    accuracy: float
    validation_accuracy: float


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
    """The budget, worked out: the largest whole number allowed of each metric."""


class SearchResult(Result):
    finalists: tuple[str, ...]
    """Ids of the trials that go on to long training, best first."""


class FinalistResult(Result):
    trial: str
    accuracy: float
    kl: float
    """On validation, after long training; KL to the teacher in nats."""


class FinalistsResult(Result):
    finalists: tuple[FinalistResult, ...]
    winner: str
    accuracy: float
    """Of the winner on the test set, which is opened here for the first time."""
    kl: float


class ExportResult(Result):
    """Costs are counted on the exported network itself, not taken from the search."""

    trial: str
    cost: Cost
    bytes: int
    """Size of weights.safetensors."""
    deviation: Mapping[str, float]
    """Largest absolute difference of logits to the student's, by exported form."""
