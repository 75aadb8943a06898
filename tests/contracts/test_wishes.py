"""What users may ask of jobs on record, over every record there is: pauses, changes, repeats, and that they be gone."""

from __future__ import annotations

import pytest

from search.errors import IllegalTransition, NotFound, Outdated, StaleClaim
from search.spec import read_spec
from search.trial import State
from tests.contracts.test_ledger import (
    LONG,
    RUN_OUT,
    Record,
    claimed,
    kinds,
    ledger,
    running,
    score,
    searching,
    snapshot,
    spec,
    submitted,
)
from workers.ports import JobState, Phase, Wish

__all__ = ["ledger"]  # a fixture, used by its name

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start


class TestPauses:
    def test_a_paused_job_is_not_given_out_until_it_is_resumed(self, ledger: Record) -> None:
        job = submitted(ledger)
        paused = ledger.request_pause(job.id)
        assert (paused.state, paused.pause_requested, paused.leased, paused.revision) == (
            JobState.QUEUED,
            True,
            False,
            1,
        )
        before = snapshot(ledger, job.id)
        assert ledger.claim("tester", LONG) is None
        assert ledger.request_pause(job.id) == paused
        assert snapshot(ledger, job.id) == before
        assert ledger.resume(job.id).revision == 2
        assert ledger.resume(job.id).revision == 2
        assert claimed(ledger).job_id == job.id
        assert kinds(ledger, job.id) == ["JOB_QUEUED", "PAUSE_REQUESTED", "JOB_PAUSED", "JOB_RESUMED", "JOB_CLAIMED"]

    def test_a_driver_is_told_and_gives_back_what_it_had(self, ledger: Record) -> None:
        claim = searching(ledger)
        scored, started = running(ledger, claim, "a"), running(ledger, claim, "b")
        ledger.score_trial(claim, scored.id, score(0), last=False)
        ledger.request_pause(claim.job_id)
        assert ledger.renew(claim, LONG) is Wish.PAUSE
        assert ledger.job(claim.job_id).leased
        ledger.rest(claim)
        found = ledger.job(claim.job_id)
        assert (found.state, found.phase, found.leased, found.pause_requested) == (
            JobState.RUNNING,
            Phase.SEARCH,
            False,
            True,
        )
        again = next(trial for trial in ledger.trials(claim.job_id) if trial.id == started.id)
        assert (again.state, again.attempt) == (State.PENDING, 0), "as if it had not been started"
        before = snapshot(ledger, claim.job_id)
        ledger.rest(claim)
        assert snapshot(ledger, claim.job_id) == before
        ledger.resume(claim.job_id)
        following = claimed(ledger)
        assert (following.job_id, following.token) == (claim.job_id, claim.token + 1)
        with pytest.raises(StaleClaim):
            ledger.rest(claim)

    def test_a_last_beat_does_not_take_back_what_was_given_back(self, ledger: Record) -> None:
        """The heartbeat may beat once more while its driver leaves."""
        claim = searching(ledger)
        ledger.request_pause(claim.job_id)
        ledger.rest(claim)
        before = snapshot(ledger, claim.job_id)
        assert ledger.renew(claim, LONG) is Wish.PAUSE
        assert snapshot(ledger, claim.job_id) == before

    def test_pauses_are_no_fault_of_the_job(self, ledger: Record) -> None:
        job = submitted(ledger, resources={"attempts": 1})
        for _ in range(5):
            claim = claimed(ledger)
            ledger.request_pause(job.id)
            ledger.rest(claim)
            ledger.resume(job.id)
        assert claimed(ledger).job_id == job.id

    def test_a_driver_that_dies_before_it_heard_leaves_a_paused_job(self, ledger: Record) -> None:
        claim = searching(ledger, RUN_OUT)
        trial = running(ledger, claim)
        ledger.request_pause(claim.job_id)
        assert ledger.claim("tester", LONG) is None
        found = ledger.job(claim.job_id)
        assert (found.state, found.leased) == (JobState.RUNNING, False)
        assert kinds(ledger, claim.job_id)[-3:] == ["LEASE_EXPIRED", "TRIAL_RETURNED", "JOB_PAUSED"]
        with pytest.raises(StaleClaim):
            ledger.score_trial(claim, trial.id, score(0), last=True)

    def test_of_a_pause_and_an_end_the_end_counts(self, ledger: Record) -> None:
        claim = searching(ledger)
        ledger.request_pause(claim.job_id)
        ledger.request_cancel(claim.job_id)
        assert ledger.renew(claim, LONG) is Wish.CANCEL
        for ask in (ledger.request_pause, ledger.resume):
            with pytest.raises(IllegalTransition, match="being cancelled"):
                ask(claim.job_id)
        ledger.rest(claim)
        assert ledger.job(claim.job_id).state is JobState.CANCELLED

    def test_a_paused_job_is_cancelled_at_once(self, ledger: Record) -> None:
        claim = searching(ledger)
        ledger.request_pause(claim.job_id)
        ledger.rest(claim)
        assert ledger.request_cancel(claim.job_id).state is JobState.CANCELLED

    def test_what_has_ended_neither_pauses_nor_goes_on(self, ledger: Record) -> None:
        claim = searching(ledger)
        ledger.close(claim, JobState.SUCCEEDED)
        before = snapshot(ledger, claim.job_id)
        for ask in (ledger.request_pause, ledger.resume):
            with pytest.raises(IllegalTransition, match="SUCCEEDED"):
                ask(claim.job_id)
        assert snapshot(ledger, claim.job_id) == before


