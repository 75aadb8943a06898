"""Widths that are learned: the regulariser by hand, deaths that stay, a path that is kept, checkpoints, weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from search.budget import Budget
from search.costs.measure import count
from search.costs.relaxed import Relaxed
from search.course import Material
from search.distillers.hinton import Hinton
from search.quality import outputs
from search.space import Candidate
from search.sparsity import Strengths
from search.spec import BlockStrength, Schedule, SpaceSpec, StructureSpec
from search.structure import Learned, Learning
from search.surgery import Survey, survey
from search.teachers.small import SmallMobileNet
from search.training import Pupil
from tests.search.weights import INFO, answered, surveyed

pytestmark = pytest.mark.timeout(60)

LOSS = Hinton(Hinton.Options(alpha=0.9))
FAST = StructureSpec(
    steps=30, strength=30, threshold=0.1, every=8, training=Schedule(batch_size=16, learning_rate=0.2, drops=(0.8,))
)
EVERY = SpaceSpec(divisor=1, steps=64, min_keep=0.01, removal=False)


class Toy(nn.Module):
    """Three blocks, each a convolution with its batch norm; the second one is depthwise. 8 x 8 pixels all the way."""

    def __init__(self, norms: bool = True) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.two = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.three = nn.Conv2d(6, 10, 1, bias=False)
        norm = nn.BatchNorm2d if norms else (lambda channels: nn.Identity())
        self.norm1, self.norm2, self.norm3 = norm(6), norm(6), norm(10)
        self.act = nn.ReLU()
        self.pool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(10, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm1(self.one(images)))
        x = self.act(self.norm2(self.two(x)))
        x = self.act(self.norm3(self.three(x)))
        logits: torch.Tensor = self.fc(self.flat(self.pool(x)))
        return logits


@cache
def toy(norms: bool = True) -> Survey:
    torch.manual_seed(0)
    network = Toy(norms)
    for name, parameter in network.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, -1.0, 1.0)
    return survey(network, torch.randn(2, 3, 8, 8), EVERY)


@cache
def mobile() -> Survey:
    """Residual sums, depthwise convolutions, and every number of channels a choice."""
    options = SmallMobileNet.Options(width=0.25, depth=0.5, expansion=2)
    network = SmallMobileNet(options).build(INFO.shape, len(INFO.classes))
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had learned something
            nn.init.uniform_(module.weight, 0.2, 1.2, generator)
    return survey(network, torch.randn(2, *INFO.shape, generator=torch.Generator().manual_seed(0)), EVERY)


def learning(found: Survey, share: float = 0.5, spec: StructureSpec = FAST, metric: str = "macs") -> Learning:
    return Learning(found, found, [Budget({metric: int(found.cost[metric] * share)})], LOSS, spec)


def walked(learner: Learning, pupil: Pupil, stop: int) -> list[float]:
    material = Material.of(learner.survey, answered(), 1, learner.spec.steps)
    return [loss for _, loss in learner.walk(pupil, answered(), stop, material)]


def learned(found: Survey, share: float = 0.5, spec: StructureSpec = FAST) -> tuple[Learning, Pupil]:
    learner = learning(found, share, spec)
    walked(learner, pupil := learner.begin(), spec.steps)
    return learner, pupil


class TestPrice:
    """The regulariser on a network small enough to be written down."""

    @staticmethod
    def by_hand(network: Toy) -> torch.Tensor:
        """
        As MorphNet has it: for a convolution c * (alive in * sum of scales out + alive out * sum of scales in), for a
        linear layer the same with its inputs alone, since the logits stay. A depthwise convolution costs c for every
        channel; MorphNet counts that once for its input and once for its output, which here are one and the same.
        """
        first, second, third = (norm.weight.abs() for norm in (network.norm1, network.norm2, network.norm3))
        one, two = torch.maximum(first, second), third
        pixels = 64
        dense = pixels * 9 * (3 * one.sum()) + pixels * (6 * two.sum() + 10 * one.sum()) + 5 * two.sum()
        return dense + pixels * 9 * one.sum()

    def test_it_is_the_formula(self) -> None:
        found = toy()
        learner = learning(found, spec=FAST.model_copy(update={"weighting": 1.0}))
        network = copy.deepcopy(found.teacher).requires_grad_(True)
        prices = learner.prices(learner.all_alive(), ["macs"], learner.legs[0]) * found.cost["macs"]
        value = (Strengths(found, network)() * torch.from_numpy(prices)).sum()
        twin = copy.deepcopy(found.teacher).requires_grad_(True)
        expected = self.by_hand(twin)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        value.backward()
        expected.backward()
        for name in ("norm1", "norm2", "norm3"):
            mine, other = (one.get_parameter(f"{name}.weight").grad for one in (network, twin))
            torch.testing.assert_close(mine.float(), other)

    def test_its_gradient_is_that_of_finite_differences(self) -> None:
        found = toy()
        learner = learning(found, spec=FAST.model_copy(update={"weighting": 1.0}))
        network = copy.deepcopy(found.teacher).double().requires_grad_(True)
        alive = learner.all_alive()
        alive[[1, 8]] = False  # prices follow who is alive
        prices = torch.from_numpy(learner.prices(alive, ["macs"], learner.legs[0]))
        strengths = Strengths(found, network)
        (strengths() * prices).sum().backward()
        scales = [network.get_parameter(f"norm{at}.weight") for at in (1, 2, 3)]
        for scale in scales:
            for channel in range(len(scale)):
                ends = []
                for move in (1e-6, -1e-6):
                    with torch.no_grad():
                        scale[channel] += move
                        ends.append(float((strengths() * prices).sum()))
                        scale[channel] -= move
                assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(scale.grad[channel]), abs=1e-6)

    def test_a_price_is_what_one_channel_more_costs(self) -> None:
        """Of counts that are linear in each width: in whole steps as in the limit."""
        found = mobile()
        for metric in ("macs", "params", "weight_bytes"):
            relaxed = Relaxed(found.polynomials, metric)
            counts = np.array([site.full for site in found.space.sites], dtype=float)
            marginal = relaxed.marginal(counts)
            for site in found.widths:
                less = counts.copy()
                less[site] -= 1
                both = relaxed.marginal(less)[site] + marginal[site]  # a square, where a group reads itself
                assert relaxed.value(counts) - relaxed.value(less) == pytest.approx(both / 2)

    def test_between_its_choices_a_cost_is_that_of_the_network_there(self) -> None:
        coarse, fine = surveyed(), mobile()
        rng = np.random.default_rng(0)
        for found in (coarse, fine):
            for _ in range(4):
                candidate = found.space.sample(rng)
                row = found.space.array([candidate]).astype(float)[0]
                for metric in ("macs", "params", "activation_bytes"):
                    assert Relaxed(found.polynomials, metric).value(row) == found.costs([candidate])[metric][0]
        middle = np.array([site.full for site in coarse.space.sites], dtype=float)
        at = next(at for at, site in enumerate(coarse.space.sites) if site.kind == "width")
        middle[at] -= 1  # not a multiple of the divisor
        value = Relaxed(coarse.polynomials, "params").value(middle)
        ends = []
        for choice in coarse.space.sites[at].choices[-2:]:
            middle[at] = choice
            ends.append(Relaxed(coarse.polynomials, "params").value(middle))
        assert ends[0] < value < ends[1]

    def test_shares_of_blocks_come_to_the_whole(self) -> None:
        learner = learning(mobile())
        note = learner.note(learner.begin())
        assert note.cost == {"macs": mobile().cost["macs"]}
        assert sum(note.blocks.values()) == pytest.approx(mobile().cost["macs"], abs=len(note.blocks))
        assert note.blocks[""] == 0  # the stem reads three colours, but as many as the stem is wide

    def test_without_batch_norms_filters_are_measured(self) -> None:
        found = toy(norms=False)
        network = copy.deepcopy(found.teacher)
        strengths = Strengths(found, network)
        assert strengths().shape == (16,)
        rms = network.three.weight.detach().square().mean((1, 2, 3)).sqrt()
        torch.testing.assert_close(strengths()[6:].detach(), rms / rms.mean())


class TestWay:
    @pytest.mark.parametrize(("metric", "share"), [("macs", 0.5), ("params", 0.3)])
    def test_it_comes_to_the_limit_and_costs_are_exact_to_the_unit(self, metric: str, share: float) -> None:
        found = mobile()
        learner = learning(found, share, metric=metric)
        walked(learner, pupil := learner.begin(), FAST.steps)
        counts = learner.counts(learner.alive(pupil))
        limit = int(found.cost[metric] * share)
        costs = learner.values(counts)[metric]
        assert 0.97 * limit < costs <= limit
        candidate = found.space.candidate(
            {site.name: int(of) for site, of in zip(found.space.sites, counts, strict=True)}
        )
        example = torch.randn(1, *INFO.shape)
        assert costs == found.costs([candidate])[metric][0] == count(found.graft(candidate), example)[metric]
        chosen = learner.candidate(pupil, 0)
        assert 0.97 * limit < found.costs([chosen])[metric][0] <= limit

    def test_the_learned_network_is_grafted_as_it_is(self) -> None:
        """What died has no say in the logits; the rest, sorted and cut, computes the same to rounding."""
        found = mobile()
        learner, pupil = learned(found)
        counts = learner.counts(learner.alive(pupil))
        alive = {site.name: int(of) for site, of in zip(found.space.sites, counts, strict=True)}
        donor = Learned(found, [learner.snapshot(pupil)])
        wanted = torch.from_numpy(outputs(pupil.model.eval(), answered().images[:16], answered().normalise))
        for choices in (alive, found.space.full().as_dict()):
            student = donor.graft(found.space.candidate(choices))
            got = torch.from_numpy(outputs(student.eval(), answered().images[:16], answered().normalise))
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)

    def test_channels_given_back_can_learn(self) -> None:
        found = mobile()
        learner, pupil = learned(found)
        student = Learned(found, [learner.snapshot(pupil)]).graft(found.space.full()).train()
        student(torch.randn(8, *INFO.shape)).square().sum().backward()
        head = student.get_parameter("fc.weight").grad
        dead = int(learner.counts(learner.alive(pupil))[-1])
        assert dead < head.shape[1]
        assert (head[:, dead:].abs().sum(0) > 0).any()

    def test_somebody_stays_alive_everywhere(self) -> None:
        found = surveyed()
        spec = FAST.model_copy(update={"strength": 1e5, "steps": 12})
        learner = learning(found, 0.05, spec)
        walked(learner, pupil := learner.begin(), 12)
        counts = learner.counts(learner.alive(pupil))
        for site, of in zip(found.space.sites, counts, strict=True):
            assert of >= site.least

    def test_it_goes_on_from_a_checkpoint_to_the_same_bits(self) -> None:
        learner, whole = learned(mobile())
        first = learner.begin()
        walked(learner, first, 13)
        again = learning(mobile())
        second = again.begin()
        second.restore(first.checkpoint())
        walked(again, second, FAST.steps)
        assert second.checkpoint() == whole.checkpoint()
        assert again.note(second) == learner.note(whole)

    def test_a_protected_block_keeps_all_its_channels(self) -> None:
        found = mobile()
        name = found.space.sites[learner_site(found)].name
        spec = FAST.model_copy(update={"blocks": (BlockStrength(match=name, strength=0),)})
        learner, pupil = learned(found, 0.6, spec)
        alive = learner.of_sites(learner.alive(pupil))
        assert alive[learner_site(found)].all()
        assert not all(part.all() for part in alive.values())

    def test_one_after_the_other_only_one_block_loses_channels(self) -> None:
        found = mobile()
        spec = FAST.model_copy(update={"sequential": True, "steps": 60})
        learner = learning(found, 0.5, spec)
        assert len(learner.legs) == len({found.space.sites[at].block for at in learner.sites})
        pupil, before = learner.begin(), learner.of_sites(learner.all_alive())
        for leg in learner.legs[:4]:
            walked(learner, pupil, leg.stop)
            after = learner.of_sites(learner.alive(pupil))
            moved = {site for site in after if (after[site] != before[site]).any()}
            assert moved <= set(leg.pressed)
            before = after

    def test_a_ladder_is_one_way_down(self) -> None:
        found = mobile()
        levels = [Budget({"macs": int(found.cost["macs"] * share)}) for share in (0.7, 0.4)]
        learner = Learning(found, found, levels, LOSS, FAST.model_copy(update={"steps": 40}))
        assert [stage.name for stage in learner.stages] == ["level 1", "level 2"]
        assert learner.ends[-1] == 40
        pupil, taken = learner.begin(), list[Candidate]()
        for level, stop in enumerate(learner.ends):
            walked(learner, pupil, stop)
            taken.append(learner.candidate(pupil, level))
            assert learner.note(pupil).level == level
        for level, candidate in zip(levels, taken, strict=True):
            assert 0.95 * level.limits["macs"] < found.costs([candidate])["macs"][0] <= level.limits["macs"]


def learner_site(found: Survey) -> int:
    """One of the sites that would be the first to lose channels."""
    return max(found.widths, key=lambda site: found.space.sites[site].full)


class TestTimes:
    """Limits of what is measured: predictions are polynomials too, in fractions of a unit, and rates fall."""

    def test_a_latency_and_a_throughput_are_kept_by_what_a_channel_adds_to_them(self) -> None:
        found = mobile()
        counted = found.polynomials
        time = counted.sums["macs"]

        class Clock:
            space = found.space
            polynomials = replace(
                counted,
                sums={"latency": time, "throughput": time},
                peaks={},
                fractions={"latency": 1000},
                rates={"throughput": 10**9},
            )

            def costs_of(self, choices: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
                return self.polynomials(choices)

        whole = {metric: int(of[0]) for metric, of in Clock().costs_of(found.space.array([found.space.full()])).items()}
        for limits in ({"latency": whole["latency"] // 2}, {"throughput": 2 * whole["throughput"]}):
            learner = Learning(found, Clock(), [Budget(limits)], LOSS, FAST)
            walked(learner, pupil := learner.begin(), FAST.steps)
            ((metric, limit),) = limits.items()
            assert learner.note(pupil).cost[metric] == pytest.approx(limit, rel=0.03)
            assert Budget(limits).holds(learner.note(pupil).cost)
            chosen = Clock().costs_of(found.space.array([learner.candidate(pupil, 0)]))[metric][0]
            assert Budget(limits).holds({metric: int(chosen)})
