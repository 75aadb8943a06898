"""Library, plan and elastic student: made once, shared, and gone on with where a dead driver left them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search.elastic import Elastic
from search.library import Library, lots
from search.scratch import Grafting
from search.spec import JobSpec
from search.structure import Learned
from search.surgery import Survey
from tests.workers.scripted import Calm
from tests.workers.small_job import small_spec, small_workload
from workers.backends.inline import InlineBackend
from workers.memory import MemoryArtifacts
from workers.narrowing import Descent, narrow
from workers.ports import Claim
from workers.preparing import Preparing
from workers.results import LearnedResult, PlanResult, StructureResult, WayResult
from workers.scoring import Scorer
from workers.shelves import Index, Shelves, library_of
from workers.workload import Workload

pytestmark = pytest.mark.timeout(60)

SEARCH: dict[str, Any] = {
    **small_spec().search.model_dump(mode="json"),
    "library": {"steps": 2, "coupled_steps": 1, "images": 64, "choices": 8},
    "structure": {"steps": 12, "every": 3, "training": {"batch_size": 16, "learning_rate": 0.05}},
    "elastic": {"steps": 12, "every": 2, "training": {"batch_size": 16, "learning_rate": 0.03}},
}
SPACE = {"divisor": 1, "steps": 2}


def job(budget: str = "50%", **search: Any) -> JobSpec:
    return small_spec(space=SPACE, budget={"macs": budget}, search=SEARCH | search)


class PowerCut(Exception):
    """The machine is gone."""


class Workplace:
    """One teacher, surveyed, with everything made from it kept in memory."""

    def __init__(self, folder: Path) -> None:
        self.artifacts = MemoryArtifacts()
        self.recipe, self.workload = small_workload(job(), self.artifacts, folder)
        self.survey: Survey = self.recipe.survey(self.recipe.build_teacher())
        self.notes: list[dict[str, Any]] = []

    def preparing(
        self, spec: JobSpec, *, dies_after: int | None = None, artifacts: MemoryArtifacts | None = None, name: str = "a"
    ) -> Preparing:
        """For a driver of that job, whose machine is gone after so many words from its workers."""
        claim = Claim(f"job_{name}", 1, spec.model_dump(mode="json"))
        workload: Workload = replace(self.workload, spec=claim.spec, artifacts=artifacts or self.artifacts)
        levels = replace(self.recipe, spec=spec).levels(self.survey)
        return Preparing(
            claim, workload, self.survey, levels, Fragile(dies_after), Calm(), self.note, lambda: PowerCut()
        )

    def note(self, kind: str, **data: Any) -> None:
        assert kind == "PROGRESS"
        self.notes.append(data)


class Fragile(InlineBackend):
    def __init__(self, words: int | None) -> None:
        super().__init__()
        self._words = words

    def map(self, *args: Any, **kw: Any) -> Iterator[tuple[int, Any]]:
        for word in super().map(*args, **kw):
            if self._words == 0:
                raise PowerCut
            yield word
            self._words = None if self._words is None else self._words - 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("place"))


class TestLibrary:
    def test_it_holds_every_choice_but_the_full_ones_and_is_gone_on_with(self, place: Workplace) -> None:
        count = sum(len(site.choices) - 1 for site in place.survey.space.sites)
        with pytest.raises(PowerCut):
            place.preparing(job(), dies_after=3).library()
        found = place.preparing(job()).library()
        assert (found.entries, found.reused, found.trained, found.failed) == (count, 4, count - 4, 0)
        index = Index.model_validate_json(place.artifacts.get(found.index))
        assert {one.lot for one in index.shelved} == set(lots(place.survey.space, job().search.library))
        assert found.seconds < sum(one.seconds for one in index.shelved)
        assert all(harm > 0 for harm in index.harms.values())
        assert place.notes[-1]["total"] == count

    def test_another_budget_trains_none_again_and_has_its_plan_in_a_second(self, place: Workplace) -> None:
        first, second = (place.preparing(job(budget), name=budget[:2]) for budget in ("20%", "30%"))
        first.library()
        library = second.library()
        assert library.trained == 0
        assert library.reused == library.entries
        plan = second.plan(library)
        assert plan.seconds < 1
        assert {start.kind for start in plan.starts} == {"optimum", "uniform"}
        costs = place.survey.costs([start.candidate for start in plan.known(place.survey.space)])
        assert costs["macs"].max() <= 0.3 * place.survey.cost["macs"]
        index = Index.model_validate_json(place.artifacts.get(library.index))
        for start in plan.starts:
            full = {site.name: site.full for site in place.survey.space.sites}
            harms = [harm for lot, harm in index.harms.items() if start.choices[lot.site] == lot.choice]
            assert start.harm == pytest.approx(sum(harms))
            assert len(harms) == sum(start.choices[site] != full[site] for site in full)

    @pytest.mark.parametrize("broken", ["json", "safetensors"])
    def test_an_entry_that_is_not_whole_is_learned_again(self, place: Workplace, broken: str) -> None:
        place.preparing(job()).library()
        lot = lots(place.survey.space, job().search.library)[0]
        shelves = Shelves.of(place.workload)
        files = place.artifacts._files
        key = next(key for key, data in files.items() if key.endswith(".json") and told(data) == lot_told(lot))
        if broken == "json":
            files[key] = b"{"
        else:
            del files[key.replace(".json", ".safetensors")]
        assert shelves.find([lot]) == {}
        assert place.preparing(job()).library().trained == 1
        assert lot in shelves.find([lot])

    def test_a_worker_grafts_students_from_it(self, place: Workplace) -> None:
        """A candidate of one choice has, in that choice's block, the very tensors that were learned."""
        made = place.preparing(job()).library()
        shelves, full = Shelves.of(place.workload), place.survey.space.full().as_dict()
        homes = [
            entry
            for lot in lots(place.survey.space, job().search.library)
            if (entry := shelves.entry(lot)).home is not None
        ]
        assert homes
        donor = library_of(place.survey, place.workload, made.index)
        for entry in homes[:3]:
            student = donor.graft(place.survey.space.candidate({**full, entry.lot.site: entry.lot.choice}))
            state, sliced = student.state_dict(), place.survey.graft(place.survey.space.full()).state_dict()
            assert all(torch.equal(state[name], tensor) for name, tensor in entry.tensors.items())
            assert any(name not in sliced or not torch.equal(sliced[name], state[name]) for name in entry.tensors)
        assert isinstance(grafting(replace(place.workload, library=made.index)), Library)

    def test_other_choices_find_the_same_shelves_and_other_full_widths_do_not(self, place: Workplace) -> None:
        """Where every student is narrower, another network surrounds the choice that is distilled alone."""

        def shelves(**changed: Any) -> Shelves:
            spec = small_spec(space=SPACE | changed, search=SEARCH)
            return Shelves.of(replace(place.workload, spec=spec.model_dump(mode="json")))

        place.preparing(job()).library()
        lot = lots(place.survey.space, job().search.library)[0]
        assert lot in shelves(divisor=2).find([lot])
        assert shelves(blocks=[{"match": "layer1*", "max_keep": 0.5}]).find([lot]) == {}
        assert shelves(groups=True).find([lot]) == {}

    def test_other_lessons_make_another_library(self, place: Workplace) -> None:
        place.preparing(job()).library()
        longer = place.preparing(job(library={"steps": 3, "coupled_steps": 1, "images": 64}))
        assert longer.library().reused == 0


