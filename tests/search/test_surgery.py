"""Survey and graft: what is offered is exact, what is not understood is frozen and said so."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from search.costs.measure import count
from search.errors import Unsupported
from search.space import Candidate
from search.spec import SpaceSpec
from search.surgery import Finding, Survey, survey
from search.surgery.rules import Rules
from search.surgery.sites import widths
from search.teachers.small import SmallMobileNet, SmallResNet

pytestmark = pytest.mark.timeout(60)  # the first count in a process imports torch's compiler

FINE = SpaceSpec(divisor=2)


class Concatenating(nn.Module):
    """Branches that are concatenated twice, in two orders, and pooled to `size` pixels before the classifier."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.size = size
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.mix = nn.Conv2d(20, 6, 1)
        self.fc = nn.Linear((12 + 8 + 6) * size**2, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        mixed = self.mix(functional.relu(self.norm(torch.cat([left, right], 1))))
        pooled = functional.adaptive_avg_pool2d(torch.cat([right, left, mixed], 1).relu(), self.size)
        return self.fc(torch.flatten(pooled, 1))


class Gated(nn.Module):
    """Squeeze and excitation, a scale per channel, PReLU and a grouped convolution between two dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.act = nn.PReLU(24)
        self.squeeze, self.excite = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.scale = nn.Parameter(torch.full((24, 1, 1), 0.5))
        self.grouped = nn.Conv2d(24, 12, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.fc(self.norm(self.grouped(x * gate * self.scale)).relu().mean((2, 3)))


class Shared(nn.Module):
    """One convolution called three times, on its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.again(x).relu()
        return self.fc(self.head(x).relu().mean((2, 3)))


class Separable(nn.Module):
    """A depthwise convolution with a multiplier, on channels of two sources; four pixels are flattened at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 16, 3)
        self.filter = nn.Conv2d(24, 48, 3, groups=24)
        self.head = nn.Conv2d(48, 16, 1)
        self.fc = nn.Linear(16 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.one(x), self.two(x)], 1).relu()
        pooled = functional.adaptive_avg_pool2d(self.head(self.filter(both).relu()).relu(), 2)
        return self.fc(torch.flatten(pooled, 1))


def resnet() -> nn.Module:
    return SmallResNet(SmallResNet.Options(depth=2, width=16)).build((3, 32, 32), 10)


def mobilenet() -> nn.Module:
    return SmallMobileNet(SmallMobileNet.Options()).build((3, 32, 32), 10)


def zoo(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: models.get_model(name, weights=None, num_classes=10, **options)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, SpaceSpec]] = {
    "small_resnet": (resnet, 32, FINE),
    "small_mobilenet": (mobilenet, 32, FINE),
    "concatenation": (Concatenating, 8, FINE),
    "gates and groups": (Gated, 8, FINE),
    "shared layer": (Shared, 8, FINE),
    "separable": (Separable, 8, FINE),
    "resnet18": (zoo("resnet18"), 32, SpaceSpec()),
    "squeezenet1_1": (zoo("squeezenet1_1"), 32, SpaceSpec()),
    "mobilenet_v3_small": (zoo("mobilenet_v3_small"), 32, SpaceSpec()),
    "regnet_y_400mf": (zoo("regnet_y_400mf"), 32, SpaceSpec()),
    "shufflenet_v2_x0_5": (zoo("shufflenet_v2_x0_5"), 32, SpaceSpec(divisor=4)),
    "flattened concatenation": (lambda: Concatenating(size=4), 8, FINE),
}
families = pytest.mark.parametrize("family", FAMILIES)
own_families = pytest.mark.parametrize("family", list(FAMILIES)[:6])
"""The small ones; the zoo's networks add nothing but time where the way through the code is the same."""


def randomised(model: nn.Module) -> nn.Module:
    """Batch-norm statistics and scales as a trained network has them, so that no channel is like another."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    return model


def example_of(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@cache
def surveyed(family: str) -> tuple[nn.Module, Tensor, Survey]:
    torch.manual_seed(0)
    build, size, options = FAMILIES[family]
    model, example = randomised(build()), example_of(size)
    return model, example, survey(model, example, options)


def samples(found: Survey, number: int, seed: int = 0) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    return [found.space.sample(rng) for _ in range(number)]


def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(images)


def deviation(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@families
def test_costs_are_those_of_the_built_student(family: str) -> None:
    _, example, found = surveyed(family)
    candidates = [found.space.full(), found.space.least(), *samples(found, 20)]
    costs = found.costs(candidates)
    for index, candidate in enumerate(candidates):
        student = found.graft(candidate)
        assert count(student, example) == {metric: int(values[index]) for metric, values in costs.items()}


@families
def test_the_sorted_teacher_and_the_full_candidate_compute_what_the_model_does(family: str) -> None:
    model, example, found = surveyed(family)
    expected = logits(model, example)
    assert deviation(logits(found.teacher, example), expected) < 1e-5
    assert deviation(logits(found.graft(found.space.full()), example), expected) < 1e-5


@own_families
def test_the_model_is_left_as_it_was(family: str) -> None:
    build, size, options = FAMILIES[family]
    model = build().train()
    model.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    survey(model, example_of(size), options)
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@families
def test_students_own_their_weights_and_learn(family: str) -> None:
    _, example, found = surveyed(family)
    student = found.graft(samples(found, 1)[0]).train()
    ours = {parameter.data_ptr() for parameter in student.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in found.teacher.parameters()}
    before = {name: tensor.clone() for name, tensor in found.teacher.state_dict().items()}
    student(example).square().sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    torch.optim.SGD(student.parameters(), 0.1).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.teacher.state_dict().items())


@own_families
def test_modes_of_the_caller_do_not_matter(family: str) -> None:
    build, size, options = FAMILIES[family]
    _, example, found = surveyed(family)
    with torch.inference_mode(False), torch.no_grad():
        again = survey(build().train(), example, options)
    assert again.space.key == found.space.key, "the space follows from the architecture, not from weights or modes"
    assert again.bounds() == found.bounds()
    assert size == example.shape[-1]


@own_families
def test_bounds_are_the_ends_of_all_costs(family: str) -> None:
    model, example, found = surveyed(family)
    bounds = found.bounds()
    assert {metric: full for metric, (_, full) in bounds.items()} == count(model, example)
    costs = found.costs(samples(found, 200))
    for metric, (least, full) in bounds.items():
        assert least <= costs[metric].min()
        assert costs[metric].max() <= full


@given(st.sampled_from(["small_resnet", "small_mobilenet", "concatenation", "gates and groups"]), st.data())
def test_costs_rise_with_every_choice(family: str, data: st.DataObject) -> None:
    found = surveyed(family)[2]
    row = [data.draw(st.sampled_from(site.choices)) for site in found.space.sites]
    site = data.draw(st.integers(0, len(row) - 1))
    rows = np.array([[*row[:site], choice, *row[site + 1 :]] for choice in found.space.sites[site].choices])
    within = found.space.sites[site].within
    names = [other.name for other in found.space.sites]
    void = within is not None and row[names.index(within)] == 0
    for values in found.costs_of(rows).values():
        steps = np.diff(values)
        assert (steps == 0).all() if void else (steps >= 0).all()
    if not void:
        assert (np.diff(found.costs_of(rows)["params"]) > 0).all()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_spellings_of_one_network_cost_the_same(seed: int) -> None:
    found = surveyed("small_resnet")[2]
    rng = np.random.default_rng(seed)
    row = {site.name: int(rng.choice(site.choices)) for site in found.space.sites}
    candidate = found.space.candidate(row)
    raw = found.costs_of(np.array([list(row.values())]))
    assert {metric: values.tolist() for metric, values in raw.items()} == {
        metric: values.tolist() for metric, values in found.costs([candidate]).items()
    }


def test_students_of_a_plain_network_are_prefix_slices() -> None:
    """And compute what the teacher does once no weight reads the channels that were cut."""
    _, example, found = surveyed("small_resnet")
    for candidate in samples(found, 5, seed=7):
        student = found.graft(candidate)
        masked = copy.deepcopy(found.teacher)
        removed = [site.block for site in found.space.sites if site.kind == "removal" and not candidate[site.name]]
        slices = dict(student.state_dict())
        with torch.no_grad():
            for name, tensor in masked.state_dict().items():
                if any(name.startswith(f"{block}.") for block in removed):
                    tensor.zero_()
                    continue
                prefix = tuple(slice(size) for size in slices[name].shape)
                assert torch.equal(slices[name], tensor[prefix])
                if tensor.dim() >= 2:
                    tensor[:, slices[name].shape[1] :] = 0
        assert deviation(logits(student, example), logits(masked, example)) < 1e-5


def test_channels_are_sorted_by_the_weights_that_make_and_read_them() -> None:
    conv, fc = nn.Conv2d(3, 8, 1, bias=False), nn.Linear(8, 2)
    strength = torch.tensor([3.0, 1.0, 8.0, 6.0, 2.0, 7.0, 5.0, 4.0])
    with torch.no_grad():
        conv.weight.copy_(strength[:, None, None, None].expand_as(conv.weight))
        fc.weight.copy_(strength.expand(2, 8))
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)
    found = survey(model, example_of(4), FINE)
    sorted_conv = found.teacher.get_parameter("0.weight")
    assert sorted_conv[:, 0, 0, 0].tolist() == sorted(strength.tolist(), reverse=True)
    assert found.teacher.get_parameter("4.weight")[0].tolist() == sorted(strength.tolist(), reverse=True)


def test_a_stage_is_one_site_and_removed_blocks_are_identities() -> None:
    found = surveyed("small_resnet")[2]
    sites = found.space.by_name
    assert set(sites) == {
        *(f"layer{stage}.width" for stage in (1, 2, 3)),
        *(f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1)),
        *(f"{block}.keep" for block in ("layer1.0", "layer1.1", "layer2.1", "layer3.1")),
    }
    assert sites["layer2.1.conv1"].within == "layer2.1.keep"
    assert sites["layer2.0.conv1"].within is None
    assert sites["layer2.1.keep"].block == "layer2.1"
    student = found.graft(found.space.candidate({**found.space.full().as_dict(), "layer2.1.keep": 0}))
    assert isinstance(student.get_submodule("layer2.1"), nn.Identity)
    assert isinstance(student.get_submodule("layer1.1.conv1"), nn.Conv2d)


def test_without_removal_no_block_goes() -> None:
    found = survey(resnet(), example_of(32), SpaceSpec(divisor=2, removal=False))
    assert {site.kind for site in found.space.sites} == {"width"}
    assert not any(site.within for site in found.space.sites)


def test_grouped_convolutions_keep_whole_groups() -> None:
    _, _, found = surveyed("gates and groups")
    student = found.graft(found.space.candidate({**found.space.full().as_dict(), "stem": 12}))
    grouped, norm = student.get_submodule("grouped"), student.get_submodule("norm")
    assert isinstance(grouped, nn.Conv2d)
    assert isinstance(norm, nn.GroupNorm)
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (12, 6, 2)
    assert tuple(grouped.weight.shape) == (6, 6, 3, 3)
    assert (norm.num_groups, norm.num_channels) == (2, 6)
    assert all(choice % 6 == 0 for choice in found.space.by_name["stem"].choices)


@given(
    st.integers(1, 512),
    st.builds(
        SpaceSpec,
        divisor=st.integers(1, 64),
        steps=st.integers(2, 64),
        min_keep=st.floats(0.01, 1, allow_nan=False),
    ),
    st.integers(1, 8),
)
def test_widths_rise_to_the_full_one(units: int, options: SpaceSpec, unit: int) -> None:
    full = units * unit
    offered = widths(full, unit, Rules(options).at())
    assert offered[-1] == full
    assert list(offered) == sorted(set(offered))
    assert len(offered) <= options.steps + 1
    for width in offered[:-1]:
        assert width % unit == 0
        assert width >= options.min_keep * full
        assert width % options.divisor == 0 or np.lcm(unit, options.divisor) >= full


def test_widths_are_those_of_the_examples() -> None:
    assert widths(64, 1, Rules(SpaceSpec()).at()) == (8, 16, 24, 32, 40, 48, 56, 64)
    assert widths(24, 1, Rules(SpaceSpec()).at()) == (8, 16, 24)
    assert widths(20, 1, Rules(SpaceSpec(divisor=8)).at()) == (8, 16, 20), "the full width need not be a multiple"
    assert widths(64, 1, Rules(SpaceSpec(min_keep=0.5)).at()) == (32, 40, 48, 56, 64)


class AddsImage(nn.Module):
    """Its first convolution is tied to the image's channels, its second is free."""

    def __init__(self) -> None:
        super().__init__()
        self.tied, self.free = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.free(x + self.tied(x)).relu().mean((2, 3)))


