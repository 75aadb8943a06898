"""A whole job, small and real, driven in this process."""

from __future__ import annotations

import copy
import importlib.util
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from search.errors import BudgetImpossible, StaleClaim
from search.files import Files
from search.front import Front, hypervolume
from search.recipe import prepare
from search.spec import JobSpec
from search.trial import State
from service.documents import JobDocument, job_document
from tests.bundles import read_back_here
from tests.workers.scripted import Calm
from tests.workers.small_job import small_spec
from workers.artifacts import FolderArtifacts
from workers.backends.inline import InlineBackend
from workers.driver import Driver
from workers.events import Event
from workers.memory import MemoryLedger
from workers.ports import Claim, JobState, Phase, Wish
from workers.results import ExportResult, FinalistsResult, SearchResult, TeacherResult
from workers.standings import standing_of

pytestmark = pytest.mark.timeout(60)


EXPLODING = {"learning_rate": 10, "weight_decay": 1, "warmup": 0}
"""Every step multiplies the weights by more than nine, so they leave the range of float32 within 40 steps."""


class House:
    """A ledger and artifacts; `drive` takes a spec to its end."""

    def __init__(self, home: Path, on_event: Callable[[str, Event], None] | None = None) -> None:
        self.ledger = MemoryLedger(on_event=on_event)
        self.artifacts = FolderArtifacts(home / "artifacts")
        self.files = Files(cache=home / "cache")
        self.watch = Calm()

    def claimed(self) -> Claim:
        claim = self.ledger.claim("tester", 1000)
        assert claim is not None
        return claim

    def driver(self, claim: Claim) -> Driver:
        return Driver(claim, self.ledger, self.artifacts, InlineBackend(threads=1), self.files, self.watch)

    def drive(self, spec: JobSpec) -> tuple[JobState | None, str]:
        job = self.ledger.submit(spec)[0].id
        return self.driver(self.claimed()).drive(), job

    def document(self, job: str) -> JobDocument:
        return job_document(self.ledger.job(job), standing_of(self.ledger.trials(job)))

    def result(self, job: str, phase: Phase) -> dict[str, Any]:
        found = self.ledger.job(job).phases[phase].result
        assert found is not None
        return dict(found)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[House, str]:
    house = House(tmp_path_factory.mktemp("job"))
    state, job = house.drive(small_spec())
    assert state is JobState.SUCCEEDED
    return house, job


