"""Images with boxes, as COCO writes them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from search.boxes import BOX, CLASS, COLUMNS, IGNORED, KIND, OBJECT, VISIBLE, areas, packed
from search.datasets.album import MAX_BAD_FRACTION, Album, BadFraction, Screen
from search.datasets.arrays import SPLITS
from search.datasets.instances import Pictured, read_instances
from search.datasets.partition import stratified
from search.datasets.pictures import Channels, Picture, Tree, letterbox, statistics
from search.errors import DataError, did_you_mean
from search.files import Files
from search.part import Part
from search.plugins import DatasetInfo, Inspection, Skipped, Split, SplitName
from search.spec import Label, Location

logger = logging.getLogger("stillhouse.datasets")

_MOST_ANNOTATIONS = 512 * 2**20
"""Bytes of a file of annotations; COCO's largest has 428 MiB."""
_MOST_LABELS = 2**30
"""Bytes of the labels of a split, which have room in every image for as many objects as the fullest one has."""


class Source(Part):
    """Where a split is found, below the folder of the dataset."""

    annotations: Location
    """A JSON file in the format of COCO's instances: `annotations/instances_train2017.json`."""
    images: Location
    """The folder to which the names of its images are relative: `train2017`."""


class Coco:
    """
    Your own images with boxes, for detection: a folder in COCO's format, with a file of annotations for each split.

    Images are resized to a square with their shape kept, what is left free is grey. Crowds, and annotations with a true
    `ignore`, become regions in which neither finding nor missing counts; `vis_bbox` or `vis_ratio`, as CityPersons has
    them, say what is visible. Images without an object stay. Splits that are not named are taken from the training
    images; training images that another split repeats are left out. So are files that are corrupt, or not as wide and
    high as annotations say, up to `max_bad_fraction` of all images.
    """

    class Options(Part):
        path: Location
        """The folder."""
        train: Source
        validation: Source | None = None
        """Without it a share of the training images is taken."""
        test: Source | None = None
        """Without it a share of the training images is taken."""
        size: int = Field(320, ge=32, le=1024)
        """Height and width to which images are resized, in pixels."""
        channels: Channels = 3
        """3 for colour, 1 for grey."""
        classes: tuple[Label, ...] | None = Field(None, min_length=1, max_length=10_000)
        """Names of categories that are looked for, all without it; annotations of others are passed over."""
        images: int | None = Field(None, ge=1, le=10_000_000)
        """Images of each split at most, where not all of them are wanted."""
        validation_share: float = Field(0.15, gt=0, lt=1)
        """Of the training images, taken for validation where that is not named."""
        test_share: float = Field(0.15, gt=0, lt=1)
        """Of the training images, taken for the test where that is not named."""
        seed: int = Field(0, ge=0, lt=2**32)
        """Another seed takes other images."""
        mirror: bool = True
        """Whether objects keep their classes in a mirrored image."""
        least_height: float = Field(16, ge=0, le=1024)
        """Pixels, after resizing, that an object must be high to count for the miss rate; CityPersons' 50 of 1024."""
        max_bad_fraction: BadFraction = MAX_BAD_FRACTION
        """
        Share of the images that may be left out because they are truncated, empty, too large, no images, or not of the
        size that their annotations state.
        """

        @model_validator(mode="after")
        def _leave_training(self) -> Coco.Options:
            if self.validation_share + self.test_share >= 1:
                raise ValueError(
                    "`validation_share` and `test_share` together must be below 1: the rest is for training"
                )
            if self.classes and len(set(self.classes)) < len(self.classes):
                raise ValueError("`classes` names one of them twice")
            return self

    def __init__(self, options: Options, files: Files) -> None:
        self._options = options
        self._files = files

    def info(self) -> DatasetInfo:
        options = self._options
        mean, std = statistics(options.channels)
        return DatasetInfo(
            key=self._album.key,
            classes=tuple(self._album.screen.classes),
            channels=options.channels,
            size=options.size,
            mean=mean,
            std=std,
            mirror=options.mirror,
            pad=options.size // 16,
            task="detection",
            least_height=options.least_height,
        )

    def sizes(self) -> Mapping[SplitName, int]:
        return {name: len(self._album.usable(name)) for name in SPLITS}

    def counts(self) -> NDArray[np.int64]:
        objects = np.concatenate([example.objects for example in self._album.usable("train")])
        return np.bincount(objects, minlength=len(self._album.screen.classes))

    def split(self, name: SplitName) -> Split:
        return self._album.split(name)

    def skipped(self) -> Skipped:
        return self._album.skipped()

    def inspect(self, seconds: float) -> Inspection:
        return self._album.inspect(seconds)

    @cached_property
    def _album(self) -> Album[_Example]:
        return _album(Tree.at(self._options.path, self._files), self._options, self._files.cache)


@dataclass(frozen=True, slots=True)
class _Example:
    picture: Picture
    rows: NDArray[np.float32]
    """Its labels `[k, 7]`, in pixels of the resized image."""

    @property
    def objects(self) -> NDArray[np.int64]:
        """The class of each."""
        found: NDArray[np.int64] = self.rows[self.rows[:, KIND] == OBJECT, CLASS].astype(np.int64)
        return found

    @property
    def classes(self) -> set[int]:
        return set(self.objects.tolist())


def _labels(examples: Sequence[_Example]) -> NDArray[np.float32]:
    return packed([example.rows for example in examples])


