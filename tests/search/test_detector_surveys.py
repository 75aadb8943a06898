"""Detectors are surveyed, counted and cut like other networks, and what is left of them still detects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from search.costs.measure import count
from search.detector import Detector, TwoStage
from search.errors import InvalidSpec
from search.files import Files
from search.plugins import DatasetInfo
from search.recipe import prepare, survey_for
from search.spec import SpaceSpec, read_spec
from search.surgery import Survey, survey
from tests.search.detectors import CLASSES, FAMILIES, SHAPE, images, labels, small

INFO = DatasetInfo("scenes", ("one", "other"), 3, 64, (0.5,) * 3, (0.5,) * 3, mirror=True, pad=0, task="detection")


def surveyed(family: str) -> tuple[Detector, Survey]:
    detector = small(family).eval()
    return detector, survey(detector, images(2), SpaceSpec(divisor=2))


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_of_cut_detectors_are_exact(family: str) -> None:
    _, found = surveyed(family)
    rng = np.random.default_rng(0)
    candidates = [found.space.full(), *(found.space.sample(rng) for _ in range(2))]
    computed = found.costs(candidates)
    for at, candidate in enumerate(candidates):
        counted = count(found.graft(candidate), images(1))
        assert {metric: int(values[at]) for metric, values in computed.items()} == counted


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_detectors_learn_and_detect(family: str) -> None:
    detector, found = surveyed(family)
    same = found.graft(found.space.full())
    least = found.graft(found.space.candidate({site.name: site.least for site in found.space.sites}))
    assert isinstance(same, Detector)
    assert isinstance(least, Detector)
    with torch.no_grad():
        torch.testing.assert_close(same.detect(images(2)), detector.detect(images(2)), atol=1e-3, rtol=1e-3)
        assert least.detect(images(2)).shape == (2, 20, 6)
    studied = least.train().study(images(3), labels())
    sum(studied.losses.values()).backward()
    assert all(loss.isfinite() for loss in studied.losses.values())
    assert [name for name, one in least.named_parameters() if one.grad is None] == []
    if studied.regions is not None:
        assert studied.regions.shape[1] < 8


def test_every_level_is_pooled_so_the_box_head_follows_the_pyramid() -> None:
    detector, found = surveyed("faster_rcnn")
    assert isinstance(detector, TwoStage)
    names = [site.name for site in found.space.sites]
    assert "backbone.fpn.layer_blocks.width" in names
    assert "roi_heads.box_head.fc6" in names
    narrow = {"backbone.fpn.layer_blocks.width": 4}
    student = found.graft(found.space.candidate({**found.space.full().as_dict(), **narrow}))
    assert isinstance(student, TwoStage)
    assert student.roi_heads.box_head.fc6.in_features == 4 * 49
    with torch.no_grad():
        pyramid = student.pyramid(images(1))
    assert {level.shape[1] for level in pyramid} == {4}


def test_macs_of_two_stages_are_those_of_a_hand_count() -> None:
    """Of a stated number of regions: what each layer multiplies, by its shape and the size of its map."""
    detector = small("faster_rcnn").eval()
    assert isinstance(detector, TwoStage)
    stages = [(3, 8, 16), (8, 12, 8), (12, 16, 4)]
    macs = 3 * 3 * 9 * 32**2 + sum(inputs * outputs * 9 * side**2 for inputs, outputs, side in stages)
    macs += sum((outputs * 8 + 8 * 8 * 9) * side**2 for _, outputs, side in stages)
    positions = 16**2 + 8**2 + 4**2 + 2**2
    macs += positions * (8 * 8 * 9 + 8 * 3 + 8 * 12)
    macs += 30 * (8 * 49 * 24 + 24 * 24 + 24 * (CLASSES + 1) * 5)
    assert count(detector, images(1))["macs"] == macs
    assert count(detector, images(1))["params"] == sum(one.numel() for one in detector.parameters())


def test_a_recipe_surveys_detectors() -> None:
    found = survey_for(INFO, small("retinanet").eval(), SpaceSpec(divisor=2))
    assert isinstance(found.graft(found.space.full()), Detector)


def test_blocks_of_a_backbone_can_be_removed() -> None:
    detector = small("fcos").eval()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner: torch.Tensor = self.conv(x)
            return x + inner

    detector.backbone.stem.append(Block())
    found = survey(detector, torch.randn(1, *SHAPE), SpaceSpec(divisor=2))
    assert "backbone.stem.2.keep" in [site.name for site in found.space.sites]
    student = found.graft(found.space.candidate({**found.space.full().as_dict(), "backbone.stem.2.keep": 0}))
    assert isinstance(student, Detector)
    assert isinstance(student.backbone.stem[2], nn.Identity)
    assert student.detect(images(1)).shape == (1, 20, 6)


def test_times_of_detectors_are_refused() -> None:
    spec = read_spec(
        {
            "task": "detection",
            "teacher": {"name": "detector"},
            "dataset": {"name": "scenes"},
            "budget": {"latency": {"limit": "50%", "runtime": "onnxruntime-cpu"}, "macs": "50%"},
            "search": {"weights": "slice", "strategy": {"name": "evolution"}},
            "distill": {"name": "supervised"},
        }
    )
    with pytest.raises(InvalidSpec) as caught:
        prepare(spec, Files(cache=Path("unused")))
    assert [error.pointer for error in caught.value.errors] == ["/budget/latency"]
    assert "limit `macs` instead" in caught.value.message
