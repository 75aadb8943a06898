"""What tenants may use, and whose turn it is, over both databases."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine, select, update

from search.errors import NotFound, UserError
from search.spec import JobSpec, read_spec
from service.store.accounts import SqlTenants
from service.store.engine import reading, writing
from service.store.jobs import SqlJobs
from service.store.ledger import SqlLedger
from service.store.record import SqlRecord
from service.store.tables import jobs, now, usage
from service.store.values import BeyondQuota, Caller, Quota, QuotaSpent, Scope
from workers.ports import Artifact, Claim, JobState, Phase

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start

LONG = 1000.0


def spec(priority: int = 0, **resources: float) -> JobSpec:
    return read_spec(
        {
            "teacher": {"name": "t"},
            "dataset": {"name": "d"},
            "budget": {"macs": "50%"},
            "priority": priority,
            "resources": resources,
        }
    )


class House:
    """Tenants by name, made when they are first spoken of."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.ledger = engine, SqlLedger(engine)
        self.tenants, self.record = SqlTenants(engine, "test"), SqlRecord(engine)

    def caller(self, name: str) -> Caller:
        self.tenants.create(name)
        return Caller(name, "test", Scope.ADMIN)

    def jobs(self, name: str) -> SqlJobs:
        return self.record.jobs(self.caller(name))

    def submit(self, name: str, wanted: JobSpec | None = None) -> str:
        return self.jobs(name).submit(wanted or spec())[0].id

    def limit(self, name: str, **limits: int | None) -> None:
        self.caller(name)
        self.tenants.limit(name, {Quota(quota): limit for quota, limit in limits.items()})

    def claim(self) -> Claim | None:
        return self.ledger.claim("driver", LONG)

    def given(self) -> str | None:
        """The tenant whose job was given out."""
        claim = self.claim()
        return None if claim is None else self.holder(claim)

    def holder(self, claim: Claim) -> str:
        with reading(self.engine) as connection:
            return str(connection.scalar(select(jobs.c.tenant).where(jobs.c.id == claim.job_id)))

    def used(self, name: str, quota: Quota) -> float:
        return self.record.account(self.caller(name)).usage()[quota].used

    def elapse(self, claim: Claim, seconds: float) -> None:
        """As if the job had been on lease for so long already."""
        with writing(self.engine) as connection:
            mine = jobs.c.id == claim.job_id
            [at] = connection.execute(select(jobs.c.charged_at).where(mine)).one()
            connection.execute(update(jobs).where(mine).values(charged_at=at - timedelta(seconds=seconds)))


@pytest.fixture
def house(engine: Engine) -> House:
    return House(engine)


class TestTurns:
    def test_a_tenant_that_floods_the_queue_does_not_keep_others_waiting(self, house: House) -> None:
        for _ in range(20):
            house.submit("flood", spec(priority=1000))
        house.submit("small")
        assert [house.given() for _ in range(4)] == ["flood", "small", "flood", "flood"]

    def test_with_one_place_tenants_take_turns_although_nothing_runs_when_one_is_chosen(self, house: House) -> None:
        for _ in range(4):
            house.submit("flood")
        house.submit("small")
        house.submit("small")
        served = []
        while (claim := house.claim()) is not None:
            served.append(house.holder(claim))
            house.ledger.close(claim, JobState.SUCCEEDED)
        assert served == ["flood", "small", "flood", "small", "flood", "flood"]

    def test_who_has_the_fewest_trials_going_comes_first(self, house: House) -> None:
        house.submit("broad", spec(concurrent_trials=9))
        for name in ("narrow", "narrow", "narrow", "broad"):
            house.submit(name, spec(concurrent_trials=4))
        assert [house.given() for _ in range(5)] == ["broad", "narrow", "narrow", "narrow", "broad"]

    def test_within_a_tenant_priority_then_age_decide(self, house: House) -> None:
        ids = [house.submit("one", spec(priority=priority)) for priority in (0, 5, 0, 9)]
        claims = [house.claim() for _ in range(4)]
        assert [claim and claim.job_id for claim in claims] == [ids[3], ids[1], ids[0], ids[2]]