def _album(tree: Tree, options: Coco.Options, cache: Path) -> Album[_Example]:
    named = {name: source for name in SPLITS if (source := getattr(options, name))}
    documents = {name: tree.below(source.annotations, tree.shown) for name, source in named.items()}
    files = {name: tree.name(path) for name, path in documents.items()}
    read = {name: read_instances(tree.read(path, _MOST_ANNOTATIONS), files[name]) for name, path in documents.items()}
    classes = _classes(options, read["train"].categories, files["train"])
    places = {
        name: [tree.below(f"{source.images}/{image.file}", files[name]) for image in read[name].images]
        for name, source in named.items()
    }
    paths = sorted({path for of_split in places.values() for path in of_split})
    digests = dict(zip(paths, tree.digests(paths, cache), strict=True))
    split: dict[SplitName, list[_Example]] = {name: [] for name in SPLITS}
    for name, found in read.items():
        for image, path in zip(found.images, places[name], strict=True):
            picture = Picture(path, digests[path], (image.width, image.height))
            split[name].append(_Example(picture, _rows(image, classes, options.size)))
    split = _divided(_without_repeats(split), options, files["train"])
    for name, examples in split.items():
        if not examples:
            raise DataError("no image is left for this split; add some", file=files[name])
        # by content, so that equal contents make equal arrays, whatever the files are called
        examples.sort(key=lambda one: (one.picture.digest, one.picture.stated, one.rows.tobytes()))
        if options.images is not None:
            split[name] = _some(examples, options.images, options.seed)
    _check_labels(tree, split)
    if not any(len(example.objects) for example in split["train"]):
        raise DataError(
            "no training image has an object to be found; name other classes or more images",
            file=files["train"],
        )
    content = [2, options.model_dump(include={"size", "channels", "mirror", "least_height"}), classes]
    whole = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in SPLITS:
        whole.update(f"{name} {len(split[name])}".encode())
        for one in split[name]:
            whole.update(f"{one.picture.digest} {one.picture.stated} {len(one.rows)} ".encode())
            whole.update(one.rows.astype("<f4").tobytes())
    return Album(
        screen=Screen(tree, classes, options.max_bad_fraction),
        key=f"coco-{whole.hexdigest()[:32]}",
        examples=split,
        size=options.size,
        channels=options.channels,
        label=_labels,
        cache=cache,
    )


def _classes(options: Coco.Options, categories: tuple[str, ...], file: str) -> tuple[str, ...]:
    if not categories:
        raise DataError("there are no `categories`; add those of the objects", file=file)
    for name in options.classes or ():
        if name not in categories:
            raise DataError(
                f"there is no category `{name}`{did_you_mean(name, categories)}",
                file=file,
                pointer="/dataset/options/classes",
            )
    return options.classes or categories


def _rows(image: Pictured, classes: tuple[str, ...], size: int) -> NDArray[np.float32]:
    place = letterbox(image.width, image.height, size)
    scale = np.array([place.width / image.width, place.height / image.height] * 2)
    boxes = image.boxes * scale + np.array([place.left, place.top] * 2)
    rows = np.zeros((len(boxes), COLUMNS), np.float32)
    rows[:, BOX] = boxes.clip(0, size)
    known = {name: number for number, name in enumerate(classes)}
    rows[:, CLASS] = [known.get(name, -1) for name in image.categories]
    rows[:, KIND] = np.where(image.ignored, IGNORED, OBJECT)
    rows[:, VISIBLE] = image.visible
    return rows[(rows[:, CLASS] >= 0) & (areas(rows) > 0)]


def _without_repeats(split: Mapping[SplitName, list[_Example]]) -> dict[SplitName, list[_Example]]:
    """What a later split has as well is left out of the earlier one."""
    kept: dict[SplitName, list[_Example]] = {}
    later: set[str] = set()
    for name in reversed(SPLITS):
        kept[name] = [example for example in split[name] if example.picture.digest not in later]
        if repeats := len(split[name]) - len(kept[name]):
            logger.warning("%d images of the %s split are in a later one too; they are left out", repeats, name)
        later |= {example.picture.digest for example in split[name]}
    return {name: kept[name] for name in SPLITS}


def _divided(
    split: dict[SplitName, list[_Example]], options: Coco.Options, file: str
) -> dict[SplitName, list[_Example]]:
    """Splits that are not named are taken from the training images, all copies of an image together."""
    shares: dict[SplitName, float] = {}
    if options.validation is None:
        shares["validation"] = options.validation_share
    if options.test is None:
        shares["test"] = options.test_share
    pool = split["train"]
    different = len({example.picture.digest for example in pool})
    if different <= len(shares):
        raise DataError(
            f"has {different} different images, too few for {len(shares) + 1} splits; add images", file=file
        )
    if not shares:
        return split
    chosen = stratified([example.picture.digest for example in pool], [0] * len(pool), shares, options.seed, [""])
    return split | {name: [pool[index] for index in indices] for name, indices in chosen.items()}


def _some(examples: list[_Example], most: int, seed: int) -> list[_Example]:
    ranks = [hashlib.sha256(f"images {seed} {example.picture.digest}".encode()).digest() for example in examples]
    taken = sorted(sorted(range(len(examples)), key=lambda index: ranks[index])[:most])
    return [examples[index] for index in taken]


def _check_labels(tree: Tree, split: Mapping[SplitName, list[_Example]]) -> None:
    for examples in split.values():
        fullest = max(examples, key=lambda example: len(example.rows))
        needed = len(examples) * len(fullest.rows) * COLUMNS * 4
        if needed > _MOST_LABELS:
            raise DataError(
                f"has {len(fullest.rows):,} objects; room for as many in each of {len(examples):,} images needs "
                f"{needed / 2**30:.1f} GiB, more than the {_MOST_LABELS / 2**30:.0f} GiB allowed; take this image out",
                file=tree.name(fullest.picture.path),
            )
