"""A trial: one candidate being scored, from its proposal to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """
    `PENDING` no worker holds it: new, or scored at a rung and waiting for promotion · `RUNNING` a worker holds it ·
    `COMPLETED` scored at the last rung · `STOPPED` not promoted; its partial scores stay ·
    `FAILED` the candidate's own fault, or too many dead machines · `CANCELLED` the job was.
    """

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        return self not in (State.PENDING, State.RUNNING)


@dataclass(frozen=True, slots=True)
class Score:
    """
    How a network did on the validation set at `step`. `kl` is the mean KL(teacher || network), T = 1, in nats, and 0
    where there is no teacher, so that accuracy alone decides.
    """

    rung: int
    step: int
    accuracy: float
    kl: float
    seconds: float
    """Wall time of the assignment that ended in this score; 0 for one that was known."""
    cached: bool = False
    """Known before: an identical network was scored in an identical setting, by this job or by another."""

    @property
    def rank(self) -> tuple[float, float]:
        """
        Larger is better: accuracy first, then nearness to the teacher. Untrained, the nearness first: it foretells
        the final accuracy, of which many untrained networks show nothing yet.
        """
        return (self.accuracy, -self.kl) if self.step else (-self.kl, self.accuracy)


@dataclass(frozen=True, slots=True)
class Trial:
    """
    One candidate in one job.

    `origin` is what the strategy proposed before projection (choices by site), so that its sampler can be told its own
    proposal; `choices` is what was trained. `scores` has one entry per rung reached, in order.
    """

    id: str
    number: int
    key: str
    choices: Mapping[str, int]
    origin: Mapping[str, int]
    cost: Mapping[str, int]
    state: State = State.PENDING
    attempt: int = 0
    """How many times a worker has been given it since its last score."""
    reason: str = ""
    scores: tuple[Score, ...] = ()
    extra: Mapping[str, Any] | None = None
    """What the strategy wants back at a replay, such as a sampler's own notes; JSON."""

    @property
    def rung(self) -> int:
        """The next rung to be reached: the number of scores it has."""
        return len(self.scores)

    @property
    def score(self) -> Score | None:
        return self.scores[-1] if self.scores else None
