"""A job with a time to keep, its measurements scripted: what is sent back, what is kept, and how it ends."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from search.budget import Budget
from search.costs.polynomial import Polynomials
from search.latency.reading import Comparison, Reading
from search.latency.table import Measured, Row, Table, spread
from search.recipe import prepare
from search.surgery import Survey
from search.trial import Trial
from tests.bundles import read_back_here
from tests.workers.small_job import small_spec
from tests.workers.test_driver import House
from workers.events import Event
from workers.finals import Hopeless
from workers.ports import JobState, Phase
from workers.results import Exported, ExportResult, SearchResult, SurveyResult
from workers.stopwatch import HEADROOM, SENT_BACK, check_times, tightened, trimmed, with_times
from workers.timing import Place, Race, Tabled, Tabling

NANOSECONDS_A_MAC = 0.1


def reading(nanoseconds: float) -> Reading:
    return Reading(nanoseconds=max(1, round(nanoseconds)), spread=0, samples=20, environment={"runtime": "scripted"})


def times(student: float, teacher: float = 1000.0) -> Comparison:
    ratio = student / teacher
    return Comparison(first=reading(student), second=reading(teacher), ratio=ratio, low=ratio, high=ratio)


class TestTightened:
    BOUNDS: ClassVar = {"latency": (100, 1000), "throughput": (10, 500), "macs": (1, 9)}

    def test_predictions_stay_as_far_below_a_limit_as_asked(self) -> None:
        found = tightened(Budget({"latency": 500, "macs": 7}), {"latency": 1.25}, self.BOUNDS)
        assert found.limits == {"latency": 400, "macs": 7}

    def test_a_throughput_stays_above(self) -> None:
        assert tightened(Budget({"throughput": 100}), {"throughput": 1.25}, self.BOUNDS).limits == {"throughput": 125}

    def test_not_even_the_fastest_student_is_asked_to_be_faster(self) -> None:
        assert tightened(Budget({"latency": 110}), {"latency": 2.0}, self.BOUNDS).limits == {"latency": 100}
        assert tightened(Budget({"throughput": 450}), {"throughput": 2.0}, self.BOUNDS).limits == {"throughput": 500}

    def test_a_limit_that_nothing_keeps_is_left_as_it_is(self) -> None:
        assert tightened(Budget({"latency": 90}), {"latency": 2.0}, self.BOUNDS).limits == {"latency": 90}
        assert tightened(Budget({"throughput": 600}), {"throughput": 2.0}, self.BOUNDS).limits == {"throughput": 600}


def trial(name: str, latency: int) -> Trial:
    return Trial(id=name, number=0, key=name, choices={}, origin={}, cost={"latency": latency})


def slower(factor: float) -> Callable[[Trial, int], dict[str, int]]:
    return lambda one, level: {"latency": round(one.cost["latency"] * factor)}


class TestTrimmed:
    def test_who_is_too_slow_is_no_finalist(self) -> None:
        found = trimmed([[trial("a", 95), trial("b", 50)]], [Budget({"latency": 100})], slower(1.2), {"latency": 1.1})
        assert [[one.id for one in group] for group in found.finalists] == [["b"]]
        assert found.factors == {}, "there is a finalist"

    def test_a_level_of_which_nobody_is_left_says_how_far_predictions_were_off(self) -> None:
        groups = [[trial("a", 190)], [trial("b", 95), trial("c", 90)]]
        budgets = [Budget({"latency": 300}), Budget({"latency": 100})]
        found = trimmed(groups, budgets, slower(1.5), {"latency": 1.1})
        assert [[one.id for one in group] for group in found.finalists] == [["a"], ["b", "c"]]
        assert found.factors == {"latency": pytest.approx(1.1 * 1.5, rel=0.01)}

    @pytest.mark.parametrize(("slow", "roomy"), [(98, True), (99, False), (100, False)])
    def test_who_just_keeps_a_level_is_its_finalist_only_when_no_other_is(self, slow: int, roomy: bool) -> None:
        group = [trial("fast", slow), trial("slow", 101)]
        found = trimmed([group], [Budget({"latency": 100})], slower(1.0), {"latency": 1.1})
        assert [[one.id for one in group] for group in found.finalists] == [["fast"]]
        assert (found.factors == {}) is roomy

    def test_headroom_of_a_throughput_is_above(self) -> None:
        budget = [Budget({"throughput": 1000})]
        for rate, roomy in ((1020, True), (1019, False)):
            one = Trial(id="a", number=0, key="a", choices={}, origin={}, cost={"throughput": rate})
            found = trimmed([[one]], budget, lambda one, _: dict(one.cost), {"throughput": HEADROOM})
            assert (found.factors == {}) is roomy

    def test_a_level_without_candidates_asks_for_nothing(self) -> None:
        assert trimmed([[]], [Budget({"latency": 100})], slower(9), {"latency": 1.1}).factors == {}

    def test_a_throughput_is_off_when_it_is_less(self) -> None:
        one = Trial(id="a", number=0, key="a", choices={}, origin={}, cost={"throughput": 300})
        found = trimmed([[one]], [Budget({"throughput": 250})], lambda *_: {"throughput": 200}, {"throughput": 1.0})
        assert found.factors == {"throughput": 1.5}


def exported(latency: int) -> Exported:
    plain = Exported(trial="a", cost={"macs": 5}, bytes=1, deviation={})
    return with_times(plain, {"latency": 80, "macs": 5}, {"latency": times(latency)}, {"latency": latency})


def test_a_student_has_its_measured_times_among_its_costs_and_what_was_predicted_beside() -> None:
    found = exported(120)
    assert found.cost == {"macs": 5, "latency": 120}
    assert (found.times["latency"].predicted, found.times["latency"].measured) == (80, 120)
    assert Exported.model_validate_json(found.model_dump_json()) == found


def test_a_reason_names_limit_and_measured_value() -> None:
    check_times([exported(100)], [Budget({"latency": 100})])
    with pytest.raises(Hopeless, match=r"takes 4\.25 ms a batch and the limit is 4 ms"):
        check_times([exported(4_250_000)], [Budget({"latency": 4_000_000})])
    with pytest.raises(Hopeless, match=r"student of level 2 \(latency <= 100\) takes"):
        check_times([exported(90), exported(120)], [Budget({"latency": 200}), Budget({"latency": 100})])


class Machine:
    """Takes so much a mac, as its table says; when a student is timed it is `slower` than that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slower: float) -> None:
        self.slower = slower
        self.disturbed: list[float] = []
        """How many times slower still the next measurements of exported files are, one after the other."""
        self.raced: list[tuple[tuple[int, ...], str | None]] = []
        self.tables = 0
        monkeypatch.setattr("workers.stopwatch.tabulated", self._tabulated)
        monkeypatch.setattr("workers.stopwatch.raced", self._raced)

    def _tabulated(self, tabling: Tabling) -> Iterator[int | Tabled]:
        _, found = tabling.place.survey()
        self.tables += 1
        yield 1
        tabling.place.artifacts.put("latency/scripted.json", _table(found, tabling).model_dump_json().encode())
        yield Tabled("latency/scripted.json")

    def _raced(self, race: Race) -> Iterator[Comparison]:
        _, found = race.place.survey()
        self.raced.append((tuple(race.choices.values()), race.file))
        ends = found.costs([found.space.candidate(race.choices), found.space.full()])["macs"] * NANOSECONDS_A_MAC
        slower = self.slower * (self.disturbed.pop(0) if race.file and self.disturbed else 1.0)
        yield times(float(ends[0]) * slower, float(ends[1]))


