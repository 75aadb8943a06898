"""What is looked at, over both databases: the same as in plain Python, by few statements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, update

from search.errors import NotFound
from search.spec import read_spec
from search.trial import Trial
from service.filters import TRIALS, By, Comparison, Operator, settled
from service.store.engine import reading, writing
from service.store.jobs import SqlJobs
from service.store.record import SqlRecord
from service.store.tables import standings
from service.store.values import Caller, Listing, Scope
from tests.contracts.test_ledger import running, score, searching
from tests.databases import NEWEST_FIRST, OPERATOR, WholeLedger
from tests.service.rows import put_jobs, put_trials
from tests.service.views import MemoryViews
from workers.ports import JobState, Phase
from workers.standings import Standing, standing_of

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start


@contextmanager
def counting(engine: Engine) -> Iterator[list[str]]:
    """The statements that are sent meanwhile, but those that begin transactions."""
    sent: list[str] = []

    def before(_c: object, _u: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):
            sent.append(statement)

    event.listen(engine, "before_cursor_execute", before)
    yield sent
    event.remove(engine, "before_cursor_execute", before)


def without_trials(standing: Standing) -> tuple[object, ...]:
    return standing.counts, standing.promoted, standing.known, standing.settled, standing.best


def test_standings_in_sql_are_those_in_plain_python(engine: Engine) -> None:
    ids = put_jobs(engine, 12)
    for seed, job_id in enumerate(ids[:-1]):
        put_trials(engine, job_id, 3 * seed, seed=seed) if seed else None
    ledger, record = WholeLedger(engine), SqlRecord(engine)
    page = record.views(OPERATOR).jobs(Listing(NEWEST_FIRST, 100))
    assert sorted(found.id for found, _ in page.items) == ids
    for found, standing in page.items:
        assert without_trials(standing) == without_trials(standing_of(ledger.trials(found.id)))
    records = [found for found, _ in page.items]
    assert SqlJobs(engine, OPERATOR).standings(records) == [standing for _, standing in page.items]


def test_a_list_asks_as_often_for_many_jobs_as_for_one(engine: Engine) -> None:
    for job_id in put_jobs(engine, 20):
        put_trials(engine, job_id, 10)
    views = SqlRecord(engine).views(OPERATOR)
    sent = {}
    for limit in (1, 20):
        with counting(engine) as statements:
            assert len(views.jobs(Listing(NEWEST_FIRST, limit)).items) == limit
        sent[limit] = len(statements)
    assert sent[1] == sent[20] <= 8


def test_what_has_ended_is_read_once_until_its_user_changes_it(engine: Engine) -> None:
    for job_id in put_jobs(engine, 12):
        put_trials(engine, job_id, 3)
    record = SqlRecord(engine)
    first = record.views(OPERATOR).jobs(Listing(NEWEST_FIRST, 20)).items
    assert record.views(OPERATOR).jobs(Listing(NEWEST_FIRST, 20)).items == first
    found = next(found for found, _ in first if found.state is JobState.SUCCEEDED)
    before = read_spec(found.spec)
    renamed = before.model_copy(update={"labels": {"kept": "yes"}})
    record.jobs(OPERATOR).change(found.id, renamed, revision=found.revision)
    again = {found.id: found for found, _ in record.views(OPERATOR).jobs(Listing(NEWEST_FIRST, 20)).items}
    assert again[found.id].spec["labels"] == {"kept": "yes"}
    this = Listing(NEWEST_FIRST, 20, where=Comparison(("id",), Operator.EQUAL, found.id))
    with counting(engine) as statements:
        assert record.views(OPERATOR).jobs(this).items[0][0] == again[found.id]
    assert len(statements) == 1, "its place in the list"


def test_the_trials_of_a_job_that_goes_on_are_counted_again_after_its_next_event(engine: Engine) -> None:
    ledger, record = WholeLedger(engine), SqlRecord(engine)
    claim = searching(ledger)
    trial = running(ledger, claim)

    def listed() -> Standing:
        with counting(engine) as statements:
            [(found, standing)] = record.views(OPERATOR).jobs(Listing(NEWEST_FIRST, 5)).items
        asked.append(len(statements))
        assert found == ledger.job(claim.job_id)
        assert without_trials(standing) == without_trials(standing_of(ledger.trials(claim.job_id)))
        return standing

    asked: list[int] = []
    assert listed() == listed()
    ledger.renew(claim, 60)
    listed()
    ledger.score_trial(claim, trial.id, score(0), last=False)
    assert listed().best is not None
    assert asked[0] == asked[3] > asked[1] == asked[2]


def ended(ledger: WholeLedger, **changes: Any) -> str:
    """A job with a trial that has no score and another, `a`, that became its student."""
    claim = searching(ledger)
    running(ledger, claim, "other")
    trial = running(ledger, claim)
    ledger.score_trial(claim, trial.id, score(0), last=False)
    ledger.enter(claim, Phase.FINALISTS)
    reached = {"accuracy": 0.5, "kl": 0.25}
    result = {"finalists": [{"trial": trial.id, **reached}], "winner": trial.id, **reached}
    ledger.finish(claim, Phase.FINALISTS, result | changes)
    ledger.close(claim, JobState.SUCCEEDED)
    return claim.job_id


def test_the_trials_of_a_job_that_has_ended_are_never_counted_again(engine: Engine) -> None:
    ledger = WholeLedger(engine)
    job_id = ended(ledger)
    with counting(engine) as statements:
        [(_, standing)] = SqlRecord(engine).views(OPERATOR).jobs(Listing(NEWEST_FIRST, 5)).items
    assert not [one for one in statements if "FROM trials" in one or "FROM scores" in one]
    plain = standing_of(ledger.trials(job_id))
    assert standing == replace(plain, trials={one: plain.trials[one] for one in standing.trials})
    assert [one.key for one in ledger.trials(job_id) if one.id in standing.trials] == ["a"]


@pytest.mark.parametrize(
    "document", [{"counts": {"PENDING": 0}}, {"counts": {"ASLEEP": 1}}], ids=["of an older version", "of a newer one"]
)
def test_what_another_version_kept_of_a_job_is_counted_by_this_one(engine: Engine, document: dict[str, Any]) -> None:
    ledger = WholeLedger(engine)
    job_id = ended(ledger)
    with writing(engine) as connection:
        connection.execute(update(standings).where(standings.c.job_id == job_id).values(document=document))
    [standing] = SqlJobs(engine, OPERATOR).standings([ledger.job(job_id)])
    assert without_trials(standing) == without_trials(standing_of(ledger.trials(job_id)))


def test_a_job_ends_whatever_its_phases_came_to(engine: Engine) -> None:
    """Results of another version, which this one cannot read."""
    ledger = WholeLedger(engine)
    job_id = ended(ledger, winner=None)
    assert ledger.job(job_id).state is JobState.SUCCEEDED
    with reading(engine) as connection:
        assert connection.execute(select(standings)).all() == []


def test_a_page_of_trials_reads_that_page(engine: Engine) -> None:
    [job_id] = put_jobs(engine, 1)
    ids = put_trials(engine, job_id, 60)
    views, ledger = SqlRecord(engine).views(OPERATOR), WholeLedger(engine)
    order = settled((By(("accuracy",), True),), TRIALS)
    with counting(engine) as statements:
        page = views.trials(job_id, Listing(order, 7))
    assert len(statements) <= 4
    with counting(engine) as statements:
        assert views.trial(job_id, ids[7]).number == 7
    assert len(statements) <= 3
    known = {trial.id: trial for trial in ledger.trials(job_id)}
    assert [known[trial.id] for trial in page.items] == list(page.items)
    with pytest.raises(NotFound):
        views.trial(put_jobs(engine, 1, seed=1)[0], ids[0])


def test_what_a_picture_needs_is_what_the_trials_say(engine: Engine) -> None:
    [job_id] = put_jobs(engine, 1)
    put_trials(engine, job_id, 40)
    views, kept = SqlRecord(engine).views(OPERATOR), WholeLedger(engine).trials(job_id)

    class Kept:
        def trials(self, _: str) -> list[Trial]:
            return list(kept)

    plain = MemoryViews(Kept())  # type: ignore[arg-type]
    fields = [("number",), ("state",), ("rung",), ("accuracy",), ("cost", "macs"), ("choices",)]
    for rung in (None, 0, 1, 2, 3):
        found = views.scored(job_id, fields, rung)
        assert found == plain.scored(job_id, fields, rung)
        assert bool(found) == (rung != 3)


def test_views_are_of_ones_own(engine: Engine) -> None:
    [job_id] = put_jobs(engine, 1)
    [trial_id] = put_trials(engine, job_id, 1)
    strange = SqlRecord(engine).views(Caller("another", "test", Scope.ADMIN))
    listing = Listing(settled((), TRIALS), 5)
    assert strange.jobs(Listing(NEWEST_FIRST, 5)).items == []
    for look in (
        lambda: strange.trials(job_id, listing),
        lambda: strange.trial(job_id, trial_id),
        lambda: strange.scored(job_id, [("number",)]),
        lambda: strange.told(job_id, ["PROGRESS"]),
    ):
        with pytest.raises(NotFound):
            look()
