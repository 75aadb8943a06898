from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from search.boxes import IGNORED, KIND, OBJECT, VISIBLE
from search.datasets.coco import Coco
from search.datasets.instances import read_instances
from search.datasets.pictures import letterbox
from search.errors import DataError, InvalidSpec, UserError
from search.files import Files
from search.part import read_part
from tests.search.pictures import COCO, coco, picture

Document = dict[str, Any]


def opened(data: Path, **options: Any) -> Coco:
    picked = read_part(Coco.Options, {"path": str(data), "size": 32, **COCO, **options})
    return Coco(picked, Files(data.parent / "cache"))


def change(data: Path, edit: Callable[[Document], None], split: str = "train") -> None:
    path = data / COCO[split]["annotations"]
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def stated(annotation: Document, **more: Any) -> tuple[list[float], bool, float] | None:
    """Box, ignored and visible share of one annotation of a 12x10 image."""
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 12, "height": 10}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, **annotation, **more}],
    }
    (image,) = read_instances(json.dumps(document).encode(), "a.json").images
    return (image.boxes[0].tolist(), bool(image.ignored[0]), float(image.visible[0])) if len(image.boxes) else None


# -- annotations -------------------------------------------------------------------------------------------------------

BOX = {"bbox": [1, 2, 4, 6]}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (BOX, ([1, 2, 5, 8], False, 1)),
        ({"bbox": [-3, 4.5, 8, 100]}, ([0, 4.5, 5, 10], False, 1)),
        ({"bbox": [12, 2, 4, 6]}, None),
        ({"bbox": [3, 3, 0, 6]}, None),
        ({"bbox": [3, 3, 2, -1]}, None),
        ({**BOX, "iscrowd": 1}, ([1, 2, 5, 8], True, 1)),
        ({**BOX, "ignore": 1, "iscrowd": 0}, ([1, 2, 5, 8], True, 1)),
        ({**BOX, "vis_ratio": 0.25}, ([1, 2, 5, 8], False, 0.25)),
        ({**BOX, "vis_bbox": [1, 2, 2, 6]}, ([1, 2, 5, 8], False, 0.5)),
        ({**BOX, "vis_box": [3, 2, 50, 3]}, ([1, 2, 5, 8], False, 0.25)),
        ({**BOX, "vis_bbox": [9, 9, 2, 2], "visible": 0.75}, ([1, 2, 5, 8], False, 0.75)),
        ({**BOX, "segmentation": {"counts": [3], "size": [1, 2]}, "area": "?"}, ([1, 2, 5, 8], False, 1)),
    ],
)
def test_what_an_annotation_says(annotation: Document, expected: tuple[list[float], bool, float] | None) -> None:
    assert stated(annotation) == expected


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 600))
def test_a_letterboxed_image_touches_two_sides_and_keeps_its_shape(width: int, height: int, size: int) -> None:
    place = letterbox(width, height, size)
    assert max(place.width, place.height) == size
    assert place.width >= 1
    assert place.height >= 1
    assert abs(place.width * max(width, height) - width * size) <= max(width, height)  # to a pixel
    assert abs(place.height * max(width, height) - height * size) <= max(width, height)
    for before, inner in ((place.left, place.width), (place.top, place.height)):
        assert 0 <= size - inner - 2 * before <= 1


# -- images and labels -------------------------------------------------------------------------------------------------


def test_labels_are_in_pixels_of_the_letterboxed_image(tmp_path: Path) -> None:
    """12x10 becomes 48x40 with 4 rows above and below: everything is four times as large and 4 pixels lower."""
    data = coco(tmp_path / "data")
    dataset = opened(data, size=48)
    assert dataset.info().classes == ("dog", "cat")
    assert dataset.counts().tolist() == [2, 4]
    split = dataset.split("train")
    found = {(len(rows := label[label[:, KIND] > 0]), *rows[:, KIND].tolist()) for label in split.labels}
    assert found == {(0,), (2, OBJECT, IGNORED), (2, OBJECT, OBJECT)}
    full = split.labels[split.labels[:, 0, KIND] > 0]
    assert full[:, 0].tolist() == [[4, 12, 20, 36, 1, OBJECT, 1]] * 4
    assert (full[:, 1, :5] == [24, 4, 48, 44, 0]).all()


