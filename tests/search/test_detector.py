"""Detectors: losses that are torchvision's own, regions to be ignored, and what a teacher is asked about."""

from __future__ import annotations

import copy

import pytest
import torch
from torchvision.ops import box_iou

from search.boxes import KIND
from search.detector import TwoStage
from search.targets import targets_of
from tests.search.detectors import CLASSES, FAMILIES, SHAPE, images, labels, network, small


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_torchvision(family: str) -> None:
    detector, answers = small(family), labels()
    answers[..., KIND][answers[..., KIND] == 2] = 0
    theirs = network(family)
    batch, background = images(3), family in ("faster_rcnn", "ssdlite")
    targets = [{"boxes": t.boxes, "labels": t.classes} for t in targets_of(answers, int(background))]
    torch.manual_seed(7)
    expected = theirs(list(batch), targets)
    found = detector.losses(batch, answers, step=7)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_same_whatever_was_drawn_before(family: str) -> None:
    detector, batch = small(family), images(3)
    first = detector.losses(batch, labels(), step=3)
    state = torch.random.get_rng_state()
    again = detector.losses(batch, labels(), step=3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(state, torch.random.get_rng_state())
    if family == "faster_rcnn":
        other = detector.losses(batch, labels(), step=4)
        assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_learned_where_background_is_to_be_ignored(family: str) -> None:
    """With the whole image ignored no background is left, and only objects have a say."""
    detector, answers = small(family), labels()
    alone = torch.zeros_like(answers)
    alone[:, 0] = torch.tensor([0, 0, 64, 64, 0, 2, 1.0])
    losses = detector.losses(images(3), alone)
    total = sum(losses.values())
    assert total.item() == pytest.approx(0, abs=1e-6)
    total.backward()
    everywhere = torch.cat([answers, alone[:, :1]], 1)
    found = detector.study(images(3), everywhere)
    assert all(loss.isfinite() for loss in found.losses.values())
    if found.boxes is None:
        usual = detector.losses(images(3), answers)
        assert 0 < found.losses["classification"].item() < usual["classification"].item()
    else:
        for boxes, target in zip(found.boxes[:2], targets_of(answers, 1), strict=False):
            assert (box_iou(boxes, target.boxes).amax(1) >= 0.5).all()
        assert len(found.boxes[2]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns(family: str) -> None:
    detector = small(family)
    sum(detector.losses(images(3), labels()).values()).backward()
    assert [name for name, one in detector.named_parameters() if one.grad is None] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_keep_their_names_and_copies_are_whole(family: str) -> None:
    detector, theirs = small(family), network(family)
    assert detector.state_dict().keys() == theirs.state_dict().keys()
    twin = copy.deepcopy(detector)
    for parameter in detector.parameters():
        parameter.data.zero_()
    again = small(family).losses(images(3), labels())
    assert all(torch.equal(loss, again[name]) for name, loss in twin.losses(images(3), labels()).items())


def test_regions_are_pooled_where_the_student_looked() -> None:
    """The same boxes give a copy of the student the same features, other boxes others."""
    student = small("faster_rcnn").eval()
    assert isinstance(student, TwoStage)
    teacher = copy.deepcopy(student)
    studied = student.study(images(3), labels())
    assert studied.boxes is not None
    assert studied.regions is not None
    assert studied.embedding is not None
    count = sum(map(len, studied.boxes))
    assert studied.regions.shape == (count, 8, 7, 7)
    assert studied.embedding.shape == (count, 24)
    pyramid = teacher.pyramid(images(3))
    regions = teacher.regions(pyramid, studied.boxes)
    torch.testing.assert_close(regions, studied.regions)
    torch.testing.assert_close(teacher.embedding(regions), studied.embedding)
    moved = teacher.regions(pyramid, [boxes.flip(0) for boxes in studied.boxes])
    assert not torch.allclose(moved, studied.regions, atol=0.01)


def test_pooling_without_looking_is_pooling() -> None:
    detector = small("faster_rcnn").eval()
    assert isinstance(detector, TwoStage)
    pyramid, regions = detector.pyramid(images(2)), detector._fixed(images(2))
    boxes = [regions[regions[:, 0] == at, 1:] for at in range(2)]
    torch.testing.assert_close(detector._pool(pyramid, regions), detector.regions(pyramid, boxes))


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_answer_in_fixed_shapes(family: str) -> None:
    detector = small(family).eval()
    for n in (1, 3):
        answer = detector(images(n))
        if family == "faster_rcnn":
            assert answer["scores"].shape == (n * 30, CLASSES + 1)
            assert sum(level[0].numel() for level in answer["objectness"]) == len(detector.anchors)
        else:
            assert answer["bbox_regression"].shape == (n, len(detector.anchors), 4)
    assert detector.anchors.amax() > SHAPE[1] / 2


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("score", [0.05, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_finds_what_torchvision_finds(family: str, score: float, at_once: bool) -> None:
    theirs = network(family, score=score).eval()
    detector = small(family, score=score).eval()
    with torch.no_grad():
        expected, found = theirs(list(images(3))), detector.detect(images(3), at_once=at_once)
    assert found.shape == (3, 20, 6)
    background = int(family in ("faster_rcnn", "ssdlite"))
    assert sum(len(one["boxes"]) for one in expected) > 5
    for rows, one in zip(found, expected, strict=True):
        count = len(one["boxes"])
        torch.testing.assert_close(rows[:count, :4], one["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(rows[:count, 4], one["scores"], atol=1e-5, rtol=0)
        assert (rows[:count, 5] == one["labels"] - background).all()
        assert (rows[count:] == 0).all()
