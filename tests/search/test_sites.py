"""What can be chosen beyond widths and removals, and how a space is told what it may offer where."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from search.budget import Limit, ladder
from search.costs.measure import count
from search.errors import BudgetImpossible, InvalidSpec
from search.export.bundle import read_bundle, write_bundle
from search.part import read_part
from search.projection import Projector
from search.space import Candidate
from search.spec import SpaceSpec
from search.surgery import Survey, survey
from search.surgery.operators import DENSE, RANKS, SEPARABLE, rank_of
from search.teachers.small import SmallResNet

pytestmark = pytest.mark.timeout(120)  # the first count in a process imports torch's compiler

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
EVERYTHING = SpaceSpec(
    divisor=2, operators=("low_rank", "separable"), groups=True, resolutions=(8, 12), min_kernel=3, min_keep=0.25
)


class Mixed(nn.Module):
    """A large kernel, a plain one, a grouped one and a depthwise one; a block with a residual."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3)
        self.plain = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block = Residual(16)
        self.wide = nn.Conv2d(16, 24, 1)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(24, 24, 5, padding=2, groups=24)
        self.head = nn.Conv2d(24, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.plain(self.stem(x).relu())).relu()
        x = self.wide(self.block(x)).relu()
        x = self.depthwise(self.grouped(x).relu()).relu()
        return self.fc(self.head(x).relu().mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 5, padding=2), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.two(self.one(x).relu()))


@cache
def mixed() -> tuple[Mixed, Survey]:
    model = Mixed().eval()
    return model, survey(model, IMAGE, EVERYTHING)


def chosen(found: Survey, **changes: int) -> Candidate:
    """The whole network but for `changes`, with `__` for the dots in a site's name."""
    named = {name.replace("__", "."): choice for name, choice in changes.items()}
    return found.space.candidate({**found.space.full().as_dict(), **named})


def answers(model: nn.Module, images: Tensor = IMAGE) -> Tensor:
    with torch.no_grad():
        return model(images)


def test_every_kind_of_site_is_offered() -> None:
    _, found = mixed()
    sites = {name: (site.kind, site.choices, site.within) for name, site in found.space.by_name.items()}
    assert sites["stem.kernel"] == ("kernel", (3, 5, 7), None)
    assert sites["depthwise.kernel"] == ("kernel", (3, 5), None)
    assert sites["block.one.kernel"] == ("kernel", (3, 5), "block.keep")
    assert sites["plain.operator"] == ("operator", (0, 2, 4, 8), None)
    assert sites["block.two.operator"] == ("operator", (0, 2, 4, 8), "block.keep")
    assert sites["wide.group"] == ("group", (2, 4, 6, 8), None)
    assert sites["input.resolution"] == ("resolution", (8, 12, 16), None)
    assert "wide.operator" not in sites, "a 1 x 1 convolution has nothing to make cheaper"
    assert "grouped.operator" not in sites


@given(st.integers(0, 2**32 - 1))
def test_costs_of_every_kind_are_those_of_the_built_student(seed: int) -> None:
    _, found = mixed()
    candidate = found.space.sample(np.random.default_rng(seed))
    costs = {metric: int(values[0]) for metric, values in found.costs([candidate]).items()}
    assert count(found.graft(candidate), IMAGE) == costs


def test_the_whole_candidate_computes_what_the_model_does() -> None:
    model, found = mixed()
    assert (answers(found.graft(found.space.full())) - answers(model)).abs().max() < 1e-5


def test_a_smaller_kernel_is_the_centre_of_the_larger_one_and_keeps_the_positions() -> None:
    _, found = mixed()
    student = found.graft(chosen(found, stem__kernel=3))
    whole, cut = found.teacher.get_parameter("stem.weight"), student.get_parameter("stem.weight")
    assert torch.equal(cut, whole[:, :, 2:5, 2:5])
    masked = torch.zeros_like(whole)
    masked[:, :, 2:5, 2:5] = whole.detach()[:, :, 2:5, 2:5]
    conv = student.get_submodule("stem")
    bias = student.get_parameter("stem.bias")
    expected = functional.conv2d(IMAGE, masked, bias, stride=2, padding=3)
    assert torch.allclose(answers(conv), expected, atol=1e-5)