class Stubborn(nn.Module):
    """Reshapes to a number of channels written in the code, which only the uncut network has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x).relu())
        return self.fc(x.reshape(x.shape[0], 8, -1).relu().mean(2))


class Splitting(nn.Module):
    """Twice splits channels in two, by the `size` of a part: as written in the code, or (0) half of what comes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.one, self.two, self.three = (nn.Conv2d(*sides, 3) for sides in ((3, 16), (8, 16), (8, 12)))
        self.fc = nn.Linear(12, 5)

    def halved(self, x: Tensor) -> Tensor:
        left, right = x.split(self.size or x.shape[1] // 2, 1)
        return left * right.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.three(self.halved(self.two(self.halved(self.one(x))))).relu().mean((2, 3)))


def frozen(found: Survey) -> dict[str, str]:
    return {finding.module: finding.reason for finding in found.report if finding.status in ("frozen", "unsupported")}


def test_channels_of_image_and_logits_stay() -> None:
    found = survey(AddsImage(), torch.randn(1, 16, 8, 8), FINE)
    assert set(frozen(found)) == {"tied", "fc"}
    assert "no channels" in frozen(found)["tied"]
    assert "output" in frozen(found)["fc"]
    assert {site.name for site in found.space.sites} == {"free"}


def test_what_breaks_when_cut_is_frozen_and_the_rest_goes_on() -> None:
    found = survey(Stubborn(), example_of(8), FINE)
    assert "breaks the network" in frozen(found)["two"]
    line = inspect.getsourcelines(Stubborn.forward)[1]
    assert Finding("one", "searchable", "one", "", f"{__name__}:{line}") in found.report
    student = found.graft(found.space.least())
    assert count(student, example_of(8)) == {metric: least for metric, (least, _) in found.bounds().items()}