def _table(found: Survey, tabling: Tabling) -> Table:
    chosen = spread(found.space, 13)
    sums = {block: macs for block, (macs, _) in found.block_costs.items()}
    counted = found.polynomials
    by_block = Polynomials(counted.choices, counted.variables, sums)(found.space.array(chosen))
    whole = np.sum(list(by_block.values()), axis=0) * NANOSECONDS_A_MAC
    return Table(
        space=found.space.key,
        measurement=tabling.measurement,
        networks=tuple(
            Measured(choices=one.as_dict(), latency=reading(nanoseconds))
            for one, nanoseconds in zip(chosen, whole, strict=True)
        ),
        rows=tuple(
            Row(block=block, network=number, nanoseconds=float(macs) * NANOSECONDS_A_MAC)
            for block, values in by_block.items()
            for number, macs in enumerate(values)
        ),
    )


def driven(house: House, events: list[Event], limit: str = "2x faster") -> tuple[JobState, str]:
    return house.drive(small_spec(budget={"latency": limit}))


def test_what_is_asked_of_a_worker_and_what_it_answers_can_travel(house: House) -> None:
    spec = small_spec(budget={"latency": "2x faster"})
    files = house.files
    place = Place(spec.model_dump(mode="json"), prepare(spec, files).info, files, house.artifacts)
    race = pickle.loads(pickle.dumps(Race(place, spec.budget.measurements["latency"], {"a": 1})))  # noqa: S301 - ours
    assert (race.measurement, race.choices, race.file) == (spec.budget.measurements["latency"], {"a": 1}, None)
    assert (race.place.spec, race.place.info) == (place.spec, place.info)
    assert pickle.loads(pickle.dumps(times(5.0))) == times(5.0)  # noqa: S301 - ours


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    read_back_here(monkeypatch)


