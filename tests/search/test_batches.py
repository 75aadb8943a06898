from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search import boxes
from search.batches import Augmented, Cached, Normalise, Resident, augment, placed, views
from search.plugins import DatasetInfo, Split

INFO = DatasetInfo("key", ("a", "b"), 3, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), mirror=True, pad=2)


def split(count: int = 20) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(count, 3, 8, 8), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64))


def cached(count: int = 20) -> Cached:
    whole = split(count)
    logits = np.stack([whole.labels, -whole.labels], axis=1).astype(np.float32)
    return Cached(whole.images, whole.labels, logits, Normalise(INFO), seed=7)


def test_normalise_maps_pixels_to_the_scale_of_mean_and_std() -> None:
    images = np.zeros((1, 3, 8, 8), dtype=np.uint8)
    images[0, 1] = 255
    normal = Normalise(INFO)(images)
    assert normal[0, 0].eq(-2).all()
    assert normal[0, 1].eq(2).all()


@given(st.integers(0, 50), st.integers(1, 20))
def test_a_batch_is_a_function_of_its_step(step: int, size: int) -> None:
    first, second = cached().batch(step, size), cached().batch(step, size)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_an_epoch_shows_every_image_once() -> None:
    seen = torch.cat([cached().batch(step, 5).labels for step in range(4)])
    assert sorted(seen.tolist()) == list(range(20))
    again = torch.cat([cached().batch(step, 5).labels for step in range(4, 8)])
    assert sorted(again.tolist()) == list(range(20))
    assert seen.tolist() != again.tolist()


def test_logits_and_labels_stay_with_their_images() -> None:
    batch = cached().batch(3, 6)
    assert batch.teacher_logits is not None
    assert torch.equal(batch.teacher_logits[:, 0], batch.labels.float())
    assert torch.equal(batch.images, Normalise(INFO)(split().images[batch.labels.numpy()]))


def test_a_batch_larger_than_the_set_is_the_whole_set() -> None:
    assert sorted(cached(3).batch(11, 64).labels.tolist()) == [0, 1, 2]


def test_augmentation_moves_pixels_and_keeps_the_input() -> None:
    whole = split()
    before = whole.images.copy()
    changed = augment(whole, INFO, np.random.default_rng(0))
    assert changed.images.shape == whole.images.shape
    assert (changed.images != whole.images).any()
    assert (whole.images == before).all()
    assert (changed.labels == whole.labels).all()


def test_without_padding_or_mirroring_nothing_changes() -> None:
    still = DatasetInfo("key", ("a",), 3, 8, (0.5,) * 3, (0.25,) * 3, mirror=False, pad=0)
    whole = split()
    assert (augment(whole, still, np.random.default_rng(0)).images == whole.images).all()


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    info = DatasetInfo("key", ("a",), 3, 8, (0.5,) * 3, (0.25,) * 3, mirror=False, pad=1)
    whole = split(1)
    padded = np.pad(whole.images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    windows = [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    for seed in range(10):
        crop = augment(whole, info, np.random.default_rng(seed)).images
        assert any((crop == window).all() for window in windows)


def test_boxes_move_with_what_they_are_drawn_around() -> None:
    """Each image is black but for one bright rectangle, which is found again in the augmented image."""
    info = replace(INFO, size=16, pad=3, task="detection")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 10, size=(2, 60))
    images, rows = np.zeros((60, 3, 16, 16), np.uint8), []
    for image, left, top in zip(images, x + 1, y + 1, strict=True):  # off the border, which padding repeats
        image[:, top : top + 4, left : left + 3] = 255
        rows.append([[left, top, left + 3, top + 4, 0, boxes.OBJECT, 1]])
    changed = augment(Split(images, boxes.packed(rows)), info, np.random.default_rng(1))
    assert (changed.labels[:, 0, boxes.VISIBLE] < 1).sum() > 5
    for image, label in zip(changed.images[:, 0], changed.labels[:, 0], strict=True):
        x1, y1, x2, y2 = label[boxes.BOX].astype(int)
        drawn = np.zeros_like(image)
        drawn[y1:y2, x1:x2] = 255
        assert (image == drawn).all()


def test_views_of_detection_hold_the_labels_of_each_view() -> None:
    whole = Split(split(2).images, boxes.packed([[[1, 1, 5, 7, 1, boxes.OBJECT, 1]], []]))
    info = replace(INFO, task="detection")
    seen = views(whole, info, 3, seed=5)
    assert seen.labels.shape == (6, 1, 7)
    assert seen.labels.dtype == np.float32
    assert (seen.labels[:2] == whole.labels).all()
    assert (seen.labels[2] != whole.labels[0]).any()
    assert (seen.labels[[1, 3, 5]] == 0).all()
    batch = Augmented(whole, Normalise(info)).batch(0, 2)
    assert batch.labels.shape == (2, 1, 7)
    assert batch.labels.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 3])
def test_views_begin_with_the_images_themselves(count: int) -> None:
    whole = split()
    seen = views(whole, INFO, count, seed=5)
    assert len(seen) == count * len(whole)
    assert (seen.images[: len(whole)] == whole.images).all()
    assert seen.labels.reshape(count, -1).tolist() == [whole.labels.tolist()] * count
    assert (views(whole, INFO, count, seed=5).images == seen.images).all()


def test_a_teacher_sees_another_augmentation_in_every_epoch() -> None:
    source = Augmented(split(4), Normalise(INFO), seed=1)
    first, second = source.batch(0, 4), source.batch(1, 4)
    assert not torch.equal(first.images[first.labels.argsort()], second.images[second.labels.argsort()])


def test_what_is_kept_on_the_device_gives_the_same_batches() -> None:
    whole = cached()
    kept = Resident.of(whole)
    assert kept.images.dtype == torch.uint8
    for step in (0, 3, 4):
        here, there = whole.batch(step, 6), kept.batch(step, 6)
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.labels, there.labels)
        assert here.teacher_logits is not None
        assert there.teacher_logits is not None
        assert torch.equal(here.teacher_logits, there.teacher_logits)


def test_on_a_cpu_the_set_stays_where_it_is() -> None:
    whole = cached()
    assert placed(whole) is whole


@pytest.mark.filterwarnings("error")
def test_arrays_that_may_not_be_written_to_are_copied() -> None:
    whole = cached()
    for array in (whole.images, whole.labels, whole.logits):
        array.flags.writeable = False
    expected = cached().images
    list(whole.in_order(7))
    whole.normalise(whole.images[:3])
    Resident.of(whole).images.zero_()
    assert (whole.images == expected).all()
