"""Curves, fronts, effects, timelines and logs: what is sent is what is on record, and never more than can be drawn."""

from __future__ import annotations

import itertools
import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from search.front import fronts
from search.trial import State
from service.pictures import MOST_POINTS, Seen, curve, harms_of, pareto, sensitivity, thinned
from service.timeline import timeline
from tests.service.rows import BEGAN
from tests.service.served import (
    claimed,
    client_of,
    finish_phase,
    make_app,
    searched,
    submitted,
    succeeded,
    taught,
    trial,
)
from workers.events import Event
from workers.memory import MemoryArtifacts, MemoryLedger
from workers.ports import JobRecord, Level, Line, Phase


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def artifacts() -> MemoryArtifacts:
    return MemoryArtifacts()


@pytest.fixture
def http(tmp_path: Path, ledger: MemoryLedger, artifacts: MemoryArtifacts) -> TestClient:
    return client_of(make_app(tmp_path, ledger, artifacts))


def record_of(ledger: MemoryLedger) -> JobRecord:
    submitted(ledger)
    claim = claimed(ledger)
    taught(ledger, claim)
    return ledger.job(claim.job_id)


RECORD = record_of(MemoryLedger())


def test_the_curve_of_a_finalist(http: TestClient, ledger: MemoryLedger, artifacts: MemoryArtifacts) -> None:
    job_id = succeeded(ledger, artifacts)
    first, second = ledger.trials(job_id)
    found = http.get(f"/v1/jobs/{job_id}/trials/{second.id}/curve").json()
    assert [(score["step"], score["accuracy"]) for score in found["scores"]] == [(40, 0.6), (120, 0.55)]
    steps = ledger.job(job_id).spec["finalists"]["steps"]
    assert found["final"] == {"steps": steps, "accuracy": 0.88, "kl": 0.12}
    other = http.get(f"/v1/jobs/{job_id}/trials/{first.id}/curve").json()
    assert (other["number"], other["state"], other["final"], other["readings"]) == (0, "CANCELLED", None, [])
    assert http.get(f"/v1/jobs/{job_id}/trials/trial_{'0' * 26}/curve").status_code == 404
    assert http.get(f"/v1/jobs/{job_id}/trials/x/curve").status_code == 404


def test_a_curve_has_what_was_told_of_its_trial_alone(http: TestClient, ledger: MemoryLedger) -> None:
    submitted(ledger)
    claim = claimed(ledger)
    opened = [ledger.open_trial(claim, trial(number)) for number in range(2)]
    for step, told in ((10, {"loss": 0.7}), (20, {})):
        ledger.note(claim, "PROGRESS", {"phase": "search", "trial": 1, "step": step, "of": 40, **told})
        ledger.note(claim, "PROGRESS", {"phase": "search", "trial": 0, "step": 99, "of": 40})
    ledger.note(claim, "PROGRESS", {"phase": "teacher", "done": 1, "total": 2})
    found = http.get(f"/v1/jobs/{claim.job_id}/trials/{opened[1].id}/curve").json()
    assert [(one["step"], one["loss"]) for one in found["readings"]] == [(10, 0.7), (20, None)]


def test_a_long_curve_is_thinned_out_evenly() -> None:
    told = [Event(at, "PROGRESS", {"step": at, "loss": 1 / at}, BEGAN + timedelta(seconds=at)) for at in range(1, 9001)]
    found = curve(trial(0), told, RECORD).readings
    assert len(found) == MOST_POINTS
    assert (found[0].step, found[-1].step) == (1, 9000)
    gaps = {after.step - before.step for before, after in itertools.pairwise(found)}
    assert gaps <= {4, 5}
    assert thinned([1, 2, 3], 3) == [1, 2, 3]


PLANES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


@given(
    PLANES, st.sampled_from([("macs", "accuracy"), ("macs", "kl"), ("throughput", "accuracy"), ("accuracy", "macs")])
)
def test_the_front_is_what_sorting_by_fronts_says(places: list[tuple[int, int]], names: tuple[str, str]) -> None:
    seen = [Seen(f"t{at}", at, State.COMPLETED, 0, float(x), float(y)) for at, (x, y) in enumerate(places)]
    found = pareto(RECORD, seen, *names, None)
    signs = [-1.0 if name in found.more_is_better else 1.0 for name in names]
    expected = np.flatnonzero(fronts(np.array(places, dtype=np.float64) * signs) == 0).tolist()
    assert [point.number for point in found.points if point.front] == expected
    assert (found.total, found.front, len(found.points)) == (len(places), len(expected), len(places))