def test_low_rank_is_the_best_of_its_rank() -> None:
    """Eckart and Young: the error is that of the singular values left out."""
    _, found = mixed()
    student = found.graft(chosen(found, plain__operator=4))
    pair = student.get_submodule("plain")
    assert [name for name, _ in pair.named_children()] == ["spatial", "channels"]
    state = student.state_dict()
    first, second = state["plain.spatial.weight"], state["plain.channels.weight"]
    assert first.shape == (8, 8, 3, 3), "half of the 16 channels it writes"
    whole = found.teacher.state_dict()["plain.weight"].flatten(1)
    error = (second.flatten(1) @ first.flatten(1) - whole).square().sum().sqrt()
    left_out = torch.linalg.svdvals(whole)[8:].square().sum().sqrt()
    assert float(error) == pytest.approx(float(left_out), rel=1e-4)


def test_every_rank_is_another_network_however_few_channels_are_left() -> None:
    for channels in range(1, 100):
        ranks = [rank_of(choice, channels) for choice in RANKS]
        assert ranks == sorted(set(ranks))
        assert ranks[0] >= 1
    assert [rank_of(choice, 64) for choice in (SEPARABLE, *RANKS, DENSE)] == [0, 16, 32, 0]


def test_separable_is_the_best_single_filter_of_every_input() -> None:
    _, found = mixed()
    student = found.graft(chosen(found, plain__operator=SEPARABLE))
    spatial = student.get_submodule("plain.spatial")
    assert isinstance(spatial, nn.Conv2d)
    assert spatial.groups == spatial.in_channels == 8
    state = student.state_dict()
    filters, points = (state[f"plain.{part}.weight"].flatten(1) for part in ("spatial", "channels"))
    whole = found.teacher.state_dict()["plain.weight"]
    for channel in range(8):
        matrix = whole[:, channel].flatten(1)
        error = (torch.outer(points[:, channel], filters[channel]) - matrix).square().sum().sqrt()
        left_out = torch.linalg.svdvals(matrix)[1:].square().sum().sqrt()
        assert float(error) == pytest.approx(float(left_out), rel=1e-4)


def test_a_kernel_that_has_rank_one_loses_nothing() -> None:
    model = Mixed().eval()
    with torch.no_grad():
        filters, points = torch.randn(8, 3, 3), torch.randn(16, 8)
        model.plain.weight.copy_(points[:, :, None, None] * filters)
    found = survey(model, IMAGE, EVERYTHING)
    assert torch.allclose(answers(found.graft(chosen(found, plain__operator=SEPARABLE))), answers(model), atol=1e-5)


def test_operators_are_cut_with_their_channels() -> None:
    _, found = mixed()
    wide = found.graft(chosen(found, plain__operator=2))
    narrow = found.graft(chosen(found, plain__operator=2, stem=4, plain=8))
    first, second = narrow.get_parameter("plain.spatial.weight"), narrow.get_parameter("plain.channels.weight")
    assert (tuple(first.shape), tuple(second.shape)) == ((2, 4, 3, 3), (8, 2, 1, 1))
    assert torch.equal(first, wide.get_parameter("plain.spatial.weight")[:2, :4])
    assert torch.equal(second, wide.get_parameter("plain.channels.weight")[:8, :2])


def test_narrower_groups_keep_their_number_and_the_inputs_that_matter_most() -> None:
    model = Mixed().eval()
    with torch.no_grad():  # of every group, one channel after the other is louder
        loudness = torch.arange(1.0, 9.0).repeat(3)
        model.wide.weight.copy_(torch.randn(24, 16, 1, 1).sign() * loudness[:, None, None, None])
    found = survey(model, IMAGE, EVERYTHING)
    student = found.graft(chosen(found, wide__group=2))
    grouped = student.get_submodule("grouped")
    assert isinstance(grouped, nn.Conv2d)
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (6, 6, 3)
    assert grouped.weight.shape == (6, 2, 3, 3)
    kept = student.get_parameter("wide.weight").abs().amax((1, 2, 3))
    assert sorted(kept.tolist()) == [7.0, 7.0, 7.0, 8.0, 8.0, 8.0]