@pytest.fixture
def house(tmp_path: Path, events: list[Event]) -> House:
    return House(tmp_path, on_event=lambda _, event: events.append(event))


def kinds(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event.kind == kind]


@pytest.mark.timeout(120)
def test_a_prediction_that_holds_needs_no_second_search(
    monkeypatch: pytest.MonkeyPatch, house: House, events: list[Event]
) -> None:
    machine = Machine(monkeypatch, slower=1.0)
    state, job = driven(house, events)
    assert state is JobState.SUCCEEDED
    survey = SurveyResult.model_validate(house.result(job, Phase.SURVEY))
    assert survey.times["latency"].table == "latency/scripted.json"
    assert survey.times["latency"].error == pytest.approx(0, abs=0.01)
    assert survey.limits["latency"] == survey.cost["latency"] // 2
    trials = house.ledger.trials(job)
    assert len(trials) == 4
    assert all(trial.cost["latency"] <= survey.limits["latency"] for trial in trials)
    assert not kinds(events, "SENT_BACK")
    assert machine.tables == 1
    *candidates, student = machine.raced
    assert len(candidates) == len(set(candidates)) == 2, "every finalist is timed once before it is trained"
    assert student in candidates, "and the student once more at its export"
    result = ExportResult.model_validate(house.result(job, Phase.EXPORT))
    assert result.times["latency"].measured == result.cost["latency"]
    assert result.times["latency"].predicted == pytest.approx(result.cost["latency"], rel=0.01)
    document = house.document(job)
    assert document.student is not None
    assert [verdict.fits for verdict in document.student.verdicts] == [True]
    assert document.student.times[0].predicted == result.times["latency"].predicted


