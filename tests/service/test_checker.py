"""Specs are checked in a child process, which may die or dawdle without harm to the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.errors import BudgetImpossible, StillhouseError, UserError
from search.files import Files
from search.spec import JobSpec, Pick, TeacherSpec, read_spec
from search.teachers.small import SmallResNet
from search.teachers.weights import save_weights
from service.checker import CachedChecker, CheckerBusy, ChildChecker, DirectChecker
from tests.service.served import SPEC, digest, in_threads
from workers.artifacts import FolderArtifacts
from workers.uploads import Uploaded


def spec(**changes: Any) -> JobSpec:
    return read_spec(SPEC | changes)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("cache"), roots=())


@pytest.fixture(scope="module")
def child(files: Files) -> Iterator[ChildChecker]:
    stored = files.cache.parent / "artifacts"
    checker = ChildChecker(files, limit_seconds=60, limit_bytes=5 << 28, artifacts=str(stored))
    yield checker
    checker.close()


@pytest.mark.timeout(90)
def test_the_child_answers_as_one_would_in_this_process(child: ChildChecker, files: Files) -> None:
    here = DirectChecker(files)
    plans = [child.check(spec()), here.check(spec())]
    assert all(plan.pop("estimate") for plan in plans), "it is timed, so it differs"
    assert plans[0] == plans[1]
    assert child.catalog("distillers") == here.catalog("distillers")
    for wrong in (
        spec(budget={"macs": 10}),
        spec(teacher={"name": "nobody"}, distill={"name": "nobody"}),
        spec(dataset={"name": "image_folder", "options": {"path": "/etc"}}),
    ):
        with pytest.raises(UserError) as there:
            child.check(wrong)
        with pytest.raises(UserError) as told:
            here.check(wrong)
        assert (there.value.code, there.value.message) == (told.value.code, told.value.message)
        assert there.value.errors == told.value.errors
    with pytest.raises(UserError, match="teachers"):
        child.catalog("teachrs")


@pytest.mark.timeout(90)
def test_the_child_looks_at_teachers_and_datasets_and_reads_uploads(child: ChildChecker, files: Files) -> None:
    options = SPEC["teacher"]["options"]
    weights = save_weights(SmallResNet(SmallResNet.Options(**options)).build((3, 16, 16), 10))
    uploaded = Uploaded(FolderArtifacts(files.cache.parent / "artifacts"))
    upload_id = f"upl_{'7' * 26}"
    uploaded.keep(upload_id, [weights], lambda _: None)
    here = DirectChecker(Files(files.cache.parent / "other", files.roots, uploaded))
    teacher = TeacherSpec(name="small_resnet", options=options, weights=f"upload:{upload_id}")
    dataset = Pick.model_validate(SPEC["dataset"])
    facts = child.teacher(teacher, dataset)
    assert facts == here.teacher(teacher, dataset)
    assert facts["sha256"] == digest(weights)
    assert child.dataset(dataset, 1.0) == here.dataset(dataset, 1.0)
    for wrong in (Pick(name="image_folder", options={"path": "/etc"}), Pick(name="nothing")):
        with pytest.raises(UserError) as there:
            child.dataset(wrong, 1.0)
        with pytest.raises(UserError) as told:
            here.dataset(wrong, 1.0)
        assert (there.value.code, there.value.errors) == (told.value.code, told.value.errors)
    with pytest.raises(UserError, match="no complete upload"):
        child.teacher(teacher.model_copy(update={"weights": f"upload:upl_{'8' * 26}"}), dataset)


@pytest.mark.timeout(90)
def test_a_child_that_dies_is_started_again(child: ChildChecker) -> None:
    child.catalog("strategies")
    assert child._child is not None
    process, _ = child._child
    process.kill()
    process.wait()
    assert child.catalog("strategies")


@pytest.mark.timeout(30)
def test_a_child_that_dies_over_a_question_costs_that_answer_only(files: Files) -> None:
    mortal = ChildChecker(files, limit_seconds=60)

    def ask_or_kill(number: int) -> object:
        if number:
            while mortal._child is None:
                time.sleep(0.01)
            mortal._child[0].kill()
            return None
        try:
            return mortal.check(spec())
        except StillhouseError as error:
            return error

    asked, _ = in_threads(2, ask_or_kill)
    mortal.close()
    assert isinstance(asked, CheckerBusy)
    assert "died" in asked.message


@pytest.mark.timeout(30)
def test_a_child_that_is_late_is_killed_and_the_caller_told_in_time(files: Files) -> None:
    late = ChildChecker(files, limit_seconds=0.2)
    try:
        began = time.monotonic()
        with pytest.raises(CheckerBusy, match="longer than"):
            late.check(spec())
        assert time.monotonic() - began < 10
    finally:
        late.close()


@pytest.mark.timeout(30)
def test_closing_ends_the_child_and_a_question_under_way(files: Files) -> None:
    closing = ChildChecker(files, limit_seconds=60)

    def ask_or_close(number: int) -> object:
        if number:
            time.sleep(0.5)
            closing.close()
            return None
        try:
            return closing.check(spec())
        except StillhouseError as error:
            return error

    asked, _ = in_threads(2, ask_or_close)
    assert isinstance(asked, CheckerBusy)
    with pytest.raises(CheckerBusy, match="shutting down"):
        closing.check(spec())


@pytest.mark.timeout(90)
def test_a_teacher_too_large_for_the_server_is_refused(child: ChildChecker) -> None:
    giant = {"name": "small_resnet", "options": {"depth": 2, "width": 1024}}
    with pytest.raises(UserError, match="too large") as caught:
        child.check(spec(teacher=giant))
    assert caught.value.errors[0].pointer == "/teacher"
    assert child.check(spec())["trials"] == 24, "and the next job is looked at"


class Counting:
    """A checker that knows one plan, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked, self.closed = 0, False
        self.error: Exception | None = None

    def check(self, spec: JobSpec) -> dict[str, Any]:
        self.asked += 1
        time.sleep(0.05)
        if self.error is not None:
            raise self.error
        return {"plan": self.asked}

    def catalog(self, kind: str) -> list[dict[str, Any]]:
        self.asked += 1
        return [{"name": kind}]

    def close(self) -> None:
        self.closed = True