class TestAtSubmission:
    def test_queued_jobs(self, house: House) -> None:
        house.limit("one", queued_jobs=2)
        first = house.submit("one")
        house.submit("one")
        with pytest.raises(QuotaSpent, match=r"limit 2, used 2") as caught:
            house.submit("one")
        assert caught.value.code == "QUOTA_QUEUED_JOBS"
        house.submit("two")
        house.jobs("one").request_cancel(first)
        house.submit("one")
        house.limit("one", queued_jobs=None)
        house.submit("one")

    def test_stored_bytes(self, house: House) -> None:
        house.limit("one", stored_bytes=100)
        house.submit("one")
        claim = house.claim()
        assert claim is not None
        house.ledger.keep(claim, "a", Artifact("jobs/1/a", 60, "0" * 64), "application/octet-stream")
        house.submit("one")
        house.ledger.keep(claim, "b", Artifact("jobs/1/b", 40, "0" * 64), "application/octet-stream")
        with pytest.raises(QuotaSpent) as caught:
            house.submit("one")
        assert caught.value.code == "QUOTA_STORED_BYTES"
        assert house.used("one", Quota.STORED_BYTES) == 100

    def test_seconds_of_the_day(self, house: House) -> None:
        house.limit("one", cpu_seconds_per_day=100, gpu_seconds_per_day=10)
        house.submit("one", spec(cpus_per_trial=2, concurrent_trials=3, gpus_per_trial=0.5))
        claim = house.claim()
        assert claim is not None
        house.elapse(claim, 10)
        house.ledger.renew(claim, LONG)
        assert house.used("one", Quota.CPU_SECONDS_PER_DAY) == pytest.approx(60, abs=12)
        house.submit("one")
        with pytest.raises(QuotaSpent) as caught:
            house.submit("one", spec(gpus_per_trial=1))
        assert caught.value.code == "QUOTA_GPU_SECONDS_PER_DAY"
        assert 0 < caught.value.retry_seconds <= 86_400
        house.elapse(claim, 10)
        house.ledger.close(claim, JobState.SUCCEEDED)
        with pytest.raises(QuotaSpent) as caught:
            house.submit("one")
        assert caught.value.code == "QUOTA_CPU_SECONDS_PER_DAY"
        with writing(house.engine) as connection:
            connection.execute(update(usage).values(day=usage.c.day - 1))
        house.submit("one")  # it was yesterday

    def test_a_job_that_could_never_be_given_out(self, house: House) -> None:
        house.limit("one", concurrent_trials=4)
        house.submit("one", spec(concurrent_trials=4))
        with pytest.raises(BeyondQuota) as caught:
            house.submit("one", spec(concurrent_trials=5))
        [error] = caught.value.errors
        assert (error.pointer, error.allowed) == ("/resources/concurrent_trials", ("4",))

    def test_as_many_at_once_as_there_is_room_for_and_no_more(self, house: House) -> None:
        house.limit("one", queued_jobs=5)

        def submit(_: int) -> bool:
            try:
                house.jobs("one").submit(spec())
            except QuotaSpent:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(submit, range(16))) == 5


