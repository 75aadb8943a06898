"""Laws of all distillers, on random images and labels, with students cut from the teacher."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search.batches import Batch
from search.catalog import Catalog
from search.course import Course, course_of, spans
from search.device import Usage
from search.distillers.contrast import Contrast
from search.distillers.features import adapter
from search.distillers.rkd import angles, distances
from search.plugins import Distiller
from search.spec import Pick
from tests.search.courses import INFO, NAMES, material, pool, student

SOFT = ["attention", "dist", "dkd", "feature", "fitnet", "hinton", "rkd", "sequence", "srm"]
"""Those that have nothing to say to a student that is the teacher, labels left out."""
STEPS = 20
seeds = settings(max_examples=6, deadline=None)


def named(name: str, **options: object) -> Distiller:
    made: Distiller = Catalog().make("distillers", Pick.model_validate({"name": name, "options": options}))
    return made


@cache
def teacher() -> torch.nn.Module:
    return material(STEPS).teacher


def noise(seed: int, size: int = 6) -> Batch:
    rng = np.random.default_rng(seed)
    images = pool().normalise(rng.integers(0, 256, (size, *INFO.shape), dtype=np.uint8))
    with torch.no_grad():
        logits = teacher()(images)
    return Batch(images, torch.from_numpy(rng.integers(0, len(INFO.classes), size)), logits)


def per_stage(course: Course, batch: Batch) -> list[torch.Tensor]:
    return [course.loss(batch, span.stage, span.start) for span in spans(course.stages, STEPS)]


@pytest.mark.parametrize("name", SOFT)
@given(seed=st.integers(0, 10_000))
@seeds
def test_a_student_that_is_the_teacher_has_nothing_to_learn(name: str, seed: int) -> None:
    options = {"alpha": 1.0} if name in ("sequence", "srm") else {}
    course = course_of(named(name, **options), student(least=False).eval(), material(STEPS))
    assert abs(per_stage(course, noise(seed))[-1].item()) < 1e-4


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pcl"])
@given(seed=st.integers(0, 10_000))
@seeds
def test_the_order_of_a_batch_does_not_matter(name: str, seed: int) -> None:
    course, batch = course_of(named(name), student(), material(STEPS)), noise(seed)
    course.train()
    assert batch.teacher_logits is not None
    turned = Batch(batch.images.flip(0), batch.labels.flip(0), batch.teacher_logits.flip(0))
    for one, other in zip(per_stage(course, batch), per_stage(course, turned), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_on_the_way_is_enough(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the networks compute in bfloat16, the loss in float32."""
    monkeypatch.setattr("search.taps.usage_of", lambda device: Usage(torch.contiguous_format, torch.bfloat16))
    course = course_of(named(name), student(), material(STEPS))
    course.train()
    for span in spans(course.stages, STEPS):
        loss = course.loss(course.draw(pool(), span.start, 8), span.stage, span.start)
        assert loss.dtype is torch.float32
        assert loss.isfinite()
        loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in course.student.parameters())


def test_decoupled_distillation_by_hand() -> None:
    """
    Two classes: nothing is left to say about the others, and the label's part is all of distillation. The student
    knows nothing, the teacher says (3/4, 1/4).
    """
    told, answer, labels = torch.tensor([[np.log(3), 0.0]]).float(), torch.zeros(1, 2), torch.tensor([0])
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert named("dkd", temperature=1, beta=8).loss(answer, labels, told).item() == pytest.approx(expected, rel=1e-5)


def test_decoupled_distillation_with_the_weights_that_make_it_whole() -> None:
    """KL = KL of the label + (1 - q) KL of the others, q what the teacher gives the label: Zhao et al., equation 5."""
    batch = noise(3, size=1)
    answer = torch.tensor([[0.3, -1.0, 0.7, 0.1]])
    assert batch.teacher_logits is not None
    others = 1 - batch.teacher_logits.softmax(1)[0, batch.labels[0]].item()
    whole = named("hinton", temperature=1).loss(answer, batch.labels, batch.teacher_logits)
    parts = named("dkd", temperature=1, alpha=1, beta=others).loss(answer, batch.labels, batch.teacher_logits)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-4)


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_relations_do_not_mind_scale_and_place(scale: float, place: float) -> None:
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    moved = scale * rows + place
    torch.testing.assert_close(distances(moved), distances(rows), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(angles(moved), angles(rows), rtol=1e-3, atol=1e-3)


def test_relations_by_hand() -> None:
    """A right angle with sides 3 and 4: distances 3, 4 and 5, their mean 4; its cosines 0, 3/5 and 4/5."""
    rows = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert distances(rows)[0, 1].item() == pytest.approx(3 / 4)
    assert distances(rows)[1, 2].item() == pytest.approx(5 / 4)
    found = angles(rows)
    assert found[0, 1, 2].item() == pytest.approx(0, abs=1e-6)
    assert found[1, 0, 2].item() == pytest.approx(3 / 5)
    assert found[2, 0, 1].item() == pytest.approx(4 / 5)


def test_an_adapter_begins_with_the_channels_there_are() -> None:
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    wide = adapter(3, 5)(maps)
    torch.testing.assert_close(wide[:, :3], maps)
    assert not wide[:, 3:].any()


def test_contrast_is_lowest_where_each_finds_its_own() -> None:
    """With projections that are the identity, a student that is the teacher beats one whose images are mixed up."""
    course = course_of(Contrast(Contrast.Options(width=32)), student(least=False).eval(), material(STEPS))
    with torch.no_grad():
        for name in ("student", "teacher"):
            torch.nn.init.eye_(course.extras[name].weight)  # type: ignore[arg-type]
            torch.nn.init.zeros_(course.extras[name].bias)  # type: ignore[arg-type]
    right, [own] = noise(0), per_stage(course, noise(0))
    seen = course._student(right.images)  # type: ignore[attr-defined]
    course._teacher = lambda images: type(seen)(seen.logits, [], seen.embedding.roll(1, 0))  # type: ignore[attr-defined]
    [mixed] = per_stage(course, right)
    assert own < mixed