def test_narrow_groups_compute_what_the_whole_does_with_the_rest_silent() -> None:
    _, found = mixed()
    student = found.graft(chosen(found, wide__group=4))
    silent = found.graft(found.space.full())
    with torch.no_grad():
        gone = [channel for channel in range(24) if channel % 8 >= 4]
        for name in ("wide", "grouped", "depthwise"):
            silent.get_parameter(f"{name}.weight")[gone] = 0
            silent.get_parameter(f"{name}.bias")[gone] = 0
    assert torch.allclose(answers(student), answers(silent), atol=1e-5)


def test_a_student_of_less_resolution_takes_the_same_images() -> None:
    model, found = mixed()
    student = found.graft(chosen(found, input__resolution=8))
    small = functional.interpolate(IMAGE, size=(8, 8), mode="bilinear", align_corners=False)
    assert torch.allclose(answers(student), answers(model, small), atol=1e-5)
    whole, less = found.costs([found.space.full(), chosen(found, input__resolution=8)])["macs"]
    assert less < 0.3 * whole


@pytest.mark.parametrize("draw", range(3))
def test_students_of_every_kind_can_be_taken_home(draw: int, tmp_path: Any) -> None:
    _, found = mixed()
    candidate = [
        found.space.least(),
        chosen(found, plain__operator=2, input__resolution=12, block__two__operator=SEPARABLE),
        chosen(found, wide__group=4, stem__kernel=5, block__keep=0),
    ][draw]
    student = found.graft(candidate)
    deviation = write_bundle(student, IMAGE, tmp_path, onnx=True, classes=list("abcde"), mean=[0.0] * 3, std=[1.0] * 3)
    assert set(deviation) == {"bundle", "onnx"}
    assert torch.allclose(answers(read_bundle(tmp_path).student), answers(student), atol=1e-5)


