"""The contract of `workers.backends.base.Backend`, over the inline backend and a real Ray cluster on this machine."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from search.errors import DataError, UserError
from search.recipe import Recipe
from search.spec import JobSpec
from search.trial import State, Trial
from tests.workers.scripted import Calm
from tests.workers.small_job import small_spec, small_workload
from tests.workers.test_ray_cluster import refuses_strangers
from workers.artifacts import FolderArtifacts
from workers.assignment import Assignment, Outcome, Progress
from workers.backends.base import WAIT, Backend, Wait
from workers.backends.inline import InlineBackend
from workers.memory import MemoryLedger
from workers.ports import Artifact
from workers.scores import Scores
from workers.sessions import SearchSession
from workers.workload import Workload

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def ray_backend() -> Iterator[Backend]:
    from workers.backends.ray import RayBackend

    backend = RayBackend("local", cpus=2)
    yield backend
    backend.close()
    backend.close()


@pytest.fixture(params=["inline", "ray"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "inline":
        return InlineBackend(threads=1)
    made: Backend = request.getfixturevalue("ray_backend")
    return made


@dataclass
class Prepared:
    spec: JobSpec
    recipe: Recipe
    workload: Workload
    folder: Path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder, spec = tmp_path_factory.mktemp("backend"), small_spec()
    recipe, workload = small_workload(spec, FolderArtifacts(str(folder / "artifacts")), folder / "cache")
    return Prepared(spec, recipe, workload, folder)


def search(backend: Backend, prepared: Prepared, workload: Workload | None = None) -> tuple[SearchSession, list[Trial]]:
    ledger = MemoryLedger()
    ledger.submit(prepared.spec)
    claim = ledger.claim("tester", 1000)
    assert claim is not None
    recipe = prepared.recipe
    found = recipe.survey(recipe.build_teacher())
    levels = recipe.levels(found)
    strategy = recipe.open_strategy(found, levels)
    workload = workload or prepared.workload
    # A dataset of its own: what one backend has scored shall not be known to the other.
    scores = Scores(workload.artifacts, prepared.spec, found.space, workload.teacher, dataset=uuid.uuid4().hex)
    session = SearchSession(claim, ledger, scores, prepared.spec, found, strategy, recipe.rungs, levels, Calm())
    backend.run(session, workload)
    return session, list(ledger.trials(claim.job_id))


def test_a_search_is_carried_out_to_its_end(backend: Backend, prepared: Prepared) -> None:
    session, trials = search(backend, prepared)
    assert len(trials) == 4
    assert all(trial.rung >= 1 for trial in trials)
    assert sum(trial.state is State.COMPLETED for trial in trials) == 2
    (finalists,) = session.conclude()
    assert len(finalists) == 2


def test_both_backends_come_to_the_same_scores(ray_backend: Backend, prepared: Prepared) -> None:
    """One thread each and the same candidates: what differs would be a bug in one of them."""

    def first_scores(trials: list[Trial]) -> dict[str, float]:
        return {trial.key: trial.scores[0].kl for trial in trials}

    _, inline = search(InlineBackend(threads=1), prepared)
    _, ray = search(ray_backend, prepared)
    assert first_scores(inline) == pytest.approx(first_scores(ray))


@dataclass
class Counting:
    """Hands out one assignment `count` times and keeps the books."""

    assignment: Assignment
    count: int
    slots: int = 2
    under_way: int = 0
    most: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    stop_at: int | None = None

    def next(self) -> Assignment | Wait | None:
        if self.count == 0:
            return WAIT if self.under_way else None
        self.count -= 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return self.assignment

    def progress(self, assignment: Assignment, progress: Progress) -> None:
        if self.stop_at is not None:
            self.stop_at = 0

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        self.under_way -= 1
        self.outcomes.append(outcome)

    def stopping(self) -> bool:
        return self.stop_at == 0


def assignment(prepared: Prepared, stop: int = 2, **changes: object) -> Assignment:
    space = prepared.recipe.survey(prepared.recipe.build_teacher()).space
    whole = Assignment(
        trial="trial_x",
        number=0,
        choices=space.least().as_dict(),
        schedule="search",
        start=0,
        stop=stop,
        cosine=(0, stop),
        seed=0,
        read=None,
        fresh=False,
        write="jobs/x/checkpoint.safetensors",
    )
    return whole.model_copy(update=changes)


def test_no_more_than_the_slots_are_under_way(backend: Backend, prepared: Prepared) -> None:
    session = Counting(assignment(prepared), count=6)
    backend.run(session, prepared.workload)
    assert [outcome.kind for outcome in session.outcomes] == ["done"] * 6
    assert session.most <= 2


def test_the_checkpoint_is_stored_before_the_end_is_told(backend: Backend, prepared: Prepared) -> None:
    key = f"jobs/x/{type(backend).__name__}.safetensors"
    backend.run(Counting(assignment(prepared, write=key), count=1), prepared.workload)
    assert prepared.workload.artifacts.has(key)


def test_a_candidate_that_diverges_fails_alone(backend: Backend, prepared: Prepared) -> None:
    poisoned = dict(prepared.workload.arrays)
    poisoned["train_logits"] = poisoned["train_logits"] * float("inf")
    session = Counting(assignment(prepared), count=2)
    backend.run(session, replace(prepared.workload, arrays=poisoned))
    assert [(outcome.kind, getattr(outcome, "code", "")) for outcome in session.outcomes] == [
        ("failed", "NON_FINITE")
    ] * 2


def test_stopping_drops_what_is_under_way(backend: Backend, prepared: Prepared) -> None:
    session = Counting(assignment(prepared, stop=100_000), count=3, stop_at=1)
    backend.run(session, prepared.workload)
    assert session.outcomes == []


def weighed(item: int, shared: dict[str, NDArray[np.float64]]) -> Iterator[float]:
    yield item * float(shared["a"].sum())


def numbers(item: int) -> Iterator[int]:
    yield item
    yield item * 10


def spoilt(item: int) -> Iterator[int]:
    yield item
    raise DataError("it is not an image", file="cat.png")


def never() -> bool:
    return False


def endless(item: int) -> Iterator[int]:
    while True:
        time.sleep(0.02)
        yield item


def silent(item: int) -> Iterator[int]:
    yield item
    time.sleep(600)


def test_map_ends_soon_after_it_shall_stop(backend: Backend) -> None:
    heard: list[tuple[int, int]] = []
    for found in backend.map(endless, [1], cpus=1, gpus=0, stopping=lambda: len(heard) >= 3):
        heard.append(found)  # noqa: PERF402 - what stops the map is how much was heard
    assert heard == [(0, 1)] * 3


def test_map_does_not_wait_for_a_function_that_says_nothing(ray_backend: Backend) -> None:
    began, heard = time.monotonic(), list[tuple[int, int]]()
    for found in ray_backend.map(silent, [1], cpus=1, gpus=0, stopping=lambda: bool(heard)):
        heard.append(found)
    assert heard == [(0, 1)]
    assert time.monotonic() - began < 60


def test_map_yields_every_value_with_its_index(backend: Backend) -> None:
    found = sorted(backend.map(numbers, [1, 2, 3], cpus=1, gpus=0, stopping=never))
    assert found == [(0, 1), (0, 10), (1, 2), (1, 20), (2, 3), (2, 30)]


def test_map_gives_every_call_what_is_shared(backend: Backend) -> None:
    """The same again costs no second copy, and another is another."""
    arrays = {"a": np.arange(5)}
    for shared, total in ((arrays, 10), (arrays, 10), ({"a": np.ones(3)}, 3)):
        found = sorted(backend.map(weighed, [1, 2], cpus=1, gpus=0, stopping=never, shared=shared))
        assert found == [(0, total), (1, 2 * total)]


def test_map_raises_what_the_function_raised(backend: Backend) -> None:
    with pytest.raises(DataError, match=r"cat\.png: it is not an image") as caught:
        list(backend.map(spoilt, [1], cpus=1, gpus=0, stopping=never))
    assert caught.value.file == "cat.png"
    assert caught.value.errors[0].pointer == "/dataset"


def test_a_cluster_of_ours_does_not_work_for_strangers(ray_backend: Backend) -> None:
    import ray

    assert refuses_strangers(ray.get_runtime_context().gcs_address)


def test_a_cluster_of_ours_is_at_loopback(ray_backend: Backend) -> None:
    """Where nothing can be reached from another machine (tests/e2e/test_machines.py tries that from one)."""
    import ray

    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


def test_what_no_worker_can_have_is_refused(backend: Backend) -> None:
    backend.check(cpus=1, gpus=0)
    with pytest.raises(UserError) as caught:
        backend.check(cpus=1, gpus=1000)
    assert caught.value.errors[0].pointer == "/resources/gpus_per_trial"


def test_map_takes_what_there_is(backend: Backend) -> None:
    assert list(backend.map(numbers, [1], cpus=10_000, gpus=0, stopping=never)) == [(0, 1), (0, 10)]


class Trapdoor:
    """Artifacts in a folder; the first process that stores a checkpoint dies of it."""

    def __init__(self, folder: Path) -> None:
        self._inner, self._sprung = FolderArtifacts(str(folder / "artifacts")), folder / "sprung"

    def put(self, key: str, data: bytes) -> Artifact:
        if not self._sprung.exists():
            self._sprung.touch()
            os._exit(9)
        return self._inner.put(key, data)

    def get(self, key: str) -> bytes:
        return self._inner.get(key)

    def has(self, key: str) -> bool:
        return self._inner.has(key)


def test_a_worker_that_dies_loses_its_assignment_and_the_others_go_on(ray_backend: Backend, prepared: Prepared) -> None:
    session = Counting(assignment(prepared), count=3)
    ray_backend.run(session, replace(prepared.workload, artifacts=Trapdoor(prepared.folder)))
    kinds = sorted(outcome.kind for outcome in session.outcomes)
    assert kinds == ["done", "done", "lost"]


class Guestbook(Trapdoor):
    """Artifacts in a folder, where every process that stores something leaves its number."""

    def put(self, key: str, data: bytes) -> Artifact:
        with self.guests.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return self._inner.put(key, data)

    @property
    def guests(self) -> Path:
        return self._sprung.with_name("guests")


def test_all_workers_share_trials_that_end_sooner_than_a_worker_starts(
    ray_backend: Backend, prepared: Prepared
) -> None:
    """By Tune's own placement one worker does everything, and the others are killed while they start."""
    session = Counting(assignment(prepared), count=80)
    artifacts = Guestbook(prepared.folder)
    ray_backend.run(session, replace(prepared.workload, artifacts=artifacts))
    guests = Counter(artifacts.guests.read_text().split())
    assert [outcome.kind for outcome in session.outcomes] == ["done"] * 80
    assert len(guests) == 2
    assert min(guests.values()) >= 10