@pytest.fixture(autouse=True)
def here(finished: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job's student was read back in a process of its own; those of the others are in this one."""
    read_back_here(monkeypatch)


def as_far_as(house: House, phase: Phase, spec: JobSpec) -> tuple[House, str]:
    """The job of a house with the same artifacts, cancelled where it goes into a phase: no test waits for an export."""
    other = copy.copy(house)
    other.watch = Calm()

    def stop(_: str, event: Event) -> None:
        other.watch.stopped |= event.kind == "PHASE_ENTERED" and event.data["phase"] == phase

    other.ledger = MemoryLedger(on_event=stop)
    state, job = other.drive(spec)
    assert state is JobState.CANCELLED
    return other, job


def take_home(house: House, job: str, folder: Path, name: str = "student") -> nn.Module:
    """The student as its owner gets it: by the `load.py` that came with it."""
    for stored in house.ledger.job(job).files:
        if stored.name.startswith(f"{name}/"):
            (folder / Path(stored.name).name).write_bytes(house.artifacts.get(stored.artifact.key))
    found = importlib.util.spec_from_file_location("load", folder / "load.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    student: nn.Module = module.load(folder)
    return student


def test_every_phase_is_on_record_with_its_time(finished: tuple[House, str]) -> None:
    house, job = finished
    phases = house.ledger.job(job).phases
    assert list(phases) == [Phase.TEACHER, Phase.SURVEY, Phase.SEARCH, Phase.FINALISTS, Phase.EXPORT]
    assert all(record.seconds is not None and record.seconds >= 0 for record in phases.values())


def test_the_student_that_is_taken_home_costs_what_the_document_says(
    finished: tuple[House, str], tmp_path: Path
) -> None:
    house, job = finished
    student, document = take_home(house, job, tmp_path), house.document(job)
    assert document.student is not None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(torch.randn(1, 3, 32, 32))
    assert document.student.cost["macs"] == counter.get_total_flops() // 2
    assert document.student.cost["flops"] == counter.get_total_flops()
    assert document.student.cost["params"] == sum(parameter.numel() for parameter in student.parameters())
    (verdict,) = document.student.verdicts
    assert verdict.fits
    assert verdict.value == document.student.cost["macs"] <= verdict.limit


def test_the_student_that_is_taken_home_reaches_the_accuracy_on_record(
    finished: tuple[House, str], tmp_path: Path
) -> None:
    """Counted afresh: own normalisation from architecture.json, own argmax, scikit-learn's digits by the plugin."""
    house, job = finished
    student = take_home(house, job, tmp_path)
    architecture = json.loads((tmp_path / "architecture.json").read_text())
    recipe = prepare(small_spec(), house.files)
    test = recipe.dataset.split("test")
    mean, std = (torch.tensor(architecture["input"][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    images = (torch.from_numpy(test.images.copy()).float() / 255 - mean) / std
    with torch.no_grad():
        right = (student(images).argmax(dim=1).numpy() == test.labels).sum()
    result = FinalistsResult.model_validate(house.result(job, Phase.FINALISTS))
    assert result.accuracy == pytest.approx(right / len(test.labels), abs=1e-9)


def test_a_job_on_long_tailed_data_tells_how_rare_classes_do(tmp_path: Path) -> None:
    """Classes have 105 training images down to 2; weighted by their test images, the groups make up the whole."""
    dataset = {"name": "long_tailed", "options": {"of": {"name": "digits"}, "imbalance": 50}}
    search = small_spec().search.model_dump(mode="json") | {"trials": 1, "rungs": [0], "repeats": 0}
    balanced = {"name": "bkd", "options": {"deferred": 0.5}}
    spec = small_spec(dataset=dataset, search=search, finalists={"count": 1, "steps": 2, "distill": balanced})

    def stop(_: str, event: Event) -> None:
        if event.kind == "PHASE_ENTERED" and event.data["phase"] == Phase.EXPORT:
            raise OSError("no test waits for an export")

    house = House(tmp_path, stop)
    job = house.ledger.submit(spec)[0].id
    with pytest.raises(OSError, match="no test waits"):
        house.driver(house.claimed()).drive()
    data = prepare(spec, house.files).dataset
    images = np.bincount(data.split("train").labels)[data.split("test").labels]
    groups = {"many": images > 100, "medium": (images >= 20) & (images <= 100), "few": images < 20}
    for found in (
        TeacherResult.model_validate(house.result(job, Phase.TEACHER)),
        *FinalistsResult.model_validate(house.result(job, Phase.FINALISTS)).chosen,
    ):
        assert found.shots.keys() == groups.keys()
        assert sum(found.shots[name] * of.mean() for name, of in groups.items()) == pytest.approx(found.accuracy)


def test_a_job_tells_how_far_its_search_can_be_trusted(finished: tuple[House, str]) -> None:
    """By the numbers on record: noise from two trials scored twice, and no more than chance where it is no more."""
    house, job = finished
    searched = SearchResult.model_validate(house.result(job, Phase.SEARCH))
    trials = {trial.id: trial for trial in house.ledger.trials(job)}
    assert len(searched.repeats) == 2
    assert all(first == trials[trial].scores[-1].accuracy for trial, (first, _) in searched.repeats.items())
    variance = statistics.fmean((one - two) ** 2 / 2 for one, two in searched.repeats.values())
    document = house.document(job)
    assert document.evidence is not None
    assert document.evidence.noise is not None
    assert document.evidence.noise.value == pytest.approx(variance**0.5)
    assert document.student is not None
    assert document.student.rival is not None
    finalists = FinalistsResult.model_validate(house.result(job, Phase.FINALISTS)).finalists
    assert [finalist.trial for finalist in finalists] == [document.student.trial, document.student.rival.trial]
    lead = finalists[0].accuracy - finalists[1].accuracy
    assert document.student.rival.beaten is (lead > document.evidence.noise.difference)


def test_every_trial_was_within_the_budget(finished: tuple[House, str]) -> None:
    house, job = finished
    limits = house.result(job, Phase.SURVEY)["limits"]
    assert all(trial.cost["macs"] <= limits["macs"] for trial in house.ledger.trials(job))


def test_a_second_job_finds_the_teacher_and_the_scores_kept(finished: tuple[House, str]) -> None:
    house, first = finished
    state, second = house.drive(small_spec(search={**small_spec().search.model_dump(mode="json"), "trials": 2}))
    assert state is JobState.SUCCEEDED
    teachers = [TeacherResult.model_validate(house.result(job, Phase.TEACHER)) for job in (first, second)]
    assert [teacher.source for teacher in teachers] == ["trained", "kept"]
    assert teachers[0].weights == teachers[1].weights
    known = {trial.key: trial.scores[0] for trial in house.ledger.trials(first)}
    for trial in house.ledger.trials(second):
        assert trial.scores[0] == replace(known[trial.key], cached=True, seconds=0.0)


def test_a_deterministic_job_promotes_nobody_before_all_are_scored(finished: tuple[House, str]) -> None:
    spec = small_spec(search={**small_spec().search.model_dump(mode="json"), "deterministic": True})
    house, job = as_far_as(finished[0], Phase.FINALISTS, spec)
    told = [event.data["rung"] for event in house.ledger.events(job) if event.kind == "TRIAL_SCORED"]
    assert told == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("weights", ["library", "elastic", "structure"])
def test_students_may_begin_with_better_weights_than_slices(finished: tuple[House, str], weights: str) -> None:
    """What is made for them is on record before the search."""
    document = small_spec(space={"divisor": 1, "steps": 2}).model_dump(mode="json")
    document["search"] |= {"weights": weights, "trials": 2, "rungs": [0]}
    document["search"]["library"] |= {"steps": 1, "coupled_steps": 1, "images": 64}
    document["search"]["elastic"] |= {"steps": 4, "every": 2}
    document["search"]["structure"] |= {"steps": 4}
    house, job = as_far_as(finished[0], Phase.FINALISTS, JobSpec.model_validate(document))
    made = {"library": [Phase.LIBRARY, Phase.PLAN], "elastic": [Phase.ELASTIC], "structure": [Phase.STRUCTURE]}[weights]
    assert list(house.ledger.job(job).phases) == [
        *(Phase.TEACHER, Phase.SURVEY, *made),
        *(Phase.SEARCH, Phase.FINALISTS),
    ]
    assert all(trial.scores for trial in house.ledger.trials(job))


def test_a_teacher_may_bring_its_weights(finished: tuple[House, str], tmp_path: Path) -> None:
    house, _ = finished
    spec = small_spec()
    model = prepare(spec, house.files).build_teacher()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "mine.safetensors")
    document = spec.model_dump(mode="json")
    document["teacher"]["weights"] = str(tmp_path / "mine.safetensors")
    state, job = house.drive(JobSpec.model_validate(document))
    assert state is JobState.SUCCEEDED
    assert house.result(job, Phase.TEACHER)["source"] == "weights"


LADDER = {"macs": ["60%", "30%"], "params": "80%"}


@pytest.fixture(scope="module")
def laddered(finished: tuple[House, str]) -> tuple[House, str]:
    house, _ = finished
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_back_here(monkeypatch)
        state, job = house.drive(small_spec(budget=LADDER, finalists={"count": 1, "steps": 4, "checkpoint_every": 2}))
    assert state is JobState.SUCCEEDED
    return house, job


def test_every_level_of_a_ladder_gets_its_student(laddered: tuple[House, str], tmp_path: Path) -> None:
    house, job = laddered
    document = house.document(job)
    teacher = document.teacher.cost
    assert teacher is not None
    assert document.levels == [
        {"macs": teacher["macs"] * 60 // 100, "params": teacher["params"] * 80 // 100},
        {"macs": teacher["macs"] * 30 // 100, "params": teacher["params"] * 80 // 100},
    ]
    assert [student.folder for student in document.students] == ["student-1", "student-2"]
    assert document.student == document.students[0]
    for student, limits in zip(document.students, document.levels, strict=True):
        (tmp_path / student.folder).mkdir()
        taken = take_home(house, job, tmp_path / student.folder, student.folder)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            taken(torch.randn(1, 3, 32, 32))
        assert student.cost["macs"] * 2 == student.cost["flops"] == counter.get_total_flops()
        assert counter.get_total_flops() // 2 <= limits["macs"]
        assert sum(parameter.numel() for parameter in taken.parameters()) == student.cost["params"] <= limits["params"]
        assert {verdict.metric: verdict.limit for verdict in student.verdicts} == limits
        assert all(verdict.fits for verdict in student.verdicts)


def test_the_winner_of_a_level_is_the_best_of_all_finalists_that_fit_it(laddered: tuple[House, str]) -> None:
    house, job = laddered
    result = FinalistsResult.model_validate(house.result(job, Phase.FINALISTS))
    trials = {trial.id: trial for trial in house.ledger.trials(job)}
    assert len({finalist.trial for finalist in result.finalists}) == len(result.finalists)
    for winner, limits in zip(result.winners, house.document(job).levels, strict=True):
        fitting = [f for f in result.finalists if trials[f.trial].cost["macs"] <= limits["macs"]]
        best = max(fitting, key=lambda finalist: (finalist.accuracy, -finalist.kl))
        assert winner.trial == best.trial


GOAL: dict[str, Any] = {
    "budget": {"accuracy": {"at_least": "1%"}, "params": "90%"},
    "search": {**small_spec().search.model_dump(mode="json"), "trials": 6, "rungs": [2]},
    "finalists": {"count": 1, "steps": 4, "checkpoint_every": 2},
}


def test_the_cheapest_student_above_an_accuracy_is_found(finished: tuple[House, str]) -> None:
    """Untrained networks guess one in ten right, so a floor of 1 % is kept at the tightest level of all."""
    house, _ = finished
    state, job = house.drive(small_spec(**GOAL))
    assert state is JobState.SUCCEEDED
    document = house.document(job)
    assert len(document.levels) == 6
    (student,) = document.students
    verdicts = {verdict.metric: verdict for verdict in student.verdicts}
    assert verdicts.keys() == {"params", "accuracy"}
    assert (verdicts["accuracy"].limit, verdicts["accuracy"].value) == (0.01, student.metrics.validation_accuracy)
    assert all(verdict.fits for verdict in verdicts.values())
    assert student.cost["macs"] <= document.levels[-1]["macs"]
    assert student.cost["macs"] == min(trial.cost["macs"] for trial in house.ledger.trials(job))
    assert {artifact.name.split("/")[0] for artifact in document.artifacts} == {"student"}


@pytest.mark.timeout(120)
def test_a_front_is_found_without_a_budget(finished: tuple[House, str]) -> None:
    house, _ = finished
    search = {**small_spec().search.model_dump(mode="json"), "trials": 6, "rungs": [2, 4]}
    finalists = {"count": 2, "steps": 4, "checkpoint_every": 2}
    state, job = house.drive(
        small_spec(budget={"front": {"costs": ["macs", "params"]}}, search=search, finalists=finalists)
    )
    assert state is JobState.SUCCEEDED
    document = house.document(job)
    students = document.students
    assert 1 <= len(students) <= 2
    assert [student.cost["macs"] for student in students] == sorted(
        (student.cost["macs"] for student in students), reverse=True
    )
    found = {(one.metrics.validation_accuracy, one.cost["macs"], one.cost["params"]) for one in students}
    for accuracy, macs, params in found:
        assert not any(
            a >= accuracy and m <= macs and p <= params and (a, m, p) != (accuracy, macs, params) for a, m, p in found
        )
    assert all(student.verdicts == [] for student in students)
    names = {artifact.name.split("/")[0] for artifact in document.artifacts}
    assert names == {student.folder for student in students}
    assert document.front is not None
    assert document.front.costs == ["macs", "params"]
    assert document.front.course == sorted(document.front.course)
    assert len(document.front.course) == 6
    teacher = document.teacher.cost
    assert teacher is not None
    front = Front(("macs", "params"), teacher, chance=0.1)
    losses = front.losses([accuracy for accuracy, _, _ in found], [{"macs": m, "params": p} for _, m, p in found])
    assert document.front.hypervolume == pytest.approx(hypervolume(losses))


def test_an_accuracy_that_nothing_keeps_fails_with_the_best_that_was_reached(finished: tuple[House, str]) -> None:
    house, _ = finished
    state, job = house.drive(small_spec(**(GOAL | {"budget": {"accuracy": {"at_least": "100%"}}})))
    assert state is JobState.FAILED
    reason = house.ledger.job(job).reason
    scored = [event.data for event in house.ledger.events(job) if event.kind == "FINALIST_SCORED"]
    best = max(scored, key=lambda data: data["accuracy"])
    (trial,) = (trial for trial in house.ledger.trials(job) if trial.id == best["trial"])
    assert "no student keeps the accuracy: 100.00% on validation are asked for" in reason
    assert f"reached {best['accuracy']:.2%} with {trial.cost['macs']:,} macs" in reason
    assert house.document(job).students == []


def test_a_bisection_that_is_taken_over_asks_the_same_levels(finished: tuple[House, str]) -> None:
    """Where nothing keeps the accuracy, every half is walked through; the second finalist's driver dies."""
    first, _ = finished
    spec = small_spec(**(GOAL | {"budget": {"accuracy": {"at_least": "100%"}}}))
    state, whole = first.drive(spec)
    deaths = [False, True]

    def die(_: str, event: Event) -> None:
        if event.kind == "FINALIST_SCORED" and deaths and deaths.pop(0):
            raise OSError("the machine lost its power")

    house = copy.copy(first)
    house.ledger = MemoryLedger(on_event=die)
    job = house.ledger.submit(spec)[0].id
    claim = house.claimed()
    with pytest.raises(OSError, match="lost its power"):
        house.driver(claim).drive()
    house.ledger.release(claim)
    assert house.driver(house.claimed()).drive() is state is JobState.FAILED

    def scores(ledger: MemoryLedger, job_id: str) -> dict[int, float]:
        found = (event.data for event in ledger.events(job_id) if event.kind == "FINALIST_SCORED")
        return {data["number"]: data["accuracy"] for data in found}

    assert scores(house.ledger, job) == scores(first.ledger, whole)
    assert len(scores(house.ledger, job)) > 1
    assert house.ledger.job(job).reason == first.ledger.job(whole).reason


def test_what_a_plan_refuses_a_driver_refuses_in_the_same_words_and_what_it_promises_is_surveyed(
    finished: tuple[House, str],
) -> None:
    house, job = finished
    plan, surveyed = prepare(small_spec(), house.files).plan(), house.result(job, Phase.SURVEY)
    assert surveyed["limits"] == plan["limits"]
    assert surveyed["smallest"] == plan["smallest"]
    impossible = small_spec(budget={"macs": plan["smallest"]["macs"] - 1, "params": 1})
    with pytest.raises(BudgetImpossible) as refused:
        prepare(impossible, house.files).plan()
    state, job = house.drive(impossible)
    assert state is JobState.FAILED
    assert house.ledger.job(job).reason == f"BUDGET_IMPOSSIBLE: {refused.value.message}"


def test_cancelling_ends_the_job_at_its_next_step(tmp_path: Path) -> None:
    house = House(tmp_path, on_event=lambda _, event: stop(event))

    def stop(event: Event) -> None:
        house.watch.stopped = house.watch.stopped or event.kind == "TRIAL_SCORED"

    state, job = house.drive(small_spec())
    assert state is JobState.CANCELLED
    trials = house.ledger.trials(job)
    assert len([trial for trial in trials if trial.scores]) == 1
    assert all(trial.state.terminal for trial in trials)


def test_a_paused_job_goes_on_where_it_was(tmp_path: Path) -> None:
    house = House(tmp_path, on_event=lambda job, event: pause(job, event))

    def pause(job: str, event: Event) -> None:
        if event.kind == "TRIAL_SCORED" and not house.ledger.job(job).revision:
            house.watch.stopped, house.watch.why = True, Wish.PAUSE
            house.ledger.request_pause(job)

    state, job = house.drive(small_spec())
    found = house.ledger.job(job)
    assert (state, found.state, found.leased, found.phase) == (None, JobState.RUNNING, False, Phase.SEARCH)
    [scored] = [trial for trial in house.ledger.trials(job) if trial.scores]
    assert house.ledger.claim("tester", 1000) is None
    house.ledger.resume(job)
    house.watch = Calm()
    assert house.driver(house.claimed()).drive() is JobState.SUCCEEDED
    events = [event for event in house.ledger.events(job) if event.data.get("trial") == scored.id]
    assert [event.data["rung"] for event in events if event.kind == "TRIAL_SCORED"].count(0) == 1
    assert house.ledger.job(job).claims == 2


def test_a_search_takes_notice_of_more_trials(tmp_path: Path) -> None:
    house = House(tmp_path, on_event=lambda job, event: raise_trials(job, event))

    def raise_trials(job: str, event: Event) -> None:
        if event.kind == "TRIAL_SCORED" and event.data["number"] == 1 and not house.ledger.job(job).revision:
            house.ledger.change(job, small_spec(search=search | {"trials": 7}), revision=0)

    search = small_spec().search.model_dump(mode="json")
    state, job = house.drive(small_spec())
    assert state is JobState.SUCCEEDED
    assert len(house.ledger.trials(job)) == 7
    assert house.ledger.job(job).claims == 1, "it was never interrupted"


def test_more_trials_that_are_wanted_at_the_last_moment_are_looked_for(tmp_path: Path) -> None:
    """After the session has ended, before the result of the search is on record."""
    house = House(tmp_path, on_event=lambda job, event: raise_trials(job, event))

    def raise_trials(job: str, event: Event) -> None:
        if event.kind == "TRIAL_STOPPED" and not house.ledger.job(job).revision:
            house.ledger.change(job, small_spec(search=search | {"trials": 6}), revision=0)

    search = small_spec().search.model_dump(mode="json")
    state, job = house.drive(small_spec())
    assert state is JobState.SUCCEEDED
    assert len(house.ledger.trials(job)) == 6


def test_a_search_in_which_everything_diverges_fails_with_the_reason(tmp_path: Path) -> None:
    house = House(tmp_path)
    spec = small_spec()
    document = spec.model_dump(mode="json")
    document["search"]["training"] |= EXPLODING
    document["search"]["rungs"] = [60]
    state, job = house.drive(JobSpec.model_validate(document))
    assert state is JobState.FAILED
    assert house.ledger.job(job).reason.startswith("every trial failed; the first: NON_FINITE: ")
    assert {trial.state for trial in house.ledger.trials(job)} == {State.FAILED}


def test_a_teacher_that_diverges_is_the_users_to_mend(tmp_path: Path) -> None:
    document = small_spec().model_dump(mode="json")
    document["teacher"]["training"] |= EXPLODING
    document["teacher"]["epochs"] = 4
    house = House(tmp_path)
    state, job = house.drive(JobSpec.model_validate(document))
    assert state is JobState.FAILED
    assert "the teacher's training diverged" in house.ledger.job(job).reason


def test_an_image_that_cannot_be_read_fails_the_job_and_is_named(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(10):
            colour = (10 * number, 20, 200 if name == "cat" else 20)
            Image.new("RGB", (16, 16), colour).save(tmp_path / "pets" / name / f"{number}.png")
    whole = (tmp_path / "pets" / "dog" / "3.png").read_bytes()
    (tmp_path / "pets" / "dog" / "3.png").write_bytes(whole[: len(whole) // 2])
    options = {"path": str(tmp_path / "pets"), "size": 16}
    house = House(tmp_path)
    state, job = house.drive(small_spec(dataset={"name": "image_folder", "options": options}))
    assert state is JobState.FAILED
    assert "3.png" in house.ledger.job(job).reason


def test_a_driver_whose_claim_is_gone_writes_nothing_more(tmp_path: Path) -> None:
    house = House(tmp_path)
    job = house.ledger.submit(small_spec())[0].id
    claim = house.claimed()
    house.ledger.release(claim)
    house.claimed()
    before = len(house.ledger.events(job))
    with pytest.raises(StaleClaim):
        house.driver(claim).drive()
    assert len(house.ledger.events(job)) == before


def test_a_driver_that_takes_over_skips_the_phases_on_record(finished: tuple[House, str], tmp_path: Path) -> None:
    house = House(tmp_path)
    house.artifacts = finished[0].artifacts
    stop_at_export = [True]

    def die(_: str, event: Event) -> None:
        if event.kind == "PHASE_ENTERED" and event.data["phase"] == "export" and stop_at_export.pop():
            stop_at_export.append(False)
            raise OSError("the machine lost its power")

    house.ledger = MemoryLedger(on_event=die)
    job = house.ledger.submit(small_spec())[0].id
    claim = house.claimed()
    with pytest.raises(OSError, match="lost its power"):
        house.driver(claim).drive()
    house.ledger.release(claim)
    began = len(house.ledger.events(job))
    stop_at_export[:] = [False]
    assert house.driver(house.claimed()).drive() is JobState.SUCCEEDED
    later = house.ledger.events(job)[began:]
    assert [event.data["phase"] for event in later if event.kind == "PHASE_ENTERED"] == ["export"]
    assert ExportResult.model_validate(house.result(job, Phase.EXPORT)).cost["macs"] > 0


def test_a_job_without_a_teacher(finished: tuple[House, str]) -> None:
    """Its students are cut from the untrained network and learn from labels and from each other."""
    house, _ = finished
    search = {**small_spec().search.model_dump(mode="json"), "views": 2, "trials": 2, "repeats": 0}
    teacher = {"name": "small_resnet", "options": {"width": 4, "depth": 1}, "epochs": 0}
    finalists, distill = {"count": 1, "steps": 2}, {"name": "pcl", "options": {"peers": 2}}
    spec = small_spec(teacher=teacher, search=search, distill=distill, finalists=finalists)
    state, job = house.drive(spec)
    assert state is JobState.SUCCEEDED
    document = house.document(job)
    assert (document.teacher.source, document.teacher.metrics) == ("untrained", None)
    # Nearness to a network that knows nothing has no say in who goes on.
    assert {score.kl for trial in house.ledger.trials(job) for score in trial.scores} == {0.0}
    (student,) = document.students
    assert student.metrics.kl == 0.0
    assert student.metrics.accuracy > 0
    assert all(verdict.fits for verdict in student.verdicts)
