"""What has happened to a job, told in numbered events. A client that has seen number n asks for those after n."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """
    The events a ledger writes by itself. A driver adds kinds of its own with `Ledger.note`, such as `PROGRESS`.

    Events of a trial carry `trial` (its id) and `number`; those that end something carry `reason`.
    """

    JOB_QUEUED = "JOB_QUEUED"
    JOB_CLAIMED = "JOB_CLAIMED"
    """`claim`: how often the job has been claimed, this time included."""
    LEASE_EXPIRED = "LEASE_EXPIRED"
    PHASE_ENTERED = "PHASE_ENTERED"
    """`phase`."""
    PHASE_FINISHED = "PHASE_FINISHED"
    """`phase`, `result`."""
    TRIAL_PROPOSED = "TRIAL_PROPOSED"
    """`choices`, `cost`."""
    TRIAL_STARTED = "TRIAL_STARTED"
    """`rung`, `attempt`."""
    TRIAL_SCORED = "TRIAL_SCORED"
    """`rung`, `step`, `accuracy`, `kl`, `cached`, `last`; `worker`: where it was worked out, null if it was known."""
    TRIAL_RETURNED = "TRIAL_RETURNED"
    TRIAL_STOPPED = "TRIAL_STOPPED"
    TRIAL_FAILED = "TRIAL_FAILED"
    TRIAL_CANCELLED = "TRIAL_CANCELLED"
    ARTIFACT_KEPT = "ARTIFACT_KEPT"
    """`name`, `bytes`, `sha256`."""
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    PAUSE_REQUESTED = "PAUSE_REQUESTED"
    JOB_PAUSED = "JOB_PAUSED"
    """No driver has it any more."""
    JOB_RESUMED = "JOB_RESUMED"
    JOB_CHANGED = "JOB_CHANGED"
    """`changes`: what it was and what it is, by pointer into the spec."""
    JOB_SUCCEEDED = "JOB_SUCCEEDED"
    JOB_FAILED = "JOB_FAILED"
    JOB_CANCELLED = "JOB_CANCELLED"


@dataclass(frozen=True, slots=True)
class Event:
    """`seq` counts 1, 2, 3, ... within its job, without gaps. `data` is JSON. `at` is UTC by the ledger's clock."""

    seq: int
    kind: str
    data: Mapping[str, Any]
    at: datetime
