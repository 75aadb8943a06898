"""Hierarchical distillation of detectors: its terms by hand, each alone, and regions that are the same for both."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from search.batches import Batch, Cached, Normalise
from search.boxes import packed
from search.course import Course, Material, course_of
from search.detector import Detector, TwoStage
from search.distillers.hierarchical import Hierarchical, foreground
from search.distillers.supervised import Supervised
from search.errors import UserError
from search.plugins import DatasetInfo
from search.spec import Schedule, SpaceSpec
from search.surgery import Survey, survey
from search.training import Pupil, Stretch, train
from tests.search.detectors import CLASSES, SHAPE, small

STEPS = 6
SCHEDULE = Schedule(batch_size=2, learning_rate=0.01)
INFO = DatasetInfo("noise", ("a", "b"), 3, 64, (0.5,) * 3, (0.25,) * 3, mirror=False, pad=0, task="detection")
OFF = {"own": 0.0, "pyramid": 0.0, "region": 0.0, "embedding": 0.0}
assert (len(INFO.classes), INFO.shape) == (CLASSES, SHAPE)


@cache
def surveyed(family: str = "faster_rcnn") -> Survey:
    example = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return survey(small(family), example, SpaceSpec(divisor=2))


@cache
def pool() -> Cached:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    rows = [[[4, 4, 30, 40, at % 2, 1, 1], [30, 30, 60, 60, 1, 1, 1]] for at in range(5)]
    return Cached(images, packed([*rows, []]), np.zeros((6, 0), np.float32), Normalise(INFO), seed=3)


def material(family: str = "faster_rcnn") -> Material:
    return Material.of(surveyed(family), pool(), 1, STEPS, seed=5)


def student(family: str = "faster_rcnn", *, least: bool = True) -> Detector:
    space = surveyed(family).space
    made = surveyed(family).graft(space.least() if least else space.full())
    assert isinstance(made, Detector)
    return made


def opened(network: Detector, family: str = "faster_rcnn", **options: float | bool) -> Course:
    return course_of(Hierarchical(Hierarchical.Options.model_validate(options)), network, material(family))


def loss(course: Course, batch: Batch, step: int = 0) -> torch.Tensor:
    return course.loss(batch, course.stages[0], step)


def test_a_student_that_is_the_teacher_misses_nothing_of_it() -> None:
    batch = pool().pick(np.arange(3))
    whole = student(least=False).eval()
    assert loss(opened(whole, own=0), batch).item() == pytest.approx(0, abs=1e-9)
    own = loss(opened(whole), batch)
    torch.testing.assert_close(own, torch.stack([*whole.losses(batch.images, batch.labels).values()]).sum())


@pytest.mark.parametrize("term", ["pyramid", "region", "embedding"])
def test_each_term_by_hand_at_the_boxes_that_the_student_has_sampled(term: str) -> None:
    batch, network, teacher = pool().pick(np.arange(4)), student().eval(), material().teacher
    course = opened(network, **{**OFF, term: 2})
    assert list(course.extras) == [term]
    found = loss(course, batch, step=3)
    assert isinstance(teacher, TwoStage)
    with torch.no_grad():
        studied = network.study(batch.images, batch.labels, 3)
        assert studied.boxes is not None
        pyramid = teacher.pyramid(batch.images)
        regions = teacher.regions(pyramid, studied.boxes)
        if term == "pyramid":
            widened = [widen(mine) for widen, mine in zip(course.extras[term].children(), studied.pyramid, strict=True)]
            by_hand = torch.stack([F.mse_loss(m, t) / t.var() for m, t in zip(widened, pyramid, strict=True)]).mean()
        else:
            mine = studied.regions if term == "region" else studied.embedding
            theirs = regions if term == "region" else teacher.embedding(regions)
            by_hand = F.mse_loss(course.extras[term](mine), theirs) / theirs.var()
    torch.testing.assert_close(found.detach(), 2 * by_hand)


def test_the_teachers_own_boxes_would_be_others() -> None:
    """What would go wrong without sharing: as many rows, and none of them about the same place."""
    batch, teacher = pool().pick(np.arange(4)), material().teacher
    assert isinstance(teacher, TwoStage)
    network = student().eval()
    with torch.no_grad():
        mine = network.study(batch.images, batch.labels, 0).boxes
        theirs = teacher.study(batch.images, batch.labels, 0).boxes
        assert mine is not None
        assert theirs is not None
        pyramid = teacher.pyramid(batch.images)
        shared, apart = teacher.regions(pyramid, mine), teacher.regions(pyramid, theirs)
    rows = min(len(shared), len(apart))
    assert (shared[:rows] - apart[:rows]).abs().amax(dim=(1, 2, 3)).gt(1e-3).float().mean() > 0.2
    course = opened(network, **{**OFF, "region": 1})
    at_mine = loss(course, batch)
    with torch.no_grad():
        widened = course.extras["region"](network.study(batch.images, batch.labels, 0).regions)
        at_theirs = F.mse_loss(widened[:rows], apart[:rows]) / apart.var()
    assert at_mine.item() != pytest.approx(at_theirs.item(), rel=1e-2)


def test_foreground_is_where_the_middle_of_a_cell_lies_in_an_object() -> None:
    """Of 8 pixels and 4 x 4 cells, middles at 1, 3, 5, 7; what is ignored is background."""
    labels = torch.from_numpy(packed([[[2, 0, 6, 4, 0, 1, 1], [0, 6, 8, 8, 0, 2, 1]], []]))
    found = foreground(labels, 8, (4, 4))
    assert found[0].tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert not found[1].any()


def test_only_the_foreground_counts_when_that_is_asked_for() -> None:
    batch, network = pool().pick(np.arange(2)), student().eval()
    course = opened(network, **{**OFF, "pyramid": 1}, foreground=True)
    with torch.no_grad():
        mine, theirs = network.pyramid(batch.images), material().teacher.pyramid(batch.images)  # type: ignore[operator]
        by_hand = []
        for widen, m, t in zip(course.extras["pyramid"].children(), mine, theirs, strict=True):
            inside = foreground(batch.labels, 64, (t.shape[2], t.shape[3]))
            cells = (widen(m) - t).square().mean(dim=1)[inside.bool()]
            by_hand.append((cells.mean() if len(cells) else cells.sum()) / t.var())
    torch.testing.assert_close(loss(course, batch).detach(), torch.stack(by_hand).mean())


@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet", "fcos", "ssdlite"])
@pytest.mark.timeout(20)
def test_gradients_reach_the_student_and_what_widens_it_and_never_the_teacher(family: str) -> None:
    one_stage = {} if family == "faster_rcnn" else {"region": 0, "embedding": 0}
    given = material(family)
    before = copy.deepcopy(given.teacher.state_dict())
    course = course_of(Hierarchical(Hierarchical.Options.model_validate(one_stage)), student(family), given)
    course.train()
    found = loss(course, pool().pick(np.arange(3)))
    assert found.isfinite()
    found.backward()
    for name, parameter in course.trained(course.stages[0]):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None for parameter in given.teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in given.teacher.state_dict().items())


@pytest.mark.parametrize("at", [1, 4])
def test_a_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(at: int) -> None:
    """Sampled regions are a function of the step."""
    distiller = Hierarchical(Hierarchical.Options())

    def walk(pupil: Pupil, start: int, stop: int) -> list[float]:
        stretch = Stretch(start, stop, (0, STEPS))
        return [value for _, value in train(pupil, pool(), distiller, SCHEDULE, stretch, material())]

    whole = Pupil(student())
    losses = walk(whole, 0, STEPS)
    first = Pupil(student())
    begun = walk(first, 0, at)
    torch.manual_seed(99)
    second = Pupil(student())
    second.restore(first.checkpoint())
    assert begun + walk(second, at, STEPS) == losses
    assert whole.checkpoint() == second.checkpoint()


def test_the_labels_alone_are_the_detectors_own_losses() -> None:
    network, batch = student().eval(), pool().pick(np.arange(3))
    course = course_of(Supervised(Supervised.Options()), network, None)
    own = torch.stack([*network.losses(batch.images, batch.labels, 2).values()]).sum()
    torch.testing.assert_close(loss(course, batch, step=2), own)


@pytest.mark.parametrize(
    ("family", "options", "pointer"),
    [
        ("retinanet", {}, "/region"),
        ("retinanet", {"region": 0}, "/embedding"),
        ("faster_rcnn", OFF, "/own"),
    ],
)
def test_what_cannot_be_compared_is_said(family: str, options: dict[str, float], pointer: str) -> None:
    with pytest.raises(UserError) as raised:
        opened(student(family), family, **options)
    assert raised.value.errors[0].pointer == pointer