class TestAtRun:
    def test_a_tenant_at_its_limit_is_passed_over_until_a_job_of_it_ends(self, house: House) -> None:
        house.limit("one", concurrent_trials=4)
        for _ in range(3):
            house.submit("one", spec(concurrent_trials=2))
        for _ in range(5):
            house.submit("two", spec(concurrent_trials=9))
        claims = [house.claim() for _ in range(5)]
        given = [house.holder(claim) for claim in claims if claim is not None]
        assert (given.count("one"), given.count("two")) == (2, 3)
        ended = next(claim for claim in claims if claim is not None and house.holder(claim) == "one")
        house.ledger.close(ended, JobState.SUCCEEDED)
        assert house.given() == "one"
        assert [house.given() for _ in range(3)] == ["two", "two", None]

    def test_two_dispatchers_do_not_both_fill_the_last_place(self, house: House) -> None:
        house.limit("one", concurrent_trials=6)
        for _ in range(12):
            house.submit("one", spec(concurrent_trials=2))
        with ThreadPoolExecutor(6) as pool:
            claims = list(pool.map(lambda _: house.claim(), range(12)))
        assert sum(claim is not None for claim in claims) == 3
        assert house.used("one", Quota.CONCURRENT_TRIALS) == 6

    def test_seconds_spent_keep_the_next_job_waiting_but_not_one_that_is_to_end(self, house: House) -> None:
        house.limit("one", cpu_seconds_per_day=1000)
        running, waiting = house.submit("one"), house.submit("one")
        claim = house.claim()
        assert claim is not None
        assert claim.job_id == running
        house.ledger.enter(claim, Phase.TEACHER)
        house.elapse(claim, 900)
        house.ledger.release(claim)
        assert house.used("one", Quota.CPU_SECONDS_PER_DAY) == pytest.approx(1800, abs=20)
        assert house.claim() is None, "neither it nor the other may go on today"
        house.jobs("one").request_cancel(running)
        assert house.claim() is None
        assert house.jobs("one").job(running).state is JobState.CANCELLED, "but it ends when its user wants it to"
        house.limit("one", cpu_seconds_per_day=None)
        assert (found := house.claim()) is not None
        assert found.job_id == waiting

    def test_a_lease_that_ran_out_is_charged_to_its_end_and_not_beyond(self, house: House) -> None:
        house.submit("one", spec(cpus_per_trial=1, concurrent_trials=1))
        claim = house.ledger.claim("driver", 0.2)
        assert claim is not None
        time.sleep(0.6)
        assert house.claim() is not None
        assert house.used("one", Quota.CPU_SECONDS_PER_DAY) == pytest.approx(0.2, abs=0.05)

    def test_what_a_tenant_without_limits_uses_is_on_record_too(self, house: House) -> None:
        house.submit("one")
        claim = house.claim()
        assert claim is not None
        for _ in range(3):
            house.elapse(claim, 5)
            house.ledger.renew(claim, LONG)
        house.elapse(claim, 5)
        house.ledger.close(claim, JobState.FAILED, "for the test")
        assert house.used("one", Quota.CPU_SECONDS_PER_DAY) == pytest.approx(40, abs=8)
        assert house.used("one", Quota.CONCURRENT_TRIALS) == 0


class TestTenants:
    def test_a_tenant_is_made_once_and_listed_by_name(self, house: House) -> None:
        assert house.tenants.create("zoo")[1]
        assert not house.tenants.create("zoo")[1]
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda _: house.tenants.create("ark")[1], range(8)))
        assert sum(made) == 1
        assert [tenant.name for tenant in house.tenants.tenants()] == ["ark", "default", "zoo"]
        [entry] = house.record.account(house.caller("zoo")).audit(limit=5)
        assert (entry.actor, entry.action, entry.object) == ("test", "tenants.create", "zoo")

    @pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a" * 64, "a b", "a/b", "é", "a\n"])
    def test_a_name_that_will_not_do(self, house: House, name: str) -> None:
        with pytest.raises(UserError, match="cannot be the name of a tenant"):
            house.tenants.create(name)

    def test_limits_of_nobody(self, house: House) -> None:
        with pytest.raises(NotFound):
            house.tenants.limit("nobody", {Quota.QUEUED_JOBS: 1})
        with pytest.raises(NotFound):
            house.tenants.holder_of("key_nobody")

    def test_other_limits_stay_and_each_change_is_in_the_audit(self, house: House) -> None:
        house.limit("one", queued_jobs=1, stored_bytes=2)
        house.limit("one", stored_bytes=3)
        house.limit("one")
        [tenant] = [found for found in house.tenants.tenants() if found.name == "one"]
        assert {quota: limit for quota, limit in tenant.limits.items() if limit is not None} == {
            Quota.QUEUED_JOBS: 1,
            Quota.STORED_BYTES: 3,
        }
        actions = [entry.action for entry in house.record.account(house.caller("one")).audit(limit=9)]
        assert actions == ["tenants.limits", "tenants.limits", "tenants.create"]


def test_a_key_that_nobody_has_and_the_clock_of_the_database(house: House) -> None:
    account = house.record.account(house.caller("one"))
    key, secret = account.create_key("brief", Scope.READ, 1)
    assert key.expires_at is not None
    assert key.expires_at - key.created_at == pytest.approx(timedelta(seconds=1), abs=timedelta(seconds=0.2))
    assert house.record.holder(secret) is not None
    assert house.record.holder(secret + "x") is None
    with reading(house.engine) as connection:
        while connection.execute(select(now())).scalar_one() <= key.expires_at:
            time.sleep(0.05)
    assert house.record.holder(secret) is None
    assert not house.record.has_keys()
    assert account.create_key("lasting", Scope.READ)[0].expires_at is None
    assert house.record.has_keys()
