"""
What a driver asks of a worker, and what it hears back.

An assignment takes one candidate from one step to another. Everything here is plain JSON, so that nothing but text and
arrays travels between driver and workers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Assignment(Message):
    """Train `choices` from step `start` to step `stop` of a cosine over `cosine`, then score it."""

    trial: str
    number: int
    choices: dict[str, int]
    schedule: Literal["search", "finalists"]
    """Which part of the spec says how to train."""
    start: int
    stop: int
    cosine: tuple[int, int]
    seed: int
    """Of the batches' order."""
    read: str | None
    """Key of the checkpoint to go on from; None: the teacher's sliced weights."""
    fresh: bool
    """Take only the weights of that checkpoint, and begin a new training with them."""
    write: str
    """Key for the checkpoint at `stop`; its score is kept beside it."""


class Progress(Message):
    kind: Literal["progress"] = "progress"
    step: int
    loss: float


class Done(Message):
    """The candidate's score on validation at step `stop`; its checkpoint and score are kept."""

    kind: Literal["done"] = "done"
    step: int
    accuracy: float
    kl: float
    seconds: float
    worker: str | None = None
    """The host and the process that worked it out; None for a score that was known."""


class Failed(Message):
    """The candidate's own fault: trying again would fail again."""

    kind: Literal["failed"] = "failed"
    code: str
    message: str


class Lost(Message):
    """The machine's fault: the same assignment may be given out again."""

    kind: Literal["lost"] = "lost"
    message: str


Outcome = Done | Failed | Lost
Heard = Annotated[Progress | Done | Failed | Lost, Field(discriminator="kind")]

heard: TypeAdapter[Progress | Done | Failed | Lost] = TypeAdapter(Heard)
