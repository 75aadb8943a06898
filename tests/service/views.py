"""The views of a record in memory, in plain Python: what those in SQL are held to, and tests of routes use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cmp_to_key
from typing import Any

from search.trial import Score, Trial
from service.filters import By, Path, Value, holds
from service.store.values import Listing, Page
from workers import rules
from workers.events import Event
from workers.memory import MemoryLedger
from workers.ports import JobRecord, LoggedLine
from workers.standings import Standing


class MemoryViews:
    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger = ledger

    def jobs(self, listing: Listing) -> Page[tuple[JobRecord, Standing]]:
        page = paged(self._ledger.jobs(limit=10**6), listing, job_field)
        return Page(list(zip(page.items, self._ledger.standings(page.items), strict=True)), page.after)

    def trials(self, job_id: str, listing: Listing) -> Page[Trial]:
        return paged(self._ledger.trials(job_id), listing, trial_field)

    def trial(self, job_id: str, trial_id: str) -> Trial:
        for trial in self._ledger.trials(job_id):
            if trial.id == trial_id:
                return trial
        raise rules.no_such_trial(job_id, trial_id)

    def scored(self, job_id: str, fields: Sequence[Path], rung: int | None = None) -> Sequence[tuple[Any, ...]]:
        return [
            tuple(trial.choices if field == ("choices",) else trial_field(trial, field, at=rung) for field in fields)
            for trial in self._ledger.trials(job_id)
            if trial.rung > (rung or 0)
        ]

    def told(self, job_id: str, kinds: Sequence[str], *, number: int | None = None) -> Sequence[Event]:
        return [
            event
            for event in self._ledger.events(job_id, limit=10**9)
            if event.kind in kinds and (number is None or event.data.get("trial") == number)
        ]

    def logs(self, job_id: str, **options: Any) -> Sequence[LoggedLine]:
        return self._ledger.logs(job_id, **options)


def job_field(record: JobRecord, field: Path) -> Value:
    match field:
        case ("labels", name):
            found: Value = record.spec["labels"].get(name)
        case ("teacher",) | ("dataset",):
            found = record.spec[field[0]]["name"]
        case ("strategy",):
            found = record.spec["search"]["strategy"]["name"]
        case ("priority",):
            found = record.spec["priority"]
        case _:
            found = getattr(record, field[0])
    return found


def trial_field(trial: Trial, field: Path, *, at: int | None = None) -> Value:
    match field:
        case ("cost" | "choices" as family, name):
            found: Value = getattr(trial, family).get(name)
            return found
        case ("rung" | "step" | "accuracy" | "kl" | "seconds" | "cached" as name,):
            score: Score | None = trial.score if at is None else trial.scores[at]
            return None if score is None else getattr(score, name)
    return getattr(trial, field[0])  # type: ignore[no-any-return]


def paged(rows: Sequence[Any], listing: Listing, field_of: Callable[[Any, Path], Value]) -> Page[Any]:
    where = listing.where
    wanted = [row for row in rows if where is None or holds(where, lambda field: field_of(row, field))]  # noqa: B023
    place = cmp_to_key(lambda one, other: _compared(one, other, listing.order))
    keyed = sorted(
        ((tuple(field_of(row, by.field) for by in listing.order), row) for row in wanted),
        key=lambda pair: place(pair[0]),
    )
    if listing.after is not None:
        keyed = [(key, row) for key, row in keyed if _compared(key, listing.after, listing.order) > 0]
    page = keyed[: listing.limit]
    return Page([row for _, row in page], page[-1][0] if len(keyed) > len(page) else None)


def _compared(one: tuple[Any, ...], other: tuple[Any, ...], order: Sequence[By]) -> int:
    for mine, theirs, (_, falling) in zip(one, other, order, strict=True):
        if mine == theirs:
            continue
        if mine is None or theirs is None:
            return 1 if mine is None else -1
        return -1 if (mine > theirs) == falling else 1
    return 0