@pytest.mark.timeout(120)
def test_candidates_that_turn_out_too_slow_send_the_search_back_under_a_corrected_prediction(
    monkeypatch: pytest.MonkeyPatch, house: House, events: list[Event]
) -> None:
    Machine(monkeypatch, slower=1.4)
    state, job = driven(house, events)
    assert state is JobState.SUCCEEDED, house.ledger.job(job).reason
    (sent_back,) = kinds(events, "SENT_BACK")
    assert sent_back.data["factors"]["latency"] == pytest.approx(1.4, rel=0.05)
    trials = {trial.id: trial for trial in house.ledger.trials(job)}
    assert len(trials) > 4, "some more were proposed"
    limit = house.result(job, Phase.SURVEY)["limits"]["latency"]
    finalists = SearchResult.model_validate(house.result(job, Phase.SEARCH)).finalists
    assert finalists
    assert all(1.4 * trials[name].cost["latency"] <= 1.02 * limit for name in finalists)
    assert house.result(job, Phase.EXPORT)["cost"]["latency"] <= limit


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("disturbed", "middle", "state"),
    [([3.0], 1.0, JobState.SUCCEEDED), ([3.0, 1.0, 4.0], 3.0, JobState.FAILED)],
    ids=["once", "twice of three times"],
)
def test_a_file_that_is_slower_than_its_candidate_was_is_measured_twice_more(
    monkeypatch: pytest.MonkeyPatch, house: House, disturbed: list[float], middle: float, state: JobState
) -> None:
    machine = Machine(monkeypatch, slower=1.0)
    machine.disturbed = list(disturbed)
    spec = small_spec(budget={"latency": "2x faster"}, export={"onnx": True})
    ended, job = house.drive(spec)
    assert ended is state
    assert [file is not None for _, file in machine.raced] == [False, False, True, True, True]
    found = ExportResult.model_validate(house.result(job, Phase.EXPORT)).times["latency"]
    assert found.measured == pytest.approx(middle * found.predicted, rel=0.01)


@pytest.mark.timeout(120)
def test_a_candidate_that_just_keeps_its_limit_is_no_finalist(
    monkeypatch: pytest.MonkeyPatch, house: House, events: list[Event]
) -> None:
    class Just(Machine):
        def _raced(self, race: Race) -> Iterator[Comparison]:
            yield times(499.0)

    Just(monkeypatch, slower=1.0)
    state, _ = house.drive(small_spec(budget={"latency": "2x faster"}))
    assert kinds(events, "SENT_BACK"), "measured again, it would miss its limit every other time"
    assert state is JobState.SUCCEEDED, "for it keeps the limit"


@pytest.mark.timeout(120)
def test_a_job_that_stays_too_slow_fails_by_name_and_its_student_can_be_had(
    monkeypatch: pytest.MonkeyPatch, house: House, events: list[Event]
) -> None:
    machine = Machine(monkeypatch, slower=40.0)
    state, job = driven(house, events)
    assert state is JobState.FAILED
    assert len(kinds(events, "SENT_BACK")) == SENT_BACK
    record = house.ledger.job(job)
    measured = house.result(job, Phase.EXPORT)["cost"]["latency"]
    assert f"{measured / 1e6:.4g} ms a batch" in record.reason
    document = house.document(job)
    assert document.student is not None
    assert [(verdict.metric, verdict.fits) for verdict in document.student.verdicts] == [("latency", False)]
    assert {Path(stored.name).name for stored in record.files} >= {"architecture.json", "weights.safetensors"}
    assert machine.tables == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_time_on_a_gpu_that_no_worker_has_is_refused_before_anything_is_done(house: House) -> None:
    limit = {"limit": "2x faster", "runtime": "torch-cuda", "device": "cuda"}
    state, job = house.drive(small_spec(budget={"latency": limit}))
    assert state is JobState.FAILED
    assert "no worker has a GPU" in house.ledger.job(job).reason
    assert not house.ledger.job(job).phases


@pytest.mark.timeout(120)
def test_a_driver_that_takes_over_goes_on_with_the_table_and_the_times_on_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, slower=1.4)
    doomed = [True]

    def die(_: str, event: Event) -> None:
        if event.kind == "SENT_BACK" and doomed:
            doomed.clear()
            raise OSError("the machine lost its power")

    house = House(tmp_path, on_event=die)
    job = house.ledger.submit(small_spec(budget={"latency": "2x faster"}))[0].id
    claim = house.claimed()
    with pytest.raises(OSError, match="lost its power"):
        house.driver(claim).drive()
    timed = list(machine.raced)
    assert timed
    house.ledger.release(claim)
    assert house.driver(house.claimed()).drive() is JobState.SUCCEEDED
    assert machine.tables == 1
    assert not set(timed) & set(machine.raced[len(timed) :]), "what was timed is not timed again"
    assert house.ledger.job(job).state is JobState.SUCCEEDED