def test_what_is_split_by_a_number_in_the_code_is_frozen() -> None:
    found = survey(Splitting(8), example_of(8), FINE)
    reasons = frozen(found)
    assert all("breaks the network" in reasons[layer] for layer in ("one", "two"))
    assert {site.name for site in found.space.sites} == {"three"}


def test_what_is_split_in_halves_is_searched() -> None:
    found = survey(Splitting(0), example_of(8), FINE)
    assert set(frozen(found)) == {"fc"}
    assert count(found.graft(found.space.least()), example_of(8)) == {
        metric: int(values[0]) for metric, values in found.costs([found.space.least()]).items()
    }


def test_attention_over_windows_is_frozen_and_the_rest_exact() -> None:
    torch.manual_seed(0)
    model = models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [2, 2], num_classes=10)
    found = survey(model, example_of(32), FINE)
    assert "features.1.0.attn.qkv" in frozen(found)
    assert {site.name for site in found.space.sites} >= {"features.1.0.mlp.0", "features.3.1.mlp.0"}
    for candidate in samples(found, 3):
        counted = count(found.graft(candidate), example_of(32))
        assert counted == {metric: int(values[0]) for metric, values in found.costs([candidate]).items()}


def test_a_divisor_too_large_is_given_as_the_reason() -> None:
    found = survey(Shared(), example_of(8), SpaceSpec(divisor=8))
    assert "multiple of 8" in frozen(found)["stem"]
    assert {site.name for site in found.space.sites} == {"head"}