def test_boxes_stay_on_what_they_are_drawn_around(tmp_path: Path) -> None:
    """White rectangles on black images of many shapes are found again, white, in the boxes of the labels."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    rng, images, annotations = np.random.default_rng(0), [], []
    for number in range(12):
        width, height = rng.integers(40, 200, 2).tolist()
        x, y = int(rng.integers(width // 2)), int(rng.integers(height // 2))
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y : y + height // 3, x : x + width // 3] = 255
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        annotations.append({"image_id": number, "category_id": 0, "bbox": [x, y, width // 3, height // 3]})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "white"}]}
    (tmp_path / "data" / "all.json").write_text(json.dumps(document))
    source = {"annotations": "all.json", "images": "images"}
    dataset = opened(tmp_path / "data", train=source, validation=None, test=None, size=64)
    assert sum(dataset.sizes().values()) == 12
    for name in dataset.sizes():
        split = dataset.split(name)
        for image, (row, *_) in zip(split.images.min(axis=1), split.labels, strict=True):
            lit = image > 128
            y, x = (np.flatnonzero(lit.any(axis=axis)) for axis in (1, 0))
            assert np.abs(row[:4] - [x[0], y[0], x[-1] + 1, y[-1] + 1]).max() <= 1
            assert lit.sum() > 0.8 * (row[2] - row[0]) * (row[3] - row[1])


def test_what_an_image_leaves_free_is_the_mean(tmp_path: Path) -> None:
    image = opened(coco(tmp_path / "data"), size=48).split("test").images[0]
    assert (image[:, :4].reshape(3, -1).T == [124, 116, 104]).all()
    assert (image[:, 44:].reshape(3, -1).T == [124, 116, 104]).all()
    assert image[:, 4:44].std() > 20


def test_a_photograph_stored_on_its_side_is_turned_where_its_annotations_say_so(tmp_path: Path) -> None:
    """Boxes are drawn on the pixels as stored by some tools, and as shown by others; sizes tell which."""
    data = coco(tmp_path / "data")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture(1, (12, 10)).save(data / "train" / "0.png", exif=exif)
    stored = opened(data).split("train").images
    change(data, lambda document: document["images"][0].update(width=10, height=12))
    turned = opened(data).split("train").images
    assert {image.tobytes() for image in stored} != {image.tobytes() for image in turned}
    upright = next(image for image in turned if (image[:, :, 0].T == [124, 116, 104]).all())
    assert (upright[:, :, -1].T == [124, 116, 104]).all()


def test_only_the_classes_asked_for_are_looked_for(tmp_path: Path) -> None:
    dataset = opened(coco(tmp_path / "data"), classes=["cat"])
    assert dataset.info().classes == ("cat",)
    assert dataset.sizes() == {"train": 8, "validation": 4, "test": 4}
    assert dataset.split("train").labels.shape == (8, 1, 7)
    assert opened(tmp_path / "data", classes=["cat", "dog"]).info().classes == ("cat", "dog")


def test_splits_that_are_not_named_are_taken_from_the_training_images(tmp_path: Path) -> None:
    data = coco(tmp_path / "data", (20, 4, 4))
    dataset = opened(data, validation=None, validation_share=0.25)
    assert dataset.sizes() == {"train": 15, "validation": 5, "test": 4}
    alone = opened(data, validation=None, test=None, validation_share=0.25, test_share=0.1)
    assert alone.sizes() == {"train": 13, "validation": 5, "test": 2}
    again = opened(data, validation=None, validation_share=0.25, seed=1)
    assert again.info().key != dataset.info().key


def test_training_images_that_another_split_repeats_are_left_out(tmp_path: Path) -> None:
    data = coco(tmp_path / "data")
    (data / "train" / "2.png").write_bytes((data / "test" / "1.png").read_bytes())
    assert opened(data).sizes() == {"train": 7, "validation": 4, "test": 4}


def test_as_many_images_are_taken_as_asked(tmp_path: Path) -> None:
    data = coco(tmp_path / "data")
    few = opened(data, images=5, seed=2)
    assert few.sizes() == {"train": 5, "validation": 4, "test": 4}
    every, some = ({image.tobytes() for image in one.split("train").images} for one in (opened(data), few))
    assert some < every


def test_names_of_files_and_ids_do_not_matter_and_boxes_do(tmp_path: Path) -> None:
    data = coco(tmp_path / "data")
    key = opened(data).info().key

    def renamed(document: Document) -> None:
        (data / "train" / "0.png").rename(data / "train" / "other.png")
        document["images"][0] |= {"file_name": "other.png", "id": "first"}
        for annotation in document["annotations"]:
            annotation["image_id"] = {10: "first"}.get(annotation["image_id"], annotation["image_id"])

    change(data, renamed)
    assert opened(data).info().key == key
    change(data, lambda document: document["annotations"][0].update(vis_ratio=0.5))
    changed = opened(data)
    assert changed.info().key != key
    assert (changed.split("train").labels[..., VISIBLE] == 0.5).sum() == 1


# -- hostile and broken files ------------------------------------------------------------------------------------------


def _annotation(**fields: Any) -> Callable[[Document], None]:
    return lambda document: document["annotations"][1].update(fields)


def _image(**fields: Any) -> Callable[[Document], None]:
    return lambda document: document["images"][1].update(fields)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda document: document.pop("annotations"), "/annotations: Field required"),
        (_annotation(bbox=[1, 2, 3]), "/annotations/1/bbox/3: Field required"),
        (_annotation(bbox=[1, 2, 3, "wide"]), "/annotations/1/bbox/3: Input should be a valid number"),
        (_annotation(bbox=[1, 2, 3, float("nan")]), "finite"),
        (_annotation(bbox=[1, 2, 3, float("inf")]), "finite"),
        (_annotation(image_id=99), "no image has the id 99"),
        (_annotation(category_id=99), "/annotations/1/category_id: no category has the id 99"),
        (_annotation(vis_ratio=1.5), "/annotations/1/vis_ratio"),
        (_image(id=10), "two of `images` have one id"),
        (_image(file_name="0.png"), "one `file_name`"),
        (_image(width=0), "/images/1/width"),
        (_image(width=None), "/images/1/width"),
        (_image(file_name="../../secret.png"), "does not name a file below"),
        (_image(file_name="/etc/passwd"), "no file"),
        (_image(file_name="a\0b"), "does not name a file below"),
        (lambda document: document["categories"].clear(), "no category has the id"),
        (lambda document: document["categories"][0].update(name="dog"), "`categories` have one id or one name"),
        (lambda document: document["images"].clear(), "no image has the id"),
        (lambda document: [document[part].clear() for part in document if part != "info"], "no `categories`"),
        (lambda document: document["annotations"].clear(), "no training image has an object"),
    ],
)
def test_what_is_wrong_with_annotations_is_said(tmp_path: Path, spoil: Callable[[Document], Any], says: str) -> None:
    data = coco(tmp_path / "data")
    change(data, spoil)
    with pytest.raises(DataError) as caught:
        opened(data).info()
    if says == "no file":  # an absolute name after a folder is one below it
        assert caught.value.file == f"{data}/train/etc/passwd"
        return
    assert says in caught.value.message
    assert caught.value.file == f"{data}/annotations/train.json"


@pytest.mark.parametrize("content", [b"", b"hello", b"[" * 100_000, b"[]", b'{"images": 3}', b"\xff\xfe"])
def test_files_that_are_no_annotations_are_named(tmp_path: Path, content: bytes) -> None:
    data = coco(tmp_path / "data")
    (data / "annotations" / "test.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        opened(data).info()
    assert caught.value.file == f"{data}/annotations/test.json"


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_no_damage_to_annotations_crashes_their_reader(at: int, byte: int) -> None:
    content = bytearray(WHOLE)
    content[at % len(content)] = byte
    try:
        outcome: object = len(read_instances(bytes(content), "a.json").images)
    except DataError as error:
        outcome = error.file
    assert outcome in (1, "a.json")


WHOLE = json.dumps(
    {
        "images": [{"id": 1, "file_name": "a.png", "width": 12, "height": 10}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1.5, 2, 4, 6], "iscrowd": 0, "vis_ratio": 0.5}],
    }
).encode()


def _missing(data: Path) -> None:
    (data / "train" / "3.png").unlink()


def _broken(data: Path) -> None:
    (data / "train" / "3.png").write_bytes(b"broken")


def _link_out(data: Path) -> None:
    _missing(data)
    picture(3).save(data.parent / "secret.png")
    (data / "train" / "3.png").symlink_to(data.parent / "secret.png")


def _link_to_itself(data: Path) -> None:
    _missing(data)
    (data / "train" / "3.png").symlink_to(data / "train" / "3.png")


def _pipe(data: Path) -> None:
    _missing(data)
    os.mkfifo(data / "train" / "3.png")


def _other_size(data: Path) -> None:
    picture(3, (20, 10)).save(data / "train" / "3.png")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_missing, "cannot be read"),
        (_broken, "not an image"),
        (_link_out, "below the dataset's folder"),
        (_link_to_itself, "below the dataset's folder"),
        (_pipe, "not a regular file"),
        (_other_size, "20x10 pixels, but 12x10 by its annotations"),
    ],
)
def test_what_is_wrong_with_an_image_is_said(tmp_path: Path, spoil: Callable[[Path], None], says: str) -> None:
    data = coco(tmp_path / "data")
    spoil(data)
    with pytest.raises(DataError) as caught:
        opened(data).split("train")
    assert says in caught.value.message
    assert "3.png" in caught.value.message


def test_errors_name_files_as_the_user_does_and_not_where_they_lie(tmp_path: Path) -> None:
    coco(tmp_path / "data")
    (tmp_path / "data" / "annotations" / "test.json").unlink()
    options = read_part(Coco.Options, {"path": "data", **COCO})
    with pytest.raises(DataError) as caught:
        Coco(options, Files(tmp_path / "cache", (tmp_path,))).info()
    assert caught.value.file == "data/annotations/test.json"
    assert str(tmp_path) not in caught.value.message


def test_annotations_outside_the_folder_are_refused(tmp_path: Path) -> None:
    data = coco(tmp_path / "data")
    (tmp_path / "secret.json").write_text("{}")
    source = {"annotations": "../secret.json", "images": "train"}
    with pytest.raises(DataError, match="below the dataset's folder"):
        opened(data, train=source).info()
    with pytest.raises(UserError) as caught:
        Coco(Coco.Options(path=str(data), train=source), Files(tmp_path / "cache", (tmp_path / "open",))).info()
    assert caught.value.errors[0].pointer == "/dataset/options/path"


def test_too_few_images_to_be_divided_are_an_error(tmp_path: Path) -> None:
    data = coco(tmp_path / "data", (2, 1, 1))
    with pytest.raises(DataError, match="2 different images, too few for 3 splits"):
        opened(data, validation=None, test=None).info()


def test_memory_is_counted_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened(coco(tmp_path / "data"), size=1024)
    monkeypatch.setattr("search.datasets.arrays.MOST_BYTES", 10_000_000)
    with pytest.raises(DataError, match="size: 456"):
        dataset.split("train")
    monkeypatch.setattr("search.datasets.coco._MOST_LABELS", 400)
    with pytest.raises(DataError, match="has 2 objects; room for as many in each of 8 images") as caught:
        opened(tmp_path / "data").info()
    assert caught.value.file.startswith(f"{tmp_path}/data/train/")


@pytest.mark.parametrize(
    ("options", "pointer", "says"),
    [
        ({"classes": ["cta"]}, "/dataset/options/classes", 'did you mean "cat"'),
        ({"classes": ["cat", "cat"]}, "", "twice"),
        ({"validation_share": 0.5, "test_share": 0.5}, "", "below 1"),
        ({"train": {"annotations": "a.json"}}, "/train/images", "required"),
        ({"size": 8}, "/size", "greater than"),
    ],
)
def test_wrong_options_are_pointed_at(tmp_path: Path, options: Document, pointer: str, says: str) -> None:
    data = coco(tmp_path / "data")
    with pytest.raises((InvalidSpec, DataError)) as caught:
        opened(data, **options).info()
    assert caught.value.errors[0].pointer == pointer
    assert says in caught.value.errors[0].message