def grafting(workload: Workload) -> Grafting:
    """What a worker of that workload grafts from."""
    return Scorer(workload)._evaluators["search"].donor


def place_key(artifacts: MemoryArtifacts) -> str:
    (key,) = (key for key in artifacts._files if key.startswith("elastic/"))
    return key


def told(data: bytes) -> bytes:
    return data.split(b',"harm"')[0]


def lot_told(lot: Any) -> bytes:
    return f'{{"site":"{lot.site}","choice":{lot.choice}'.encode()


class TestElastic:
    def weights(self, place: Workplace, spec: JobSpec, *deaths: int) -> tuple[bytes, MemoryArtifacts]:
        artifacts = MemoryArtifacts()
        artifacts._files |= place.artifacts._files
        for death in deaths:
            with pytest.raises(PowerCut):
                place.preparing(spec, dies_after=death, artifacts=artifacts).elastic(None, {})
        found = place.preparing(spec, artifacts=artifacts).elastic(None, {})
        assert not found.reused
        return artifacts.get(found.key), artifacts

    @pytest.mark.parametrize("workers", [1, 2])
    def test_drivers_that_die_leave_no_trace_in_the_weights(self, place: Workplace, workers: int) -> None:
        spec = job().model_copy(update={"resources": job().resources.model_copy(update={"concurrent_trials": workers})})
        whole, artifacts = self.weights(place, spec)
        assert self.weights(place, spec, 1, 3)[0] == whole
        donor = grafting(replace(place.workload, artifacts=artifacts, elastic=place_key(artifacts)))
        assert isinstance(donor, Elastic)
        begun = dict(place.survey.teacher.named_parameters())
        assert any(not torch.equal(begun[name], weight) for name, weight in donor.network.named_parameters())
        again = place.preparing(spec, artifacts=artifacts, name="another").elastic(None, {})
        assert again.reused
        assert artifacts.get(again.key) == whole

    def test_what_it_is_focused_on_decides_its_key(self, place: Workplace) -> None:
        artifacts = MemoryArtifacts()
        artifacts._files |= place.artifacts._files
        least = place.survey.space.least().as_dict()
        plan = PlanResult.model_validate(
            {"starts": [{"level": 0, "kind": "optimum", "choices": least, "harm": 1.0}], "seconds": 0.1}
        )
        keys = {
            place.preparing(job(budget), artifacts=artifacts, name=str(number)).elastic(given, {}).key
            for number, (budget, given) in enumerate([("50%", None), ("50%", plan), ("30%", None)])
        }
        assert len(keys) == 3