def test_equal_specs_are_checked_once_even_at_the_same_time() -> None:
    inner = Counting()
    checker = CachedChecker(inner)
    assert checker.known(spec()) is None
    assert in_threads(20, lambda _: checker.check(spec())) == [{"plan": 1}] * 20
    assert checker.known(spec()) == {"plan": 1}
    checker.check(spec(labels={"a": "b"}, priority=9, export={"onnx": False}))
    assert inner.asked == 1, "no plan depends on these"
    for change in ({"budget": {"macs": "49%"}}, {"search": {"trials": 3}}, {"space": {"divisor": 4}}):
        checker.check(spec(**change))
    assert inner.asked == 4


def test_a_refusal_is_asked_for_again() -> None:
    inner = Counting()
    inner.error = BudgetImpossible("no student has that", {"macs": "2"})
    checker = CachedChecker(inner)
    for _ in range(2):
        with pytest.raises(BudgetImpossible):
            checker.check(spec())
    inner.error = None
    assert checker.check(spec()) == {"plan": 3}


def test_plans_are_forgotten_with_time_and_with_number() -> None:
    now = [0.0]
    inner = Counting()
    checker = CachedChecker(inner, size=2, keep_seconds=60, clock=lambda: now[0])
    checker.check(spec())
    now[0] = 59.9
    checker.check(spec())
    assert inner.asked == 1
    now[0] = 60.0
    assert checker.known(spec()) is None
    checker.check(spec())
    assert inner.asked == 2, "the files it speaks of may have changed"
    for trials in (1, 2):
        checker.check(spec(search={"trials": trials}))
    checker.check(spec())
    assert inner.asked == 5


def test_a_catalog_is_asked_for_once_and_closing_is_passed_on() -> None:
    inner = Counting()
    checker = CachedChecker(inner)
    assert checker.catalog("costs") == checker.catalog("costs") == [{"name": "costs"}]
    assert inner.asked == 1
    checker.close()
    assert inner.closed


def test_a_checker_that_was_never_asked_closes(tmp_path: Path) -> None:
    ChildChecker(Files(tmp_path), limit_seconds=1).close()
