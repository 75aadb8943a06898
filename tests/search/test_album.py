"""Images that cannot be used: which are left out, how many may be, and what is told of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.boxes import KIND, OBJECT
from search.datasets import pictures
from search.datasets.coco import Coco
from search.datasets.folder import ImageFolder
from search.datasets.long_tailed import LongTailed
from search.errors import DataError, DatasetCorrupt, InvalidSpec
from search.files import Files
from search.part import read_part
from search.plugins import Dataset, Screened, SplitName
from search.recipe import prepare
from tests.search.pictures import COCO, coco, picture, split_tree
from tests.workers.small_job import small_spec

pytestmark = pytest.mark.timeout(20)  # dozens of small files a test, on disks that others use as well

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
FEW = 0.05


def folder(data: Path, cache: str = "cache", **options: Any) -> ImageFolder:
    document = {"path": str(data), "size": 16, "max_bad_fraction": FEW, **options}
    return ImageFolder(read_part(ImageFolder.Options, document), Files(data.parent / cache))


def boxed(data: Path, cache: str = "cache", **options: Any) -> Coco:
    document = {"path": str(data), "size": 32, "max_bad_fraction": 0.1, **COCO, **options}
    return Coco(read_part(Coco.Options, document), Files(data.parent / cache))


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    picture(seed, (40, 40)).save(stream, format="JPEG")
    return stream.getvalue()


def content(dataset: Dataset) -> dict[str, tuple[bytes, bytes]]:
    return {name: (dataset.split(name).images.tobytes(), dataset.split(name).labels.tobytes()) for name in SPLITS}


def told(dataset: Screened) -> dict[str, str]:
    return {fault.file: fault.message for fault in dataset.skipped().faults}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """48 images of two classes: 8 of each in each split."""
    return split_tree(tmp_path / "data")


# -- which -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_a_truncated_jpeg_is_left_out(data: Path, split: SplitName) -> None:
    without = content(folder(data))
    (data / split / "dog" / "cut.jpg").write_bytes(jpeg(1)[:500])
    dataset = folder(data)
    before = dataset.sizes()
    assert content(dataset) == without
    assert {name: len(dataset.split(name)) for name in SPLITS} == {"train": 16, "validation": 16, "test": 16}
    assert (dataset.skipped().count, dataset.skipped().images) == (1, 49)
    ((file, said),) = told(dataset).items()
    assert file == f"{split}/dog/cut.jpg"
    assert "truncated" in said.lower()
    assert before[split] == 17, "nothing is opened to tell sizes"
    assert dataset.sizes() == {"train": 16, "validation": 16, "test": 16}
    assert dataset.counts().tolist() == np.bincount(dataset.split("train").labels).tolist() == [8, 8]


def test_all_that_is_no_image_is_left_out_and_told_apart(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_MOST_FILE", 4000)
    broken = {
        "train/cat/empty.png": (b"", "the file is empty"),
        "train/cat/heavy.png": (bytes(5000), "larger than"),
        "train/dog/heavy.png": (bytes(5001), "larger than"),
        "test/dog/text.jpg": (b"hello", "not an image"),
    }
    for name, (bytes_, _) in broken.items():
        (data / name).write_bytes(bytes_)
    found = told(folder(data, max_bad_fraction=0.1))
    assert found.keys() == broken.keys()
    assert all(says in found[name] for name, (_, says) in broken.items())


def test_splits_taken_from_the_training_images_go_without_it_as_well(data: Path) -> None:
    pool = data / "train"
    whole = {image.tobytes() for name in SPLITS for image in folder(pool, "a").split(name).images}
    spoil(data, "train/cat/0.png")
    dataset = folder(pool, "b", max_bad_fraction=0.1)
    kept = [image.tobytes() for name in SPLITS for image in dataset.split(name).images]
    assert len(kept) == len(set(kept)) == 15, "no image is in two of them"
    assert whole > set(kept)
    assert dataset.sizes() == {name: len(dataset.split(name)) for name in SPLITS}
    assert dataset.counts().tolist() == np.bincount(dataset.split("train").labels).tolist()


MIXED = [jpeg(seed) if seed < 16 else jpeg(seed)[: 30 * seed] for seed in range(22)]
"""Sixteen whole images, then six that were cut."""


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(22)), names=st.permutations(range(100, 122)))
def test_what_is_left_out_depends_on_bytes_only(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], names: list[int]
) -> None:
    """Written in any order, under any names: the same arrays, and the same bytes missing."""
    home = tmp_path_factory.mktemp("trees")
    found = []
    for data, written, called in ((home / "plain", range(22), range(22)), (home / "shuffled", order, names)):
        for place in written:
            path = data / ("cat", "dog")[place % 2] / f"{called[place]}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(MIXED[place])
        dataset = folder(data, data.name, max_bad_fraction=0.5, validation=0.2, test=0.2)
        gone = {(data / fault.file).read_bytes() for fault in dataset.skipped().faults}
        assert gone == set(MIXED[16:])
        found.append((dataset.skipped().key, dataset.info().key, content(dataset)))
    assert found[0] == found[1]


def test_bytes_that_are_no_image_are_not_the_same_image(data: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat"):
        (data / name / "gone.jpg").write_bytes(b"<html>404</html>")
    assert folder(data, max_bad_fraction=0.1).skipped().count == 3
    for name in ("train/cat", "test/cat"):
        (data / name / "again.jpg").write_bytes(jpeg(5))
    with pytest.raises(DataError, match=r"train/cat/again\.jpg, in two splits"):
        folder(data, max_bad_fraction=0.1).info()


def test_a_file_that_is_missing_when_it_is_opened_is_no_bad_image(data: Path) -> None:
    dataset = folder(data, max_bad_fraction=0.5)
    dataset.info()
    (data / "train" / "cat" / "3.png").unlink()
    with pytest.raises(DataError, match=r"train/cat/3\.png: the file cannot be read: No such file") as caught:
        dataset.split("train")
    assert caught.value.code == "DATASET_UNUSABLE"


def test_a_file_that_was_emptied_since_has_changed(data: Path) -> None:
    dataset = folder(data, max_bad_fraction=0.5)
    dataset.info()
    (data / "train" / "cat" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match="changed while the dataset was read"):
        dataset.skipped()


def test_want_of_memory_is_no_bad_image(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pictures, "_decoded", decoded)
    with pytest.raises(MemoryError):
        folder(data, max_bad_fraction=0.5).skipped()


# -- how many ----------------------------------------------------------------------------------------------------------


def spoil(data: Path, *names: str) -> None:
    for name in names:
        (data / name).write_bytes((data / name).read_bytes()[:120])


def test_exactly_the_share_may_be_left_out(data: Path) -> None:
    spoil(data, "train/cat/0.png", "test/dog/1.png", "train/dog/2.png")
    assert folder(data, "a", max_bad_fraction=3 / 48).skipped().count == 3
    for most in (0.0, 2 / 48, 0.0624):
        with pytest.raises(DatasetCorrupt, match="3 of 48 images cannot be used"):
            folder(data, f"b{most}", max_bad_fraction=most).skipped()


def test_a_corrupt_dataset_says_how_many_which_and_what_to_do(data: Path) -> None:
    spoil(data, *(f"train/cat/{number}.png" for number in range(5)))
    with pytest.raises(DatasetCorrupt) as caught:
        folder(data).split("validation")
    said = caught.value.message
    assert said.startswith("5 of 48 images cannot be used (10.42%, and `max_bad_fraction` is 5.00%): ")
    assert [said.count(f"{data}/train/cat/{number}.png: ") for number in range(5)] == [1, 1, 1, 0, 0]
    assert said.endswith("2 more; replace or remove such files, or allow a larger `max_bad_fraction`")
    assert caught.value.errors[0].pointer == "/dataset/options/max_bad_fraction"


def test_what_one_share_has_kept_another_judges_anew(data: Path) -> None:
    """The arrays are the same whatever the share is, so they lie under the same key."""
    spoil(data, "train/cat/0.png")
    kept = content(folder(data))
    assert folder(data).info().key == folder(data, max_bad_fraction=0).info().key
    with pytest.raises(DatasetCorrupt):
        folder(data, max_bad_fraction=0).split("train")
    assert content(folder(data, max_bad_fraction=0.4)) == kept
    assert len(list((data.parent / "cache" / "datasets").glob("*.safetensors"))) == 1


def test_a_repaired_image_is_taken_in_again(data: Path) -> None:
    whole = content(folder(data, "other"))
    good = (data / "train/cat/0.png").read_bytes()
    spoil(data, "train/cat/0.png")
    assert content(folder(data)) != whole
    (data / "train/cat/0.png").write_bytes(good)
    assert folder(data).skipped().count == 0
    assert content(folder(data)) == whole


def test_no_class_is_lost_silently(data: Path) -> None:
    spoil(data, *(f"test/dog/{number}.png" for number in range(8)))
    with pytest.raises(DatasetCorrupt, match="class `dog` has no image left in the test split") as caught:
        folder(data, max_bad_fraction=0.5).split("train")
    assert f"{data}/test/dog/0.png" in caught.value.message


def test_a_damaged_cache_is_screened_again(data: Path) -> None:
    spoil(data, "train/cat/0.png")
    kept, skipped = content(folder(data)), folder(data).skipped()
    (path,) = (data.parent / "cache" / "datasets").glob("*.safetensors")
    path.write_bytes(b"\xff" * 100)
    assert folder(data).sizes()["train"] == 16
    assert folder(data).skipped() == skipped
    assert content(folder(data)) == kept


@pytest.mark.parametrize("most", [-0.1, 0.51, "many"])
def test_a_share_is_a_small_one(most: object) -> None:
    with pytest.raises(InvalidSpec):
        read_part(ImageFolder.Options, {"path": "x", "max_bad_fraction": most})


# -- detection ---------------------------------------------------------------------------------------------------------


def test_a_truncated_image_is_left_out_with_its_boxes(tmp_path: Path) -> None:
    data = coco(tmp_path / "data")
    whole = boxed(data, "a")
    objects = {name: int((whole.split(name).labels[..., KIND] == OBJECT).sum()) for name in SPLITS}
    spoil(data, "train/2.png")  # the third has a cat and a dog
    dataset = boxed(data, "b")
    train = dataset.split("train")
    assert (len(train), len(train.images), dataset.sizes()["train"]) == (7, 7, 7)
    assert int((train.labels[..., KIND] == OBJECT).sum()) == objects["train"] - 2 == dataset.counts().sum()
    assert whole.counts().sum() == objects["train"]
    assert told(dataset).keys() == {"train/2.png"}
    alike = [image.tobytes() for image in whole.split("train").images]
    for image, labels in zip(train.images, train.labels, strict=True):
        assert np.array_equal(labels, whole.split("train").labels[alike.index(image.tobytes())])
    with pytest.raises(DatasetCorrupt, match=r"1 of 16 images cannot be used .*train/2\.png: "):
        boxed(data, "c", max_bad_fraction=0.06).skipped()


def test_an_image_of_another_size_than_stated_is_left_out_until_that_is_corrected(tmp_path: Path) -> None:
    """Of an image without objects too, whose labels say nothing of its size."""
    data = coco(tmp_path / "data")
    picture(3, (20, 10)).save(data / "train" / "3.png")
    first = boxed(data)
    assert told(first) == {"train/3.png": "this image is 20x10 pixels, but 12x10 by its annotations"}
    path = data / COCO["train"]["annotations"]
    document = json.loads(path.read_text())
    document["images"][3]["width"] = 20
    path.write_text(json.dumps(document))
    second = boxed(data)
    assert (second.skipped().count, len(second.split("train"))) == (0, 8)
    assert second.info().key != first.info().key


def test_no_class_of_objects_is_lost_silently(tmp_path: Path) -> None:
    data = coco(tmp_path / "data", (8, 4, 2))
    spoil(data, "test/0.png")  # the one with a cat
    with pytest.raises(DatasetCorrupt, match="class `cat` has no image left in the test split"):
        boxed(data).skipped()


# -- datasets of datasets, and jobs ------------------------------------------------------------------------------------


def thinned(data: Path, **options: Any) -> LongTailed:
    of = {"name": "image_folder", "options": {"path": str(data), "size": 16, **options}}
    return LongTailed(read_part(LongTailed.Options, {"of": of, "imbalance": 4}), Files(data.parent / "cache"))


def test_a_long_tail_is_made_of_what_is_left(data: Path) -> None:
    spoil(data, "train/cat/0.png")
    dataset = thinned(data, max_bad_fraction=FEW)
    assert dataset.skipped() == folder(data).skipped()
    assert np.bincount(dataset.split("train").labels).tolist() == dataset.counts().tolist() == [7, 1]
    with pytest.raises(DatasetCorrupt) as caught:
        thinned(data).skipped()
    assert caught.value.errors[0].pointer == "/dataset/options/of/options/max_bad_fraction"


def test_a_job_keeps_to_the_images_that_it_began_with(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(data, "train/cat/0.png")
    options = {"path": str(data), "size": 16, "max_bad_fraction": 0.2}
    spec = small_spec(dataset={"name": "image_folder", "options": options})
    begun = prepare(spec, Files(data.parent / "cache")).opened()
    assert begun.info.key == f"{folder(data).info().key}-{begun.skipped.key}"
    assert len(begun.split("train")) == 15

    def later(cache: str) -> int:
        return len(prepare(spec, Files(data.parent / cache), info=begun.info).split("train"))

    assert later("cache") == later("elsewhere") == 15
    refused, decoded = (data / "train/dog/1.png").read_bytes(), pictures._decoded

    def stricter(content: bytes, *more: Any) -> Any:
        if content == refused:
            raise ValueError("not by this version")
        return decoded(content, *more)

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_decoded", stricter)
        assert later("cache") == 15, "what was decoded here before is not decoded again"
        with pytest.raises(DataError, match=r"not what it was when the job opened it: .* decodes images otherwise"):
            later("another")
    picture(77).save(data / "train" / "dog" / "new.png")
    with pytest.raises(DataError, match="not what it was when the job opened it"):
        later("cache")