def test_a_picture_of_many_trials_has_the_whole_front_and_a_sample() -> None:
    draw = random.Random(0)
    seen = [
        Seen(f"t{at}", at, draw.choice(list(State)), 0, draw.random() if at % 7 else None, draw.random())
        for at in range(10_000)
    ]
    found = pareto(RECORD, seen, "macs", "accuracy", None)
    able = [one for one in seen if one.x is not None and one.state is not State.FAILED]
    assert (found.total, len(found.points)) == (len(able), MOST_POINTS)
    assert sum(point.front for point in found.points) == found.front < 100
    assert [point.number for point in found.points] == sorted({point.number for point in found.points})
    everything = [Seen(f"t{at}", at, State.COMPLETED, 0, at, at) for at in range(5000)]
    crowded = pareto(RECORD, everything, "macs", "accuracy", None)
    assert (crowded.front, len(crowded.points)) == (5000, MOST_POINTS // 2)


def test_accuracy_against_cost_over_http(http: TestClient, ledger: MemoryLedger, artifacts: MemoryArtifacts) -> None:
    job_id = succeeded(ledger, artifacts)
    found = http.get(f"/v1/jobs/{job_id}/pareto").json()
    assert [(point["number"], point["rung"], point["y"], point["front"]) for point in found["points"]] == [
        (0, 0, 0.5, False),
        (1, 1, 0.55, True),
    ]
    assert (found["teacher"], found["limits"], found["floor"]) == ({"x": 1000, "y": 0.92}, [500], None)
    first = http.get(f"/v1/jobs/{job_id}/pareto", params={"x": "params", "y": "kl", "rung": 0}).json()
    assert [(point["rung"], point["x"], point["y"]) for point in first["points"]] == [(0, 60, 0.3), (0, 60, 0.3)]
    assert all(point["front"] for point in first["points"]), "equal ones beat neither"
    for params, pointer in (({"x": "mac"}, "/x"), ({"y": "x' OR 1=1"}, "/y"), ({"rung": -1}, "/rung")):
        answer = http.get(f"/v1/jobs/{job_id}/pareto", params=params)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
    assert 'did you mean "macs"?' in http.get(f"/v1/jobs/{job_id}/pareto?x=mac").text.replace('\\"', '"')
    queued = submitted(ledger)
    assert http.get(f"/v1/jobs/{queued}/pareto?x=latency").json()["points"] == []


def test_effects_are_means_with_intervals_that_hold_them() -> None:
    scored = [({"a.width": 4, "keep": at % 2}, accuracy) for at, accuracy in enumerate((0.5, 0.7, 0.6))]
    found = sensitivity(0, scored, {("a.width", 2): 0.25, ("a.width", 4): None})
    assert (found.trials, found.library) == (3, True)
    width, keep = found.sites
    assert (width.site, width.block, keep.block) == ("a.width", "a", "keep")
    narrow, wide = width.choices
    assert (narrow.choice, narrow.trials, narrow.accuracy, narrow.low, narrow.harm) == (2, 0, None, None, 0.25)
    assert (wide.choice, wide.trials, wide.harm) == (4, 3, None)
    assert wide.accuracy == pytest.approx(0.6)
    assert wide.low is not None
    assert wide.high is not None
    assert (wide.low, wide.high) == pytest.approx((0.3516, 0.8484), abs=1e-4)  # 4.3027 * 0.1 / sqrt(3), from a table
    assert width.spread is None
    assert keep.spread == pytest.approx(0.15)
    assert [(one.trials, one.low) for one in keep.choices] == [(2, pytest.approx(-0.0853, abs=1e-4)), (1, None)]


def test_sensitivity_over_http(http: TestClient, ledger: MemoryLedger, artifacts: MemoryArtifacts) -> None:
    submitted(ledger)
    claim = claimed(ledger)
    taught(ledger, claim)
    index = {"shelved": [{"site": "a", "choice": 1, "harm": 0.125, "seconds": 1.0}]}
    artifacts.put("libraries/index.json", json.dumps(index).encode())
    library = {"entries": 1, "reused": 0, "trained": 1, "failed": 0, "seconds": 1.0, "index": "libraries/index.json"}
    finish_phase(ledger, claim, Phase.LIBRARY, library)
    searched(ledger, claim)
    found = http.get(f"/v1/jobs/{claim.job_id}/sensitivity").json()
    [site] = found["sites"]
    assert [(one["choice"], one["trials"], one["accuracy"], one["harm"]) for one in site["choices"]] == [
        (0, 1, 0.5, None),
        (1, 1, 0.6, 0.125),
    ]
    later = http.get(f"/v1/jobs/{claim.job_id}/sensitivity?rung=1").json()
    assert (later["trials"], later["rung"]) == (1, 1)
    assert harms_of(json.dumps(index).encode()) == {("a", 1): 0.125}


def told(*words: tuple[int, str, str, dict[str, Any]]) -> list[Event]:
    return [
        Event(seq, kind, {"trial": name, "number": int(name[1:]), **data}, BEGAN + timedelta(seconds=at))
        for seq, (at, kind, name, data) in enumerate(words, start=1)
    ]


BEGUN = {"rung": 0, "attempt": 1}


def test_intervals_know_how_they_ended_and_where_they_were() -> None:
    events = told(
        (0, "TRIAL_STARTED", "t0", BEGUN),
        (0, "TRIAL_STARTED", "t1", BEGUN),
        (2, "TRIAL_SCORED", "t0", {"last": False, "worker": "a:1"}),
        (2, "TRIAL_STARTED", "t2", BEGUN),
        (3, "TRIAL_RETURNED", "t1", {"reason": "the worker died"}),
        (3, "TRIAL_STARTED", "t1", BEGUN | {"attempt": 2}),
        (4, "TRIAL_SCORED", "t2", {"last": False, "worker": "a:1"}),
        (5, "TRIAL_FAILED", "t1", {"reason": "NaN"}),
        (6, "TRIAL_STARTED", "t0", BEGUN | {"rung": 1}),
        (6, "TRIAL_SCORED", "t0", {"last": True, "cached": True, "worker": None}),
        (7, "TRIAL_STARTED", "t3", BEGUN),
        (8, "TRIAL_STOPPED", "t2", {"reason": "not promoted"}),
        (9, "TRIAL_CANCELLED", "t4", {"reason": "never begun"}),
    )
    found = timeline(RECORD, events, after=0, limit=100)
    assert [(one.number, one.rung, one.attempt, one.outcome, one.lane) for one in found.intervals] == [
        (0, 0, 1, "SCORED", 0),
        (1, 0, 1, "RETURNED", 1),
        (2, 0, 1, "STOPPED", 0),
        (1, 0, 2, "FAILED", 1),
        (0, 1, 1, "COMPLETED", 1),
        (3, 0, 1, None, 1),
    ]
    assert [lane.worker for lane in found.lanes] == ["a:1", None]
    assert [one.cached for one in found.intervals] == [False] * 4 + [True, False]
    assert found.intervals[-1].ended_at is None
    assert [station.phase for station in found.phases] == ["teacher", "survey"]
    page = timeline(RECORD, events, after=found.intervals[1].seq, limit=2)
    assert [one.number for one in page.intervals] == [2, 1]
    assert (page.total, page.next_after, page.lanes) == (6, page.intervals[-1].seq, found.lanes)
    assert timeline(RECORD, events, after=99, limit=2).next_after == 99


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=30))
def test_intervals_without_a_worker_are_packed_and_never_overlap(spans: list[tuple[int, int]]) -> None:
    words = []
    for at, (begin, length) in enumerate(spans):
        words.append((begin, 1, at, "TRIAL_STARTED", BEGUN))
        words.append((begin + length, 2 if not length else 0, at, "TRIAL_RETURNED", {"reason": ""}))
    words.sort(key=lambda word: (word[0], word[1]))
    events = told(*((begin, kind, f"t{at}", data) for begin, _, at, kind, data in words))
    found = timeline(RECORD, events, after=0, limit=1000)
    for lane in range(len(found.lanes)):
        mine = [one for one in found.intervals if one.lane == lane]
        for before, after in itertools.pairwise(mine):
            assert before.ended_at is not None
            assert before.ended_at <= after.started_at

    def open_at(moment: datetime) -> int:
        return sum(one.started_at == moment or one.started_at <= moment < (one.ended_at or moment) for one in every)

    every = found.intervals
    assert len(found.lanes) <= max((open_at(one.started_at) for one in every), default=0)


