"""What every distiller promises as a course of training, whatever it taps or trains beside the student."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from search.catalog import Catalog
from search.course import Course, course_of, spans, state_of
from search.plugins import Distiller
from search.spec import Pick, Schedule
from search.teachers.small import SmallMobileNet
from search.training import Pupil, Stretch, train
from tests.search.courses import INFO, NAMES, material, pool, student

SCHEDULE = Schedule(batch_size=8)
STEPS = 20


def distiller_of(name: str) -> Distiller:
    made: Distiller = Catalog().make("distillers", Pick(name=name))
    return made


@pytest.fixture(params=NAMES)
def distiller(request: pytest.FixtureRequest) -> Distiller:
    return distiller_of(request.param)


def walk(pupil: Pupil, distiller: Distiller, start: int, stop: int) -> list[float]:
    stretch = Stretch(start, stop, (0, STEPS))
    return [loss for _, loss in train(pupil, pool(), distiller, SCHEDULE, stretch, material(STEPS))]


def opened(distiller: Distiller, *, least: bool = True) -> Course:
    return course_of(distiller, student(least=least), material(STEPS))


def first_batches(course: Course) -> list[torch.Tensor]:
    """The loss of the first step of every stage."""
    course.train()
    found = []
    for span in spans(course.stages, STEPS):
        course.before(span.start)
        found.append(course.loss(course.draw(pool(), span.start, 8), span.stage, span.start))
    return found


def test_every_loss_is_finite_and_reaches_what_its_stage_trains_and_never_the_teacher(distiller: Distiller) -> None:
    given = material(STEPS)
    before = copy.deepcopy(given.teacher.state_dict())
    course = course_of(distiller, student(), given)
    course.train()
    for span in spans(course.stages, STEPS):
        course.before(span.start)
        course.student.zero_grad()
        course.extras.zero_grad()
        loss = course.loss(course.draw(pool(), span.start, 8), span.stage, span.start)
        assert loss.shape == ()
        assert loss.isfinite()
        loss.backward()
        gradients = [parameter.grad for _, parameter in course.trained(span.stage)]
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert all(parameter.grad is None for parameter in given.teacher.parameters())
    assert not given.teacher.training
    for name, tensor in given.teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_training_teaches_something_and_leaves_nothing_behind(distiller: Distiller) -> None:
    """The student has the modules and tensors it had, no hooks, and everything learns again."""
    pupil = Pupil(student())
    names = list(pupil.model.state_dict())
    before = copy.deepcopy(pupil.model.state_dict())
    walk(pupil, distiller, 0, STEPS)
    assert list(pupil.model.state_dict()) == names
    assert any(not torch.equal(before[name], tensor) for name, tensor in pupil.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in pupil.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pupil.model.modules())


@cache
def undisturbed(name: str) -> tuple[Pupil, list[float]]:
    pupil = Pupil(student())
    return pupil, walk(pupil, distiller_of(name), 0, STEPS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [1, 5, 9, 13, 19])
def test_a_course_goes_on_from_a_checkpoint_as_if_nothing_had_happened(name: str, at: int) -> None:
    whole, losses = undisturbed(name)
    distiller = distiller_of(name)
    first = Pupil(student())
    walk(first, distiller, 0, at)
    second = Pupil(student())
    second.restore(first.checkpoint())
    assert walk(second, distiller, at, STEPS) == pytest.approx(losses[at:], rel=1e-6)
    for place, tensor in second.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[place]), place
    assert second.extras.keys() == whole.extras.keys()
    assert all(torch.equal(second.extras[place], whole.extras[place]) for place in whole.extras)


@pytest.mark.parametrize("name", ["attention", "contrast", "fitnet", "rkd", "srm"])
def test_a_student_of_another_family_is_watched_where_its_maps_have_the_same_size(name: str) -> None:
    other = SmallMobileNet(SmallMobileNet.Options(width=0.25)).build(INFO.shape, len(INFO.classes))
    given = material(STEPS)
    ours, theirs, taps = given.watched(other)
    shown, seen = (watched.dry(given.first()) for watched in (ours, theirs))
    assert [one.shape[2:] for one in shown.features] == [one.shape[2:] for one in seen.features]
    assert [tuple(one.shape[1:]) for one in seen.features] == [tap.shape for tap in taps]
    distiller: Distiller = Catalog().make("distillers", Pick(name=name))
    course = course_of(distiller, other, given)
    course.train()
    for span in spans(course.stages, STEPS):
        assert course.loss(course.draw(pool(), span.start, 8), span.stage, span.start).isfinite()


def test_two_courses_of_one_seed_are_the_same(distiller: Distiller) -> None:
    torch.manual_seed(1)
    one = opened(distiller)
    torch.manual_seed(2)
    other = opened(distiller)
    assert state_of(one.extras).keys() == state_of(other.extras).keys()
    for name, tensor in state_of(one.extras).items():
        assert torch.equal(tensor, state_of(other.extras)[name]), name
    assert [loss.item() for loss in first_batches(one)] == [loss.item() for loss in first_batches(other)]
