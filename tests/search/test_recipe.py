"""What levels a spec comes to for a teacher."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget
from search.errors import BudgetImpossible, InvalidSpec, UserError
from search.files import Files
from search.recipe import Recipe, prepare
from search.spec import read_spec
from search.surgery import Survey
from tests.workers.small_job import small_spec

pytestmark = pytest.mark.timeout(60)  # the first count in a process imports torch's compiler


def recipe(budget: dict[str, Any]) -> Recipe:
    return prepare(small_spec(budget=budget), Files(cache=Path("unused")))


class Teacher:
    """The survey of a small network, and what it costs."""

    def __init__(self) -> None:
        made = recipe({"macs": "50%"})
        self.survey: Survey = made.survey(made.build_teacher())
        full = self.survey.costs([self.survey.space.full()])
        self.cost = {metric: int(values[0]) for metric, values in full.items()}
        self.least = {metric: least for metric, (least, _) in self.survey.bounds().items()}

    def levels(self, budget: dict[str, Any]) -> tuple[Budget, ...]:
        return recipe(budget).levels(self.survey)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher()


def test_a_job_without_a_ladder_has_one_level(teacher: Teacher) -> None:
    macs = teacher.cost["macs"] * 40 // 100
    assert teacher.levels({"macs": "40%", "params": "4k"}) == (Budget({"macs": macs, "params": 4_000}),)


def test_a_ladder_has_a_level_for_each_of_its_limits(teacher: Teacher) -> None:
    macs, params = teacher.cost["macs"] // 2, teacher.cost["params"] * 70 // 100
    budget = {"macs": ["50%", "60k"], "params": "70%"}
    assert teacher.levels(budget) == (
        Budget({"macs": macs, "params": params}),
        Budget({"macs": 60_000, "params": params}),
    )
    assert recipe(budget).budget(teacher.survey) == Budget({"macs": macs, "params": params})


def test_an_impossible_level_is_pointed_at(teacher: Teacher) -> None:
    least = teacher.least["macs"]
    assert len(teacher.levels({"macs": ["50%", least]})) == 2
    with pytest.raises(BudgetImpossible, match=f"{least:,}") as raised:
        teacher.levels({"macs": ["50%", least - 1]})
    assert raised.value.errors[0].pointer == "/budget/macs/1"
    with pytest.raises(BudgetImpossible) as raised:
        teacher.levels({"macs": ["50%", "40%"], "params": teacher.least["params"] - 1})
    assert raised.value.errors[0].pointer == "/budget/params"


def test_an_accuracy_to_be_kept_gives_six_levels_even_on_a_logarithmic_scale(teacher: Teacher) -> None:
    found = teacher.levels({"accuracy": {"max_drop": 1}, "params": "90%"})
    assert len(found) == 6
    assert {budget.limits["params"] for budget in found} == {teacher.cost["params"] * 90 // 100}
    whole = math.log(teacher.cost["macs"] / teacher.least["macs"])
    macs = [teacher.cost["macs"], *(budget.limits["macs"] for budget in found), teacher.least["macs"]]
    steps = [math.log(former / later) / whole for former, later in itertools.pairwise(macs)]
    assert steps == pytest.approx([1 / 12, *[1 / 6] * 5, 1 / 12], rel=0.01)


@given(share=st.integers(30, 100), metric=st.sampled_from(["macs", "params"]))
def test_a_limit_of_the_cost_to_be_made_small_is_where_its_levels_begin(
    teacher: Teacher, share: int, metric: str
) -> None:
    goal = {"accuracy": {"max_drop": 1, "cheapest": metric}}
    found = teacher.levels(goal | {metric: f"{share}%"})
    values = [budget.limits[metric] for budget in found]
    assert all(budget.limits.keys() == {metric} for budget in found)
    assert values == sorted(set(values), reverse=True)
    assert teacher.least[metric] <= values[-1]
    assert values[0] <= teacher.cost[metric] * share // 100
    assert recipe(goal).budget(teacher.survey) == Budget({})


@pytest.mark.parametrize(
    ("budget", "pointer"),
    [
        ({"mac": "20%"}, "/budget/mac"),
        ({"accuracy": {"max_drop": 1, "cheapest": "mac"}}, "/budget/accuracy/cheapest"),
    ],
)
def test_a_cost_that_nobody_knows_is_refused_before_anything_is_built(budget: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidSpec, match="no cost is called") as raised:
        recipe(budget)
    assert [error.pointer for error in raised.value.errors] == [pointer]


def untaught(**changes: Any) -> dict[str, Any]:
    """What a job without a teacher must say of itself."""
    search = small_spec().search.model_dump(mode="json") | {"views": 2} | changes.pop("search", {})
    teacher = {"name": "small_resnet", "options": {"width": 4, "depth": 1}, "epochs": 0}
    return {"teacher": teacher, "distill": {"name": "pcl"}, "search": search} | changes


@pytest.mark.parametrize("distill", ["pcl", "supervised"])
def test_a_job_may_have_no_teacher(distill: str) -> None:
    made = prepare(small_spec(**untaught(distill={"name": distill})), Files(cache=Path("unused")))
    assert not made.spec.teacher.taught
    made.check()


def test_what_asks_for_a_teacher_is_refused_where_there_is_none() -> None:
    document = untaught(
        distill={"name": "hinton"},
        search={"weights": "library", "strategy": {"name": "planned"}, "rungs": [0, 4], "distill": {"name": "dkd"}},
        budget={"accuracy": {"max_drop": 1}},
    )
    with pytest.raises(InvalidSpec, match="there is no teacher") as raised:
        prepare(small_spec(**document), Files(cache=Path("unused")))
    assert {error.pointer for error in raised.value.errors} == {
        "/distill/name",
        "/search/distill/name",
        "/search/weights",
        "/search/strategy/name",
        "/search/rungs/0",
        "/budget/accuracy/max_drop",
    }


def test_a_teacher_with_weights_needs_no_epochs() -> None:
    teacher = {"name": "small_resnet", "epochs": 0, "weights": "somewhere.safetensors"}
    assert prepare(small_spec(teacher=teacher), Files(cache=Path("unused"))).spec.teacher.taught


def test_peers_need_several_views() -> None:
    made = prepare(small_spec(**untaught(search={"views": 1})), Files(cache=Path("unused")))
    with pytest.raises(UserError, match=r"raise `search\.views`") as raised:
        made.check()
    assert raised.value.errors[0].pointer == "/distill/options/peers"


DETECTION: dict[str, Any] = {
    "task": "detection",
    "teacher": {"name": "detector", "options": {"backbone": {"name": "small_resnet"}}},
    "dataset": {"name": "scenes"},
    "budget": {"params": "50%"},
    "search": {"strategy": {"name": "evolution"}, "weights": "slice"},
    "distill": {"name": "hierarchical"},
}


def pointed_at(**changed: Any) -> dict[str, str]:
    """Where `prepare` finds mistakes in a job of detection that is changed so, and what it says of them."""
    with pytest.raises(InvalidSpec) as raised:
        prepare(read_spec(DETECTION | changed), Files(cache=Path("unused")))
    return {found.pointer: found.message for found in raised.value.errors}


def test_a_job_of_detection_takes_what_is_made_for_it() -> None:
    made = prepare(read_spec(DETECTION), Files(cache=Path("unused")))
    assert made.info.task == "detection"


def test_what_is_made_for_classifiers_is_pointed_at_in_a_job_of_detection() -> None:
    found = pointed_at(
        teacher={"name": "small_resnet"},
        search={"rungs": [0, 40], "distill": {"name": "srm"}},
        distill={"name": "hinton"},
        space={"resolutions": [64]},
    )
    assert set(found) == {
        "/teacher/name",
        "/search/weights",
        "/search/strategy/name",
        "/search/rungs/0",
        "/search/distill/name",
        "/distill/name",
        "/space/resolutions",
    }
    assert found["/distill/name"] == "`hinton` is for classification, and the job is one of detection"
    assert "`slice` or `scratch`" in found["/search/weights"]


def test_what_is_made_for_detectors_is_pointed_at_in_a_job_of_classification() -> None:
    assert set(pointed_at(task="classification", search={"weights": "slice"})) == {"/teacher/name", "/distill/name"}


def test_a_dataset_for_another_task_is_pointed_at() -> None:
    made = prepare(read_spec(DETECTION | {"dataset": {"name": "digits"}}), Files(cache=Path("unused")))
    with pytest.raises(UserError, match="a dataset of classification, and the job is one of detection") as raised:
        made.check()
    assert raised.value.errors[0].pointer == "/dataset/name"