def test_a_timeline_over_http_is_that_of_the_record(http: TestClient, ledger: MemoryLedger) -> None:
    submitted(ledger)
    claim = claimed(ledger)
    ids = searched(ledger, claim)
    found = http.get(f"/v1/jobs/{claim.job_id}/timeline?limit=2").json()
    assert [(one["trial"], one["outcome"]) for one in found["intervals"]] == [(ids[0], "SCORED"), (ids[1], "SCORED")]
    rest = http.get(f"/v1/jobs/{claim.job_id}/timeline", params={"after": found["next_after"]}).json()
    assert [(one["trial"], one["outcome"]) for one in rest["intervals"]] == [(ids[1], "COMPLETED")]
    assert found["total"] == 3


def test_a_log_is_read_on_from_where_it_was(http: TestClient, ledger: MemoryLedger) -> None:
    submitted(ledger)
    claim = claimed(ledger)
    path = f"/v1/jobs/{claim.job_id}/logs"
    assert http.get(path).json() == {"lines": [], "next_after": 0}
    name = f"trial_{'0' * 26}"
    ledger.log(
        claim, [Line(Level.INFO, "stillhouse.driver", "begun"), Line(Level.ERROR, "stillhouse.session", "x", name)]
    )
    first = http.get(path, params={"limit": 1}).json()
    assert [line["message"] for line in first["lines"]] == ["begun"]
    rest = http.get(path, params={"after": first["next_after"]}).json()
    assert [(line["seq"], line["level"], line["trial"]) for line in rest["lines"]] == [(2, "ERROR", name)]
    for params, count in (({"level": "WARNING"}, 1), ({"trial": name}, 1), ({"level": "CRITICAL"}, 0)):
        assert len(http.get(path, params=params).json()["lines"]) == count
    for params, pointer in (({"level": "loud"}, "/level"), ({"trial": "7"}, "/trial"), ({"after": 2**31}, "/after")):
        answer = http.get(path, params=params)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
