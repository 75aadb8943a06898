"""Detectors as teachers: of any family, on any backbone whose layers follow one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from search.catalog import Catalog
from search.detector import Detector, TwoStage
from search.errors import InvalidSpec, Unsupported, WeightsError
from search.spec import Pick, SpaceSpec
from search.surgery import survey
from search.teachers.trunk import trunk_of
from search.teachers.weights import load_weights, save_weights
from tests.search.detectors import FAMILIES, SHAPE, images, labels

SMALL = {"name": "small_mobilenet", "options": {"width": 0.5}}
THIN: dict[str, Any] = {"backbone": SMALL, "channels": 16, "embedding": 32, "proposals": 20, "samples": 16}


def built(seed: int = 0, **options: Any) -> Detector:
    teacher = Catalog().make("teachers", Pick(name="detector", options={**THIN, **options}))
    assert teacher.tasks == ("detection",)
    detector: Detector = teacher.build(SHAPE, 2, seed)
    return detector


def resnet50(width: float) -> dict[str, Any]:
    return {"name": "torchvision", "options": {"builder": "resnet50", "width": width}}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_and_detects(family: str) -> None:
    detector = built(family=family, stride=8)
    assert detector.training
    before, parameters = {}, list(detector.parameters())
    optimiser = torch.optim.SGD(parameters, lr=0.01)
    for step in range(6):
        losses = detector.losses(images(3), labels(), step=step)
        total = sum(losses.values())
        before.setdefault("first", total.item())
        total.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert total.item() < before["first"]
    found = detector.eval().detect(images(2))
    assert found.shape == (2, 100, 6)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    "builder", ["resnet18", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"]
)
def test_any_chain_of_layers_is_a_backbone(builder: str) -> None:
    detector = built(backbone={"name": "torchvision", "options": {"builder": builder}}, stride=8, family="retinanet")
    assert [len(level[0]) for level in detector.pyramid(images(2))] == [16] * len(detector.maps)
    assert all(one.requires_grad for one in detector.parameters())
    sum(detector.losses(images(2), labels()[:2]).values()).backward()
    assert [name for name, one in detector.named_parameters() if one.grad is None] == []


def test_a_thin_resnet50_keeps_its_blocks() -> None:
    detector, found = built(backbone=resnet50(0.125)), {}
    for name, module in detector.backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = module.out_channels
    assert found["body.conv1"] == 8
    assert found["body.layer4.2.conv3"] == 256
    assert sum(name.endswith("conv2") for name in found) == 16
    assert detector.maps == ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))
    assert isinstance(detector, TwoStage)
    assert "roi_heads.box_predictor.cls_score.weight" in detector.state_dict()


def test_anchors_grow_with_images() -> None:
    teacher = Catalog().make("teachers", Pick(name="detector", options={**THIN, "anchor": 0.25}))
    small, large = (teacher.build((1, size, size), 1) for size in (48, 96))
    sides = [(one.anchors[:, 2:] - one.anchors[:, :2]).prod(1).sqrt().min().item() for one in (small, large)]
    assert sides[0] == pytest.approx(12, abs=1)
    assert sides[1] == pytest.approx(24, abs=1)


def test_weights_are_a_function_of_the_seed_and_survive_a_file() -> None:
    one, same, other = built(0), built(0), built(1)
    content = save_weights(one)
    assert content == save_weights(same)
    assert content != save_weights(other)
    load_weights(other, content)
    assert torch.equal(other.eval().detect(images(1)), one.eval().detect(images(1)))
    with pytest.raises(WeightsError):
        load_weights(built(channels=24), content)


def test_its_blocks_and_pyramid_are_offered() -> None:
    names = {site.name for site in survey(built().eval(), images(1), SpaceSpec(divisor=4)).space.sites}
    assert {"backbone.fpn.layer_blocks.width", "roi_heads.box_head.fc6", "backbone.body.layer1.1.keep"} <= names


@pytest.mark.parametrize(
    ("backbone", "pointer"),
    [
        ({"name": "small_resnt"}, "/options/backbone/name"),
        ({"name": "small_resnet", "options": {"widht": 3}}, "/options/backbone/options/widht"),
        ({"name": "detector"}, "/options/backbone/name"),
        ({"name": "torchvision", "options": {"builder": "vgg11", "width": 0.5}}, "/options/backbone/options"),
    ],
)
def test_a_backbone_that_is_none_is_named(backbone: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        built(backbone=backbone)
    assert [error.pointer for error in caught.value.errors] == [pointer]


class Patches(nn.Module):
    """What transformers begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 8, 16, 16)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.mix(self.project(x).permute(0, 2, 3, 1))
        return mixed.mean((1, 2))


def test_patches_are_no_maps() -> None:
    with pytest.raises(Unsupported, match="choose another backbone"):
        trunk_of(Patches(), SHAPE, 4, 4)