class TestStructure:
    def learned(self, place: Workplace, *deaths: int) -> tuple[StructureResult, MemoryArtifacts]:
        artifacts, spec = (
            MemoryArtifacts(),
            job().model_copy(update={"budget": small_spec(budget={"macs": ["60%", "40%"]}).budget}),
        )
        artifacts._files |= place.artifacts._files
        for death in deaths:
            with pytest.raises(PowerCut):
                place.preparing(spec, dies_after=death, artifacts=artifacts).structure({})
        found = place.preparing(spec, artifacts=artifacts).structure({})
        again = place.preparing(spec, artifacts=artifacts, name="another").structure({})
        assert again == found.model_copy(update={"reused": True, "seconds": 0.0})
        return found, artifacts

    def test_drivers_that_die_leave_no_trace_in_what_is_learned(self, place: Workplace) -> None:
        """Every death comes at another word; what was said before the checkpoint is said once in the end."""
        whole, artifacts = self.learned(place)
        mended, others = self.learned(place, 1, 3, 5)
        assert mended.model_copy(update={"seconds": whole.seconds}) == whole
        assert all(artifacts.get(key) == others.get(key) for key in whole.weights)
        assert [way.step for way in whole.way] == sorted({way.step for way in whole.way})
        assert whole.way[-1].step == 12

    def test_there_is_a_start_for_every_level_and_a_network_to_graft_from(self, place: Workplace) -> None:
        found, artifacts = self.learned(place)
        starts = found.known(place.survey.space)
        assert [(start.level, start.kind) for start in starts] == [(0, "learned"), (1, "learned")]
        costs = place.survey.costs([start.candidate for start in starts])["macs"] / place.survey.cost["macs"]
        assert 0.3 < costs[1] <= 0.4 < costs[0] <= 0.6
        donor = grafting(replace(place.workload, artifacts=artifacts, structure=found.weights))
        assert isinstance(donor, Learned)
        for start in starts:
            mine, cut = (one.graft(start.candidate).state_dict() for one in (donor, place.survey))
            assert {name: tensor.shape for name, tensor in mine.items()} == {
                name: tensor.shape for name, tensor in cut.items()
            }
            assert any(not torch.equal(mine[name], tensor) for name, tensor in cut.items())

    def test_it_is_walked_as_ray_walks_it(self, place: Workplace) -> None:
        """By sending; first from the beginning, then from where it ended, with all its words to be said again."""
        artifacts = MemoryArtifacts()
        artifacts._files |= place.artifacts._files
        for _ in range(2):
            words = narrow(
                Descent(({"macs": 10**6},), {}, "folder", "weights"), replace(place.workload, artifacts=artifacts)
            )
            said = [next(words)]
            with suppress(StopIteration):
                while True:
                    said.append(words.send(True))
            assert [type(word) for word in said[-2:]] == [WayResult, LearnedResult]

    def test_progress_says_what_the_blocks_cost(self, place: Workplace) -> None:
        place.notes.clear()
        found, _ = self.learned(place)
        told = [note for note in place.notes if "blocks" in note]
        assert [note["step"] for note in told] == [way.step for way in found.way]
        assert sum(told[-1]["blocks"].values()) == pytest.approx(found.levels[-1].cost["macs"], abs=len(found.way) + 8)
