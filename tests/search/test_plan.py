"""The plan of a job: refused by proof or promised, and what it says it will take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom

from search.budget import Budget
from search.errors import BudgetImpossible, InvalidSpec
from search.estimate import NOTHING, Pace, Span, compute_hours, phases, promoted
from search.evidence import share
from search.files import Files
from search.plan import drawn
from search.projection import Projector
from search.recipe import Recipe, prepare
from search.rungs import Rungs
from search.space import Site
from search.spec import JobSpec, read_spec
from search.trial import Score, State, Trial
from tests.search.chains import Chain

SMALL: dict[str, Any] = {
    "teacher": {"name": "small_resnet", "options": {"width": 8, "depth": 1}},
    "dataset": {"name": "digits", "options": {"size": 16}},
    "budget": {"macs": "50%"},
    "space": {"divisor": 2},
}
MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe(tmp_path: Path) -> MakeRecipe:
    return lambda **changes: prepare(read_spec(SMALL | changes), Files(tmp_path))


# Refusing and promising


@pytest.mark.timeout(60)
def test_a_plan_promises_every_level_with_a_student_that_keeps_it(recipe: MakeRecipe) -> None:
    made = recipe(budget={"macs": ["50%", "20%"], "params": "60%"})
    plan = made.plan()
    json.dumps(plan, allow_nan=False)
    checked = made.check()
    found, levels = checked.found, checked.levels
    assert [level["limits"] for level in plan["levels"]] == [dict(budget.limits) for budget in levels]
    for level, budget in zip(plan["levels"], levels, strict=True):
        assert budget.holds(level["witness"]["cost"])
        assert level["share"]["low"] <= level["share"]["fitting"] / level["share"]["drawn"] <= level["share"]["high"]
    assert plan["levels"][0]["share"]["fitting"] > plan["levels"][1]["share"]["fitting"]
    assert plan["levels"][1]["binding"] == "macs"
    ends = found.costs([found.space.least(), found.space.full()])
    for metric, (least, most) in {metric: values.tolist() for metric, values in ends.items()}.items():
        assert (plan["smallest"][metric], plan["largest"][metric]) == (least, most), "without operators all costs rise"
    assert plan["teacher"]["cost"] == plan["largest"]
    assert sum(plan["space"]["kinds"].values()) == plan["space"]["sites"] == len(found.space.sites)
    assert plan["dataset"]["images"] == {"train": 1150, "validation": 250, "test": 397}
    assert [finding["module"] for finding in plan["report"]] == [finding.module for finding in found.report]


@pytest.mark.timeout(60)
def test_shares_are_of_the_teacher_itself_where_no_student_may_be_as_wide(recipe: MakeRecipe) -> None:
    plan = recipe(budget={"macs": "20%"}, space={"divisor": 2, "blocks": [{"match": "*", "max_keep": 0.5}]}).plan()
    whole = plan["teacher"]["cost"]["macs"]
    assert plan["largest"]["macs"] < whole / 2
    assert plan["limits"]["macs"] == whole // 5


@pytest.mark.timeout(60)
def test_a_budget_is_refused_with_the_exact_minimum_and_just_above_it_accepted_though_no_draw_finds_it(
    recipe: MakeRecipe,
) -> None:
    narrow = {
        "teacher": {"name": "small_resnet", "options": {"width": 26, "depth": 2}},
        "space": {"divisor": 1, "steps": 26, "min_keep": 0.37, "removal": False},
    }
    found = recipe(**narrow).check().found
    smallest, teacher = found.polynomials(found.space.array([found.space.least(), found.space.full()]))["macs"].tolist()
    assert 15 < 100 * smallest / teacher < 16
    with pytest.raises(BudgetImpossible) as caught:
        recipe(**narrow, budget={"macs": "15%"}).levels(found)
    assert f"the smallest reachable is {smallest:,} ({100 * smallest / teacher:.2f} % of the" in caught.value.message
    assert [(error.pointer, error.allowed) for error in caught.value.errors] == [("/budget/macs", (str(smallest),))]
    [budget] = recipe(**narrow, budget={"macs": "16%"}).levels(found)
    assert budget.holds({"macs": smallest})
    costs = drawn(found, 10_000)
    assert not budget.fits(costs).any()
    projected = Projector(found, budget).project(found.space.full())
    assert budget.fits(found.costs([projected]))[0]


def test_what_no_draw_fits_is_said_to_be_rarer_than_the_draws_can_tell() -> None:
    low, high = share(0, 100_000)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 100_000))


@pytest.mark.timeout(60)
def test_an_impossible_level_of_a_ladder_is_pointed_at_where_it_stands(recipe: MakeRecipe) -> None:
    with pytest.raises(BudgetImpossible) as caught:
        recipe(budget={"macs": ["50%", "10"], "params": "60%"}).check()
    assert [error.pointer for error in caught.value.errors] == ["/budget/macs/1"]


@pytest.mark.timeout(60)
def test_an_accuracy_goal_is_searched_at_levels_that_can_all_be_kept(recipe: MakeRecipe) -> None:
    checked = recipe(budget={"accuracy": {"max_drop": 1.0}, "params": "40%"}).check()
    found, levels = checked.found, checked.levels
    assert len(levels) == 6
    assert all(budget.fits(found.costs([found.space.least()]))[0] for budget in levels)


@pytest.mark.timeout(60)
def test_a_front_is_sought_at_levels_of_its_first_cost_or_by_a_strategy_that_can(recipe: MakeRecipe) -> None:
    front = {"front": {"costs": ["params", "macs"]}, "macs": "60%"}
    made = recipe(budget=front, search={"strategy": {"name": "random"}})
    checked = made.check()
    found, levels = checked.found, checked.levels
    assert len(levels) == 6
    assert made.rungs.costs == ("params", "macs")
    strategy = made.open_strategy(found, levels)
    for budget in levels:
        proposal = strategy.ask()
        assert proposal is not None
        assert budget.fits(found.costs([proposal.candidate]))[0]
    alone = recipe(budget=front, search={"strategy": {"name": "nsga2"}})
    strategy = alone.open_strategy(found, levels)
    proposals = [proposal for proposal in (strategy.ask() for _ in range(12)) if proposal is not None]
    limits = Budget(alone.budget(found).limits)
    assert limits.limits.keys() == {"macs"}
    assert all(limits.fits(found.costs([proposal.candidate]))[0] for proposal in proposals)
    fitting = [one for one in proposals if limits.fits(found.costs([one.origin]))[0]]
    assert fitting
    assert all(one.candidate == one.origin for one in fitting)
    with pytest.raises(InvalidSpec) as raised:
        recipe(budget={"front": {"costs": ["macs", "macz"]}})
    assert [error.pointer for error in raised.value.errors] == ["/budget/front/costs/1"]


@pytest.mark.timeout(60)
def test_a_time_is_planned_where_it_can_be_measured_and_left_to_the_workers_where_not(recipe: MakeRecipe) -> None:
    plan = recipe(budget={"latency": {"limit": "100%", "runtime": "torch-cpu"}, "macs": "50%"}).plan()
    [level] = plan["levels"]
    assert 0 < level["witness"]["cost"]["latency"] <= level["limits"]["latency"] == plan["teacher"]["cost"]["latency"]
    assert plan["unmeasured"] == []
    if not torch.cuda.is_available():
        elsewhere = {"limit": "2x faster", "runtime": "torch-cuda", "device": "cuda:0"}
        checked = recipe(budget={"latency": elsewhere, "macs": "50%"}).check()
        assert checked.unmeasured == ["latency"]
        assert [set(budget.limits) for budget in checked.levels] == [{"macs"}]


# The share of a space


@given(st.integers(1, 300), st.data())
def test_the_interval_of_a_share_is_exact(count: int, data: st.DataObject) -> None:
    """At its ends, what was found or more (or less) has a chance of 2.5 %."""
    fitting = data.draw(st.integers(0, count))
    low, high = share(fitting, count)
    assert low <= fitting / count <= high
    if fitting:
        assert binom.sf(fitting - 1, count, low) == pytest.approx(0.025, rel=1e-6)
    if fitting < count:
        assert binom.cdf(fitting, count, high) == pytest.approx(0.025, rel=1e-6)


def test_draws_are_even_and_always_the_same() -> None:
    chain = Chain()
    costs = drawn(chain, 40_000)
    assert all(np.array_equal(costs[metric], again) for metric, again in drawn(chain, 40_000).items())
    every = np.array(np.meshgrid(*(site.choices for site in chain.space.sites), indexing="ij")).reshape(4, -1).T
    budget = Budget({"macs": 400, "params": 80})
    exact = budget.fits(chain.costs_of(every)).mean()
    low, high = share(int(budget.fits(costs).sum()), 40_000)
    assert low <= exact <= high


# Time and cost


def spec(**changes: Any) -> JobSpec:
    return read_spec(SMALL | changes)


def even(seconds: float) -> Span:
    return Span(seconds, seconds, seconds)


def test_phases_add_up_to_what_is_done() -> None:
    made = spec(
        teacher={"name": "small_resnet", "epochs": 3, "training": {"batch_size": 32}},
        search={
            "trials": 1,
            "rungs": [40],
            "views": 2,
            "calibration_batches": 1,
            "training": {"batch_size": 16},
            "weights": "elastic",
            "elastic": {"steps": 50, "training": {"batch_size": 4}},
            "library": {"steps": 10, "coupled_steps": 5, "batch_size": 8, "images": 20},
        },
        finalists={"count": 3, "steps": 100, "training": {"batch_size": 8}},
        resources={"concurrent_trials": 2, "cpus_per_trial": 4},
    )
    sizes = {"train": 100, "validation": 30, "test": 20}
    lots = [Site("a", "width", "stem", (4, 8)), Site("b", "width", "block", (4, 8), "block.keep")]
    teacher, student = Pace(even(0.5), even(0.25)), Pace(even(0.1), even(0.01))
    found = phases(made, Rungs((40,), 3), sizes, 1, teacher, student, student, survey_seconds=7.0, lots=lots)
    looked = 2.86  # 30 images, and one batch of 256, at a hundredth of a second each
    taught = 3 * 96 * 0.5 + (2 * 100 + 2 * 30 + 20) * 0.25
    within, whole = 10 * 8 * 0.5 / 2, 5 * 2 * 0.5
    learned = whole + within + 2 * (256 + 20) * 0.25
    assert {phase.name: phase.seconds.high for phase in found if phase.name not in ("library", "elastic")} == {
        "teacher": pytest.approx(taught),
        "survey": 7.0,
        "search": pytest.approx(2 * (40 * 16 * 0.1 + looked)),
        "finalists": pytest.approx(2 * (100 * 8 * 0.1 + looked)),
    }, "a trial and its repetition; three finalists, two at a time"
    library, elastic = (next(p for p in found if p.name == name) for name in ("library", "elastic"))
    assert library.trial_seconds.expected == pytest.approx(learned)
    assert library.trial_seconds.high == pytest.approx(learned + within - whole)
    assert library.seconds.expected == pytest.approx(learned / 2)
    assert elastic.trial_seconds.expected == pytest.approx(50 * 4 * 0.1)
    assert elastic.seconds.expected == pytest.approx(50 * 4 * 0.1 / 2)
    assert found[0].seconds.low == pytest.approx(taught / 2), "two trials' processors at best halve it"
    unit, cost = compute_hours(made, found)
    assert unit == "cpu-hours"
    searched, trained = 2 * (40 * 16 * 0.1 + looked), 3 * (100 * 8 * 0.1 + looked)
    assert cost.expected == pytest.approx(4 / 3600 * (found[0].trial_seconds.high + learned + 20 + searched + trained))
    assert compute_hours(spec(resources={"gpus_per_trial": 0.5}), found)[0] == "gpu-hours"


def test_a_teacher_with_weights_is_looked_at_and_not_taught() -> None:
    made = spec(teacher={"name": "small_resnet", "weights": "teacher.safetensors"}, search={"views": 1})
    sizes = {"train": 100, "validation": 30, "test": 20}
    rungs = Rungs((40,), 3)
    nothing = Pace(NOTHING, NOTHING)
    [teacher, *_] = phases(made, rungs, sizes, 1, Pace(even(9.0), even(1.0)), nothing, nothing, survey_seconds=0)
    assert teacher.trial_seconds.high == 180.0


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(1, 4), st.floats(0, 0.5))
def test_promotions_are_those_of_the_search(trials: int, reduction: int, count: int, exempt: float) -> None:
    """Played through by the rule of the search itself, one trial after the other."""
    rungs = Rungs(tuple(range(1, count + 1)), reduction, exempt)
    reached = _reached(rungs, np.random.default_rng(1).permutation(trials).tolist())
    assert promoted(rungs, trials) == [even(float(number)) for number in reached]


def test_of_a_ladder_one_trial_of_every_level_goes_on_at_least() -> None:
    assert promoted(Rungs((10, 20), 3), 7, levels=3) == [even(7.0), Span(2.0, 2.5, 3.0)]


def _reached(rungs: Rungs, ranks: list[int]) -> list[int]:
    known: list[Trial] = []

    def advance(trial: Trial) -> Trial:
        score = Score(trial.rung, rungs.steps[trial.rung], 1 / (1 + int(trial.key)), 0.0, 1.0)
        last = trial.rung + 1 == len(rungs.steps)
        return Trial(
            trial.id, trial.number, trial.key, {}, {}, {}, State.COMPLETED if last else State.PENDING,
            scores=(*trial.scores, score),
        )  # fmt: skip

    for number, rank in enumerate(ranks):
        known.append(advance(Trial(str(number), number, str(rank), {}, {}, {}, State.PENDING)))
        while (best := rungs.promotable(known, len(ranks) - number - 1)) is not None:
            known[best.number] = advance(best)
    return [sum(trial.rung > rung for trial in known) for rung in range(len(rungs.steps))]


# Large networks


@pytest.mark.timeout(120)
def test_a_resnet_50_with_three_limits_is_planned_from_files(tmp_path: Path) -> None:
    """And its least values are limits that can be kept together, but none of them one lower."""
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    for number, pixels in enumerate(images):
        folder = tmp_path / "images" / ("one", "other")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    document = {
        "teacher": {"name": "torchvision", "options": {"builder": "resnet50"}},
        "dataset": {"name": "image_folder", "options": {"path": str(tmp_path / "images"), "size": 64}},
        "budget": {"macs": "30%", "params": "30%", "activation_bytes": "70%"},
    }
    made = prepare(read_spec(document), Files(tmp_path / "cache"))
    plan = made.plan()
    [level] = plan["levels"]
    assert all(level["witness"]["cost"][metric] <= limit for metric, limit in level["limits"].items())
    found, least = made.check().found, plan["smallest"]
    tight = {metric: least[metric] for metric in level["limits"]}
    assert prepare(read_spec(document | {"budget": tight}), Files(tmp_path / "cache")).levels(found)
    for metric in tight:
        budget = tight | {metric: tight[metric] - 1}
        impossible = prepare(read_spec(document | {"budget": budget}), Files(tmp_path / "cache"))
        with pytest.raises(BudgetImpossible, match=f"the smallest reachable is {least[metric]:,}") as caught:
            impossible.levels(found)
        assert caught.value.needed == {metric: str(least[metric])}
