"""What a file of COCO's "instances" says: images, and the boxes of the objects in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from search.errors import DataError

_Id = int | str
_Box = tuple[float, float, float, float]
_Side = Annotated[int, Field(ge=1, le=1_000_000)]


class _Written(BaseModel):
    """Fields that are not read, such as polygons, are passed over."""

    model_config = ConfigDict(allow_inf_nan=False)


class _Image(_Written):
    id: _Id
    file_name: str = Field(min_length=1, max_length=4096)
    width: _Side
    height: _Side


class _Category(_Written):
    id: _Id
    name: str = Field(min_length=1, max_length=256)


class _Annotation(_Written):
    image_id: _Id
    category_id: _Id
    bbox: _Box
    iscrowd: bool = False
    ignore: bool = False
    visible_box: _Box | None = Field(None, validation_alias=AliasChoices("vis_box", "vis_bbox"))
    visible_share: float | None = Field(None, ge=0, le=1, validation_alias=AliasChoices("vis_ratio", "visible"))


class _Document(_Written):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


@dataclass(frozen=True, slots=True)
class Pictured:
    """
    An image: its file, width and height in pixels, and what is in it.

    `boxes` `[k, 4]` are x1, y1, x2, y2, cut to the image, none of them empty; `categories`, `ignored` and `visible`
    `[k]` their names, whether they are crowds or to be ignored, and which share of each can be seen.
    """

    file: str
    width: int
    height: int
    boxes: NDArray[np.float64]
    categories: tuple[str, ...]
    ignored: NDArray[np.bool_]
    visible: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Instances:
    categories: tuple[str, ...]
    """In order of their ids."""
    images: tuple[Pictured, ...]


def read_instances(content: bytes, shown: str) -> Instances:
    """
    From the bytes of a JSON file, which errors call `shown`.

    Boxes are cut to their images; those of which nothing is left are dropped.

    Raises:
        DataError: not such a document, or ids in it that occur twice or name nothing.
    """
    try:
        document = _Document.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"/{step}" for step in first["loc"] if step not in ("int", "str"))
        raise DataError(f"{place}: {first['msg']}; correct it".removeprefix(": "), file=shown) from None
    names = _named({category.id: category.name for category in document.categories}, document, shown)
    found: dict[_Id, list[_Annotation]] = {image.id: [] for image in document.images}
    if len(found) < len(document.images):
        raise DataError("two of `images` have one id; give each its own", file=shown)
    files = {image.file_name for image in document.images}
    if len(files) < len(document.images):
        raise DataError("two of `images` have one `file_name`; put their annotations together", file=shown)
    for number, annotation in enumerate(document.annotations):
        for what, identity, known in (
            ("image", annotation.image_id, found),
            ("category", annotation.category_id, names),
        ):
            if identity not in known:
                place = f"/annotations/{number}/{what}_id"
                raise DataError(f"{place}: no {what} has the id {identity!a}; add it or remove this", file=shown)
        found[annotation.image_id].append(annotation)
    images = tuple(_pictured(image, found[image.id], names) for image in document.images)
    return Instances(tuple(names.values()), images)


def _named(names: dict[_Id, str], document: _Document, shown: str) -> Mapping[_Id, str]:
    if len(names) < len(document.categories) or len(set(names.values())) < len(names):
        raise DataError("two of `categories` have one id or one name; give each its own", file=shown)
    return dict(sorted(names.items(), key=lambda one: (isinstance(one[0], str), one[0])))


def _pictured(image: _Image, annotations: list[_Annotation], names: Mapping[_Id, str]) -> Pictured:
    whole = _corners([annotation.bbox for annotation in annotations])
    size = np.array([image.width, image.height] * 2, np.float64)
    cut = whole.clip(0, size)
    some = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    kept = [annotation for annotation, there in zip(annotations, some.tolist(), strict=True) if there]
    return Pictured(
        image.file_name,
        image.width,
        image.height,
        cut[some],
        tuple(names[annotation.category_id] for annotation in kept),
        np.array([annotation.iscrowd or annotation.ignore for annotation in kept], bool),
        np.array([_visible(annotation) for annotation in kept], np.float64),
    )


def _visible(annotation: _Annotation) -> float:
    """As said, or else the share that the box of the visible part has of the whole box, or else all of it."""
    if annotation.visible_share is not None or annotation.visible_box is None:
        return 1.0 if annotation.visible_share is None else annotation.visible_share
    (whole,), (seen,) = _corners([annotation.bbox]), _corners([annotation.visible_box])
    common = np.maximum(np.minimum(whole[2:], seen[2:]) - np.maximum(whole[:2], seen[:2]), 0)
    return float(common.prod() / (whole[2:] - whole[:2]).prod())


def _corners(boxes: list[_Box]) -> NDArray[np.float64]:
    """Written as x, y, width, height."""
    rows = np.array(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1)
