"""What a network has scored once is not trained again."""

from __future__ import annotations

from typing import Any

import pytest

from search.spec import JobSpec
from tests.search.chains import Chain
from tests.workers.scripted import by_width, spec
from tests.workers.test_sessions import Bench
from workers.assignment import Assignment, Done, Outcome
from workers.finalists import FinalistsSession
from workers.finals import Everyone
from workers.memory import MemoryArtifacts
from workers.scores import Scores, keep

CHAIN = Chain()
SEARCH: dict[str, Any] = {"trials": 9, "rungs": [10, 30], "strategy": {"name": "random"}}


def bench(artifacts: MemoryArtifacts, **search: Any) -> Bench:
    made = Bench(spec(search=SEARCH | search))
    made.scores = Scores(artifacts, made.spec, CHAIN.space, "teacher", "digits")
    return made


def keeping(artifacts: MemoryArtifacts, assignment: Assignment) -> Outcome:
    """A worker that keeps what it comes to, as a real one does."""
    done = by_width(assignment)
    assert isinstance(done, Done)
    keep(artifacts, assignment.write, f"{assignment.choices} at {assignment.stop}".encode(), done)
    return done


def work(made: Bench) -> tuple[int, list[list[str]]]:
    """How many assignments search and finalists hand out, and the finalists by what they are."""
    artifacts = made.scores.artifacts
    assert isinstance(artifacts, MemoryArtifacts)
    session = made.session()
    given = made.work(session, lambda assignment: keeping(artifacts, assignment))
    finalists = session.conclude()
    final = FinalistsSession(made.claim, made.ledger, made.scores, made.spec, Everyone(finalists), made.watch)
    given += made.work(final, lambda assignment: keeping(artifacts, assignment))
    ranked, _ = final.conclude()
    assert len(ranked) == 2
    return len(given), [[trial.key for trial in group] for group in finalists]


def test_the_same_job_again_hands_nothing_out_and_comes_to_the_same_finalists() -> None:
    artifacts = MemoryArtifacts()
    first, second = bench(artifacts), bench(artifacts)
    walked, finalists = work(first)
    assert walked >= 9 + 3 + 6
    assert work(second) == (0, finalists)
    for before, after in zip(
        first.ledger.trials(first.claim.job_id), second.ledger.trials(second.claim.job_id), strict=True
    ):
        assert [(s.step, s.accuracy, s.kl) for s in after.scores] == [(s.step, s.accuracy, s.kl) for s in before.scores]
        assert not any(score.cached for score in before.scores)
        assert all(score.cached and score.seconds == 0 for score in after.scores)
    said = [event.data for event in second.ledger.events(second.claim.job_id) if event.kind == "FINALIST_SCORED"]
    assert [data["cached"] for data in said] == [True, True]


def test_a_longer_search_trains_only_what_is_new() -> None:
    artifacts = MemoryArtifacts()
    work(bench(artifacts))
    longer = bench(artifacts, trials=10)
    work(longer)
    trials = longer.ledger.trials(longer.claim.job_id)
    assert [trial.scores[0].cached for trial in trials] == [True] * 9 + [False]


@pytest.mark.parametrize("broken", ["checkpoint", "score"])
def test_what_is_not_whole_is_trained_again_and_mended(broken: str) -> None:
    artifacts = MemoryArtifacts()
    made = bench(artifacts)
    session = made.session()
    first = session.next()
    assert isinstance(first, Assignment)
    keeping(artifacts, first)
    found = made.scores.find(first.write)
    assert found is not None
    artifacts.put(first.write if broken == "checkpoint" else first.write.replace(".safetensors", ".json"), b"{")
    assert made.scores.find(first.write) is None
    keeping(artifacts, first)
    assert made.scores.find(first.write) == found


CHANGES: dict[str, dict[str, Any]] = {
    "another seed": {"search": {"seed": 1}},
    "another rung before it": {"search": {"rungs": [5, 30]}},
    "other views": {"search": {"views": 2}},
    "another recalibration": {"search": {"calibration_batches": 8}},
    "another schedule": {"search": {"training": {"learning_rate": 0.1}}},
    "another distiller": {"distill": {"name": "supervised"}},
    "a GPU": {"resources": {"gpus_per_trial": 1}},
}


def scores(job: JobSpec, **changes: str) -> Scores:
    names = {"teacher": "teacher", "dataset": "digits"} | changes
    return Scores(MemoryArtifacts(), job, CHAIN.space, **names)


@pytest.mark.parametrize("change", CHANGES)
def test_another_setting_has_another_key(change: str) -> None:
    document = spec(search=SEARCH).model_dump(mode="json")
    for part, values in CHANGES[change].items():
        document[part] |= values
    full = CHAIN.space.full().as_dict()
    usual, other = scores(spec(search=SEARCH)), scores(JobSpec.model_validate(document))
    assert usual.key(full, 1) != other.key(full, 1)
    assert usual.final_key(full, 1, 20) != other.final_key(full, 1, 20)


def test_another_teacher_dataset_donor_network_or_rung_has_another_key_and_other_work_has_not() -> None:
    job, full, least = spec(search=SEARCH), CHAIN.space.full().as_dict(), CHAIN.space.least().as_dict()
    usual = scores(job)
    keys = [
        usual.key(full, 1),
        usual.key(full, 0),
        usual.key(least, 1),
        usual.key(full, 1, seed=7),
        scores(job, teacher="another").key(full, 1),
        scores(job, dataset="another").key(full, 1),
        scores(job, donor="another").key(full, 1),
        usual.final_key(full, 1, 20),
        usual.final_key(full, 1, 40),
    ]
    assert len(set(keys)) == len(keys)
    more = spec(search=SEARCH | {"trials": 99, "strategy": {"name": "tpe"}}, budget={"params": "10%"}, priority=5)
    assert scores(more).key(full, 1) == usual.key(full, 1)
