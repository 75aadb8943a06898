"""What every dataset of the catalog promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from search import boxes
from search.catalog import Catalog
from search.files import Files
from search.plugins import Counted, Dataset, DatasetInfo, Split, SplitName
from search.spec import Pick
from tests.search import pictures

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
SMALL = {"train": 120, "validation": 40, "test": 40}


@dataclass(frozen=True)
class Case:
    name: str
    options: Callable[[Path], dict[str, Any]]
    """From a folder to be filled with files."""
    other: dict[str, Any]
    """Options that make other splits."""
    counts: tuple[int, int, int]

    def open(self, folder: Path, cache: Path | None = None, **changed: Any) -> Dataset:
        pick = Pick(name=self.name, options={**self.options(folder), **changed})
        dataset: Dataset = Catalog().make("datasets", pick, files=Files(cache or folder / "cache"))
        return dataset


def _once(make: Callable[[Path], Path]) -> Callable[[Path], str]:
    return lambda folder: str(folder / "data" if (folder / "data").exists() else make(folder / "data"))


CASES = [
    Case("digits", lambda _: {}, {"size": 16}, (1150, 250, 397)),
    Case("cluttered_digits", lambda _: dict(SMALL), {"seed": 1}, (120, 40, 40)),
    Case("shapes", lambda _: dict(SMALL), {"seed": 1}, (120, 40, 40)),
    Case(
        "coco",
        lambda folder: {"path": _once(pictures.coco)(folder), "size": 32, **pictures.COCO},
        {"channels": 1},
        (8, 4, 4),
    ),
    Case("scenes", lambda _: {"train": 30, "validation": 12, "test": 10, "size": 64}, {"seed": 1}, (30, 12, 10)),
    Case(
        "torchvision",
        lambda folder: {"dataset": "FashionMNIST", "root": _once(pictures.mnist)(folder), "validation": 0.2},
        {"seed": 1},
        (50, 10, 20),  # 20 % of the 6 training images of each class are one
    ),
    Case(
        "long_tailed",
        lambda _: {"of": {"name": "cluttered_digits", "options": {**SMALL, "train": 150}}, "imbalance": 4},
        {"seed": 1},
        (62, 40, 40),
    ),
    Case(
        "image_folder",
        lambda folder: {"path": _once(pictures.split_tree)(folder), "size": 16},
        {"channels": 1},
        (16, 16, 16),
    ),
    Case(
        "image_folder",
        lambda folder: {"path": _once(pictures.tree)(folder), "size": 16, "validation": 0.25, "test": 0.25},
        {"seed": 1},
        (8, 4, 4),
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def test_every_dataset_is_held_to_this() -> None:
    assert {case.name for case in CASES} == set(Catalog().names("datasets"))


def test_info_and_splits_agree(case: Case, tmp_path: Path) -> None:
    dataset = case.open(tmp_path)
    info = dataset.info()
    assert len(info.mean) == len(info.std) == info.channels
    assert all(0 < value < 1 for value in info.mean + info.std)
    assert 0 < info.pad < info.size
    assert info.classes
    assert all(isinstance(name, str) for name in info.classes)
    assert len(set(info.classes)) == len(info.classes)
    seen: set[int] = set()
    for name, count in zip(SPLITS, case.counts, strict=True):
        split = dataset.split(name)
        assert split.images.dtype == np.uint8
        assert split.images.shape == (count, *info.shape)
        assert not split.images.flags.writeable
        assert not split.labels.flags.writeable
        labels = classes_of(split) if info.task == "classification" else classes_of_objects(split, info)
        assert labels.min() >= 0
        assert labels.max() < len(info.classes)
        assert dataset.sizes()[name] == pytest.approx(count, abs=2)
        seen |= set(labels.tolist())
        if name == "train" and isinstance(dataset, Counted):
            assert np.abs(dataset.counts() - np.bincount(labels, minlength=len(info.classes))).max() <= 1
    assert seen == set(range(len(info.classes)))


def classes_of(split: Split) -> NDArray[np.int64]:
    assert split.labels.dtype == np.int64
    assert split.labels.shape == (len(split.images),)
    return split.labels


def classes_of_objects(split: Split, info: DatasetInfo) -> NDArray[np.int64]:
    labels = split.labels
    assert labels.dtype == np.float32
    assert labels.shape == (len(split.images), max(1, labels.shape[1]), boxes.COLUMNS)
    kinds = labels[..., boxes.KIND]
    assert set(np.unique(kinds)) <= {boxes.NOTHING, boxes.OBJECT, boxes.IGNORED}
    assert (labels[kinds == boxes.NOTHING] == 0).all()
    assert (np.diff((kinds == boxes.NOTHING).astype(int), axis=1) >= 0).all()  # empty rows are the last
    rows = labels[kinds != boxes.NOTHING]
    assert (rows[:, [boxes.X1, boxes.Y1]] >= 0).all()
    assert (rows[:, [boxes.X2, boxes.Y2]] <= info.size).all()
    assert (boxes.areas(rows) > 0).all()
    assert ((rows[:, boxes.VISIBLE] >= 0) & (rows[:, boxes.VISIBLE] <= 1)).all()
    assert (rows[:, boxes.CLASS] % 1 == 0).all()
    assert set(rows[:, boxes.CLASS]) <= set(range(len(info.classes)))
    return labels[..., boxes.CLASS][kinds == boxes.OBJECT].astype(np.int64)


def test_no_image_is_in_two_splits(case: Case, tmp_path: Path) -> None:
    dataset = case.open(tmp_path)
    train, validation, test = ({image.tobytes() for image in dataset.split(name).images} for name in SPLITS)
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_two_instances_give_the_same(case: Case, tmp_path: Path) -> None:
    """Even one that has another cache, so that nothing is read but built again."""
    first = case.open(tmp_path)
    for second in (case.open(tmp_path), case.open(tmp_path, cache=tmp_path / "other")):
        assert first.info() == second.info()
        for name in SPLITS:
            assert np.array_equal(first.split(name).images, second.split(name).images)
            assert np.array_equal(first.split(name).labels, second.split(name).labels)


def test_other_content_has_another_key(case: Case, tmp_path: Path) -> None:
    dataset, other = case.open(tmp_path), case.open(tmp_path, **case.other)
    assert dataset.info().key != other.info().key
    assert not np.array_equal(dataset.split("train").images, other.split("train").images)
