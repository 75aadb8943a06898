"""The elastic student: shared weights that are cut, trained, checkpointed and averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from search.budget import Budget
from search.distillers.hinton import Hinton
from search.elastic import Draw, Elastic, average, between
from search.quality import quality
from search.space import Candidate
from search.spec import Schedule
from search.training import Pupil, Stretch, recalibrate, train
from tests.search.weights import answered, surveyed

pytestmark = pytest.mark.timeout(60)

SCHEDULE = Schedule(batch_size=32, learning_rate=0.03)
LOSS = Hinton(Hinton.Options())


def budget(share: float) -> Budget:
    return Budget({"macs": int(surveyed().cost["macs"] * share)})


def drawn(seed: int) -> Candidate:
    return surveyed().space.sample(np.random.default_rng(seed))


def learn(pupil: Pupil, start: int, stop: int, end: int = 20) -> list[float]:
    return [loss for _, loss in train(pupil, answered(), LOSS, SCHEDULE, Stretch(start, stop, (0, end)))]


@pytest.mark.parametrize("seed", range(6))
def test_what_gradients_flow_through_is_what_is_grafted(seed: int) -> None:
    """Every tensor of a student is that slice of its donor, whatever kinds of site were chosen."""
    found, candidate = surveyed(), drawn(seed)
    student = found.graft(candidate).state_dict()
    slices = found.tensors(candidate, found.donor)
    assert slices.keys() == student.keys()
    assert all(torch.equal(slices[name], tensor) for name, tensor in student.items())


def test_before_training_it_is_the_teacher() -> None:
    for seed in range(3):
        mine, cut = (donor.graft(drawn(seed)).state_dict() for donor in (Elastic(surveyed()), surveyed()))
        assert all(torch.equal(mine[name], tensor) for name, tensor in cut.items())


def test_a_step_changes_the_slice_of_its_candidate_and_nothing_else() -> None:
    found = surveyed()
    widths = {site.name: site.least if site.kind == "width" else site.full for site in found.space.sites}
    candidate = found.space.candidate(widths)
    elastic = Elastic(found, lambda step: candidate)
    without_decay = SCHEDULE.model_copy(update={"weight_decay": 0.0})
    for _ in train(Pupil(elastic), answered(), LOSS, without_decay, Stretch(0, 1, (0, 10))):
        pass
    touched = found.tensors(candidate, type(found.donor).of(elastic.network))
    before = found.tensors(candidate, found.donor)
    assert not torch.equal(touched["conv1.weight"], before["conv1.weight"])
    kept = touched["conv1.weight"].shape[0]
    assert torch.equal(
        elastic.network.get_parameter("conv1.weight")[kept:], found.teacher.get_parameter("conv1.weight")[kept:]
    )


def test_it_goes_on_from_a_checkpoint_to_the_same_bits() -> None:
    found = surveyed()
    draw = Draw(found, [budget(0.5)], [], 0.5, seed=1)
    whole, first = Pupil(Elastic(found, draw)), Pupil(Elastic(found, draw))
    losses = learn(whole, 0, 8)
    head = learn(first, 0, 3)
    second = Pupil(Elastic(found, Draw(found, [budget(0.5)], [], 0.5, seed=1)))
    second.restore(first.checkpoint())
    assert head + learn(second, 3, 8) == losses
    assert whole.checkpoint() == second.checkpoint()


def test_training_it_brings_untrained_candidates_nearer_to_the_teacher() -> None:
    found = surveyed()
    elastic = Elastic(found, Draw(found, [budget(0.5)], [], 0.0, seed=0))
    learn(Pupil(elastic), 0, 60, 60)
    distances = []
    for donor in (found, elastic):
        total = 0.0
        for seed in range(4):
            student = donor.graft(Draw(found, [budget(0.5)], [], 0.0, seed=100 + seed)(0))
            recalibrate(student, answered(), batches=4, batch_size=32)
            total += quality(student, answered()).kl
        distances.append(total)
    assert distances[1] < 0.7 * distances[0]


def test_the_mean_of_one_is_itself_and_of_two_lies_between() -> None:
    found = surveyed()
    pupils = [Pupil(Elastic(found, Draw(found, [budget(0.5)], [], 0.0, seed=seed))) for seed in range(2)]
    for pupil in pupils:
        learn(pupil, 0, 2)
    one, two = (pupil.checkpoint() for pupil in pupils)
    assert average([one]) == one
    mean = Pupil(Elastic(found))
    mean.restore(average([one, two]))
    assert mean.step == 2
    weights = [pupil.model.get_parameter("network.conv1.weight") for pupil in (*pupils, mean)]
    torch.testing.assert_close(weights[2], (weights[0] + weights[1]) / 2)
    assert mean.momentum.keys() == pupils[0].momentum.keys() | pupils[1].momentum.keys()


class TestDraw:
    def test_it_is_a_function_of_seed_and_step_and_keeps_the_budgets(self) -> None:
        levels = [budget(0.6), budget(0.2)]
        draw, twin = (Draw(surveyed(), levels, [surveyed().space.full()], 0.5, seed=4) for _ in range(2))
        candidates = [draw(step) for step in range(24)]
        assert [twin(step) for step in reversed(range(24))] == candidates[::-1]
        macs = surveyed().costs(candidates)["macs"]
        assert macs.max() <= levels[0].limits["macs"]
        assert (macs <= levels[1].limits["macs"]).any()
        assert (macs > levels[1].limits["macs"]).any()

    def test_focused_it_stays_near_the_centres(self) -> None:
        centre = Draw(surveyed(), [budget(0.3)], [], 0.0, seed=0)(0)
        near = Draw(surveyed(), [budget(0.3)], [centre], 1.0, seed=1)
        far = Draw(surveyed(), [budget(0.3)], [], 1.0, seed=1)

        def distance(draw: Draw) -> int:
            return sum(one != two for step in range(12) for one, two in zip(draw(step), centre, strict=True))

        assert distance(near) < 0.6 * distance(far)

    def test_budgets_between_two_levels_are_even_on_a_logarithmic_scale(self) -> None:
        found = [one.limits["macs"] for one in between([Budget({"macs": 1024}), Budget({"macs": 8})], 8)]
        assert found == [1024, 512, 256, 128, 64, 32, 16, 8]
        assert between([Budget({"macs": 5})]) == [Budget({"macs": 5})]
