"""A folder of image files, one sub-folder a class."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from search.datasets.album import MAX_BAD_FRACTION, Album, BadFraction, Screen
from search.datasets.arrays import SPLITS
from search.datasets.partition import stratified
from search.datasets.pictures import SUFFIXES, Channels, Picture, Tree, statistics
from search.errors import DataError
from search.files import Files
from search.part import Part
from search.plugins import DatasetInfo, Inspection, Skipped, Split, SplitName
from search.spec import Location

_FOLDERS: Mapping[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}


class ImageFolder:
    """
    Your own images: `path/train/CLASS/*.jpg` with `validation` and `test` beside `train`, or `path/CLASS/*.jpg` alone.

    Splits that have no folder are taken from the training images, class by class. JPEG, PNG, BMP, WebP, PPM, TIFF and
    GIF (first frame) are read; the largest central square of an image is resized. Files that are corrupt are left out,
    up to `max_bad_fraction` of them. One image in two splits or in two classes is an error that names it.
    """

    class Options(Part):
        path: Location
        """The folder."""
        size: int = Field(224, ge=8, le=1024)
        """Height and width to which images are resized, in pixels."""
        channels: Channels = 3
        """3 for colour, 1 for grey."""
        validation: float = Field(0.15, gt=0, lt=1)
        """Share of the training images taken for validation where there is no such folder."""
        test: float = Field(0.15, gt=0, lt=1)
        """Share of the training images taken for the test where there is no such folder."""
        seed: int = Field(0, ge=0, lt=2**32)
        """Another seed takes other images."""
        mirror: bool = False
        """Whether a mirrored image keeps its label: so for most photographs, not for writing or signs."""
        max_bad_fraction: BadFraction = MAX_BAD_FRACTION
        """Share of the images that may be left out because they are truncated, empty, too large or no images."""

        @model_validator(mode="after")
        def _leave_training(self) -> ImageFolder.Options:
            if self.validation + self.test >= 1:
                raise ValueError("`validation` and `test` together must be below 1: the rest is for training")
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
            pad=max(1, options.size // 8),
        )

    def sizes(self) -> Mapping[SplitName, int]:
        return {name: len(self._album.usable(name)) for name in SPLITS}

    def counts(self) -> NDArray[np.int64]:
        return np.bincount(_labels(self._album.usable("train")), minlength=len(self._album.screen.classes))

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
    label: int

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.label,)


def _labels(examples: Sequence[_Example]) -> NDArray[np.int64]:
    return np.asarray([example.label for example in examples], np.int64)


def _album(tree: Tree, options: ImageFolder.Options, cache: Path) -> Album[_Example]:
    roots = _split_folders(tree)
    classes = tuple(folder.name for folder in tree.folders(roots["train"]))
    if len(classes) < 2:
        raise DataError(
            "needs a folder for each of at least two classes, with the images in them",
            file=tree.name(roots["train"]),
        )
    files = {name: _labelled(tree, folder, classes) for name, folder in roots.items()}
    rows = [(name, path, label) for name, found in files.items() for path, label in found]
    digests = tree.digests([path for _, path, _ in rows], cache)
    split: dict[SplitName, list[_Example]] = {name: [] for name in SPLITS}
    for (name, path, label), digest in zip(rows, digests, strict=True):
        split[name].append(_Example(Picture(path, digest), label))
    _check_distinct(tree, split, options)

    shares: dict[SplitName, float] = {}
    if "validation" not in roots:
        shares["validation"] = options.validation
    if "test" not in roots:
        shares["test"] = options.test
    if shares:
        pool = split["train"]
        names, labels = [one.picture.digest for one in pool], [one.label for one in pool]
        chosen = stratified(names, labels, shares, options.seed, classes)
        split |= {name: [pool[index] for index in indices] for name, indices in chosen.items()}
    for examples in split.values():  # by content, so that equal contents make equal arrays, whatever the files' names
        examples.sort(key=lambda one: (one.picture.digest, one.label))

    content = {
        "recipe": 1,
        "options": options.model_dump(include={"size", "channels", "mirror"}),
        "classes": classes,
        "splits": {name: [(one.picture.digest, one.label) for one in split[name]] for name in SPLITS},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Album(
        screen=Screen(tree, classes, options.max_bad_fraction),
        key=f"image_folder-{digest[:32]}",
        examples=split,
        size=options.size,
        channels=options.channels,
        label=_labels,
        cache=cache,
    )


def _split_folders(tree: Tree) -> dict[SplitName, Path]:
    """The folder of each split there is; a tree of classes only is all training."""
    folders = {folder.name: folder for folder in tree.folders(tree.root)}
    train = folders.get("train")
    if train is None or not tree.folders(train):  # a class may be called "train", as in cars, buses and trains
        return {"train": tree.root}
    found: dict[SplitName, Path] = {}
    for split, names in _FOLDERS.items():
        present = [folders.pop(name) for name in names if name in folders]
        if len(present) > 1:
            raise DataError(f"there are two folders for {split}; keep one", file=tree.name(present[1]))
        if present:
            found[split] = present[0]
    if folders:
        raise DataError(
            "beside `train` only `validation` and `test` are expected; move or remove this folder",
            file=tree.name(next(iter(folders.values()))),
        )
    return found


def _labelled(tree: Tree, folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    for entry in tree.entries(folder):
        if not entry.is_dir() and entry.name.lower().endswith(SUFFIXES):
            raise DataError(
                "this image is in no class; move it to the folder of its class", file=tree.name(Path(entry.path))
            )
    found: list[tuple[Path, int]] = []
    for of_class in tree.folders(folder):
        if of_class.name not in classes:
            raise DataError("this class has no training images; add some or remove it", file=tree.name(of_class))
        images = tree.images(of_class)
        if not images:
            raise DataError("there is no image in this folder; add some or remove it", file=tree.name(of_class))
        label = classes.index(of_class.name)
        found += [(image, label) for image in images]
    if not found:
        raise DataError("there is no image in this folder", file=tree.name(folder))
    return found


def _check_distinct(tree: Tree, split: Mapping[SplitName, Sequence[_Example]], options: ImageFolder.Options) -> None:
    """
    Raises `DataError` when the same image is in two splits or in two classes. Of the same bytes that are none, such as
    those of empty files, nobody has said what they show.
    """
    first: dict[str, tuple[SplitName, _Example]] = {}
    twice = list[tuple[Picture, str]]()
    for name, examples in split.items():
        for one in examples:
            of, earlier = first.setdefault(one.picture.digest, (name, one))
            if of != name or earlier.label != one.label:
                what = "splits" if of != name else "classes"
                said = f"the same image as {tree.name(earlier.picture.path)}, in two {what}; remove one of them"
                twice.append((one.picture, said))
    _, broken = tree.look([picture for picture, _ in twice], options.size, options.channels)
    for picture, said in twice:
        if picture not in broken:
            raise DataError(said, file=tree.name(picture.path))