class Silent(nn.Module):
    def forward(self, x: Tensor) -> dict[str, str]:
        return {"shape": str(x.shape)}


def nan_network() -> nn.Module:
    model = Concatenating()
    nn.init.constant_(model.mix.weight, float("nan"))
    return model


@pytest.mark.parametrize(
    ("build", "size", "message"),
    [
        (Silent, 8, "must answer"),
        (nan_network, 8, "not finite"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5)), 8, "nothing in the network can be made smaller"),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3)), 8, "does not run on a 3x8x8 image"),
    ],
)
def test_what_cannot_be_surveyed_is_refused_in_words(build: Callable[[], nn.Module], size: int, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        survey(build(), example_of(size), FINE)


def test_a_survey_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.surgery.surveyor._TIME_LIMIT", 0.0)
    with pytest.raises(Unsupported, match="in time"):
        survey(Concatenating(), example_of(8), FINE)


def test_the_key_of_a_space_is_the_same_in_another_process() -> None:
    program = "from tests.search.test_surgery import surveyed; print(surveyed('small_resnet')[2].space.key)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == surveyed("small_resnet")[2].space.key


def test_grafting_a_small_network_takes_milliseconds_of_work() -> None:
    _, _, found = surveyed("small_resnet")
    candidates = samples(found, 20)
    began = time.process_time()
    for candidate in candidates:
        found.graft(candidate)
    assert (time.process_time() - began) / len(candidates) < 0.05