class Flattening(nn.Module):
    """Its classifier knows how many pixels come."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


def test_a_network_of_one_size_keeps_it_and_says_why() -> None:
    found = survey(Flattening().eval(), IMAGE, SpaceSpec(divisor=2, resolutions=(8,)))
    assert {site.kind for site in found.space.sites} == {"width"}
    (finding,) = (finding for finding in found.report if finding.module == "input")
    assert "does not run on 8 x 8 pixels" in finding.reason


def sites(**settings: Any) -> dict[str, tuple[int, ...]]:
    found = survey(Mixed().eval(), IMAGE, read_part(SpaceSpec, {"divisor": 2, **settings}))
    return {name: site.choices for name, site in found.space.by_name.items()}


def test_include_and_exclude_choose_what_may_change() -> None:
    assert set(sites(include=["block*"])) == {"plain", "block.keep", "block.one", "block.one.kernel"}
    assert {"stem", "block.one"}.isdisjoint(sites(exclude=["stem*", "block.one"]))
    assert not any("kernel" in name for name in sites(exclude=["*.kernel"]))
    kept = sites(exclude=["block", "block.*"])
    assert not any(name.startswith("block") for name in kept)
    assert "plain" not in kept, "the block writes these channels too"


def test_rules_hold_for_their_blocks_and_the_last_one_counts() -> None:
    ruled = sites(
        operators=["low_rank"],
        blocks=[
            {"match": "head", "min_keep": 0.5, "max_keep": 0.75},
            {"match": "stem*", "divisor": 4, "min_kernel": 5},
            {"match": "block*", "operators": [], "removal": False, "keep": [0.25, 1.0]},
            {"match": "block.one", "keep": [0.5]},
        ],
    )
    assert ruled["head"] == (6, 8), "of 12 channels, at least a half and at most three quarters"
    assert ruled["stem"] == (4, 8)
    assert ruled["stem.kernel"] == (5, 7)
    assert ruled["plain.operator"] == (2, 4, DENSE)
    assert ruled["plain"] == (4, 16)
    assert ruled["block.one"] == (8,)
    assert not {"block.keep", "block.one.operator"} & ruled.keys()


def test_costs_are_exact_where_no_student_is_as_wide_as_the_teacher() -> None:
    rules = read_part(SpaceSpec, {"divisor": 2, "blocks": [{"match": "*", "max_keep": 0.5}]})
    found = survey(Mixed().eval(), IMAGE, rules)
    full = found.space.full()
    assert count(found.graft(full), IMAGE) == {metric: int(v[0]) for metric, v in found.costs([full]).items()}
    assert found.cost == count(Mixed().eval(), IMAGE), "the teacher's cost is its own"
    assert found.bounds()["macs"][1] < found.cost["macs"] / 2


@pytest.mark.parametrize(
    ("settings", "pointer", "words"),
    [
        ({"include": ["layer9.*"]}, "/space/include/0", "fits no block, layer or site"),
        ({"exclude": ["stem", "bloc"]}, "/space/exclude/1", 'did you mean "block"'),
        ({"blocks": [{"match": "hed"}]}, "/space/blocks/0/match", 'did you mean "head"'),
        ({"resolutions": [8, 16]}, "/space/resolutions/1", "below the 16 pixels"),
    ],
)
def test_what_does_not_fit_the_network_is_told(settings: dict[str, Any], pointer: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as told:
        survey(Mixed().eval(), IMAGE, read_part(SpaceSpec, settings))
    (error,) = told.value.errors
    assert error.pointer == pointer
    assert words in error.message


@pytest.mark.parametrize(
    ("settings", "pointer"),
    [
        ({"blocks": [{"match": "a", "keep": [0.5, 0.25]}]}, "/blocks/0"),
        ({"blocks": [{"match": "a", "keep": [0.5], "max_keep": 0.5}]}, "/blocks/0"),
        ({"blocks": [{"match": "a", "max_keep": 1.5}]}, "/blocks/0/max_keep"),
        ({"blocks": [{"min_keep": 0.5}]}, "/blocks/0/match"),
        ({"operators": ["winograd"]}, "/operators/0"),
        ({"resolutions": [28, 24]}, "/resolutions"),
        ({"min_kernel": 0}, "/min_kernel"),
    ],
)
def test_a_space_written_wrongly_is_pointed_at(settings: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidSpec) as told:
        read_part(SpaceSpec, settings)
    assert told.value.errors[0].pointer == pointer


def test_a_budget_just_below_the_smallest_student_is_refused_and_one_just_above_is_met() -> None:
    """The smallest student of this space has 15.76 % of its teacher's macs; chance never comes near it."""
    image = torch.randn(1, 3, 32, 32)
    teacher = SmallResNet(SmallResNet.Options(depth=2, width=20)).build((3, 32, 32), 10)
    found = survey(teacher, image, SpaceSpec(divisor=2, min_keep=0.32, removal=False))
    rng = np.random.default_rng(0)
    sampled = found.space.array([found.space.sample(rng) for _ in range(10_000)])
    (refused,), (accepted,) = (ladder({"macs": (Limit.read("macs", share),)}, found.cost) for share in ("15%", "16%"))
    assert not accepted.fits(found.costs_of(sampled)).any()
    with pytest.raises(BudgetImpossible, match=r"15\.76 %") as told:
        Projector(found, refused)
    assert told.value.errors[0].pointer == "/budget/macs"
    assert Limit.read("macs", told.value.needed["macs"]).value(found.cost["macs"]) >= found.bounds()["macs"][0]
    met = Projector(found, accepted).project(found.space.full())
    assert all(verdict.fits for verdict in accepted.judge(count(found.graft(met), image)))