class TestChanges:
    def test_a_queued_job_may_become_another_in_what_is_open_to_change(self, ledger: Record) -> None:
        first, second = submitted(ledger), submitted(ledger)
        wanted = spec(labels={"team": "vision"}, priority=7, budget={"macs": "25%"}, search={"trials": 3})
        found = ledger.change(second.id, wanted, revision=0)
        assert (found.revision, read_spec(found.spec)) == (1, wanted)
        assert ledger.events(second.id)[-1].data["changes"]["/priority"] == {"from": 0, "to": 7}
        claim = claimed(ledger)
        assert (claim.job_id, read_spec(claim.spec)) == (second.id, wanted), "its priority counts"
        assert ledger.job(first.id).revision == 0

    def test_nothing_different_is_no_change(self, ledger: Record) -> None:
        job = submitted(ledger)
        before = snapshot(ledger, job.id)
        assert ledger.change(job.id, spec(), revision=0) == job
        assert snapshot(ledger, job.id) == before

    def test_who_decided_on_what_was_before_is_refused(self, ledger: Record) -> None:
        job = submitted(ledger)
        ledger.change(job.id, spec(priority=1), revision=0)
        before = snapshot(ledger, job.id)
        with pytest.raises(Outdated, match="revision 1"):
            ledger.change(job.id, spec(priority=2), revision=0)
        assert snapshot(ledger, job.id) == before

    def test_no_way_back(self, ledger: Record) -> None:
        claim = searching(ledger)

        def changed(**changes: object) -> None:
            ledger.change(claim.job_id, spec(**changes), revision=ledger.job(claim.job_id).revision)

        with pytest.raises(IllegalTransition, match="clone"):
            changed(budget={"macs": "60%"})
        with pytest.raises(IllegalTransition, match="only become more"):
            changed(search={"trials": 5})
        changed(search={"trials": 40})
        changed(search={"trials": 40}, priority=3)
        ledger.finish(claim, Phase.SEARCH, {"finalists": []})
        with pytest.raises(IllegalTransition, match="search of the job is over"):
            changed(search={"trials": 50}, priority=3)
        ledger.close(claim, JobState.FAILED, "why")
        with pytest.raises(IllegalTransition, match="only its labels"):
            changed(search={"trials": 40}, priority=4)
        changed(search={"trials": 40}, priority=3, labels={"kept": "yes"})
        assert ledger.job(claim.job_id).spec["labels"] == {"kept": "yes"}
        assert kinds(ledger, claim.job_id)[-2:] == ["JOB_FAILED", "JOB_CHANGED"]

    def test_a_search_is_not_finished_over_a_change_that_it_has_not_seen(self, ledger: Record) -> None:
        claim = searching(ledger)
        revision = ledger.job(claim.job_id).revision
        ledger.change(claim.job_id, spec(search={"trials": 40}), revision=revision)
        before = snapshot(ledger, claim.job_id)
        with pytest.raises(Outdated):
            ledger.finish(claim, Phase.SEARCH, {"finalists": []}, revision=revision)
        assert snapshot(ledger, claim.job_id) == before
        ledger.finish(claim, Phase.SEARCH, {"finalists": []}, revision=revision + 1)


class TestRepeats:
    def test_a_job_knows_what_it_was_made_from(self, ledger: Record) -> None:
        first = submitted(ledger)
        again, new = ledger.submit(spec(), idempotency_key="k", fingerprint="f", parent=first.id, action="jobs.clone")
        assert (new, again.parent, first.parent) == (True, first.id, None)
        assert ledger.submit(spec(), idempotency_key="k", fingerprint="f", parent=first.id) == (again, False)


class TestDeletion:
    def test_only_what_has_ended_is_taken_out(self, ledger: Record) -> None:
        job = submitted(ledger)
        with pytest.raises(IllegalTransition, match="cancel it first"):
            ledger.delete(job.id)

    def test_it_is_not_there_any_more_and_its_key_is_free(self, ledger: Record) -> None:
        job, _ = ledger.submit(spec(), idempotency_key="k", fingerprint="f")
        other = submitted(ledger)
        ended = ledger.request_cancel(job.id)
        assert ledger.delete(job.id) == ended
        for ask in (ledger.job, ledger.events, ledger.request_cancel, ledger.delete):
            with pytest.raises(NotFound):
                ask(job.id)
        assert [found.id for found in ledger.jobs(limit=5)] == [other.id]
        anew, new = ledger.submit(spec(), idempotency_key="k", fingerprint="f")
        assert new
        assert anew.id != job.id
