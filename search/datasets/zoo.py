"""The classification datasets of torchvision, by name."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from search.datasets.album import MAX_BAD_FRACTION, BadFraction, Screen
from search.datasets.arrays import SPLITS, Broken, Built, Kept, check_memory
from search.datasets.partition import stratified
from search.datasets.pictures import SUFFIXES, Channels, Picture, Tree, statistics, to_array
from search.errors import DataError, did_you_mean
from search.files import Files, exclusive
from search.part import Name, Part
from search.plugins import DatasetInfo, Skipped, Split, SplitName
from search.spec import Location

logger = logging.getLogger("stillhouse.datasets")

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Source:
    """
    How torchvision spells one dataset.

    `parts` gives the constructor's arguments for each official split; `files` the globs, below the root, of all that it
    reads; `size` the images' own size in pixels, or a usual one where they differ.
    """

    loader: str
    files: tuple[str, ...]
    size: int
    parts: Mapping[SplitName, Mapping[str, object]]
    mirror: bool = True
    md5: Mapping[str, str] = field(default_factory=dict)
    """Checksums of files that torchvision verifies only when it downloads them."""


_FLAG: Mapping[SplitName, Mapping[str, object]] = {"train": {"train": True}, "test": {"train": False}}
_TWO: Mapping[SplitName, Mapping[str, object]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: Mapping[SplitName, Mapping[str, object]] = {**_TWO, "validation": {"split": "val"}}
_WHOLE: Mapping[SplitName, Mapping[str, object]] = {"train": {}}


def _emnist(variant: str) -> _Source:
    parts: Mapping[SplitName, Mapping[str, object]] = {
        name: {**arguments, "split": variant} for name, arguments in _FLAG.items()
    }
    return _Source("EMNIST", (f"EMNIST/raw/emnist-{variant}-*-ubyte",), 28, parts, mirror=False)


def _mnist(name: str) -> _Source:
    files = tuple(
        f"{name}/raw/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    )
    return _Source(name, files, 28, _FLAG, mirror=name == "FashionMNIST")


SOURCES: Mapping[str, _Source] = {
    "CIFAR10": _Source("CIFAR10", ("cifar-10-batches-py/*_batch*", "cifar-10-batches-py/batches.meta"), 32, _FLAG),
    "CIFAR100": _Source("CIFAR100", tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")), 32, _FLAG),
    "Country211": _Source("Country211", ("country211/**/*",), 224, {**_TWO, "validation": {"split": "valid"}}),
    "DTD": _Source("DTD", ("dtd/labels/*", "dtd/images/**/*"), 224, _THREE),
    **{f"EMNIST-{variant}": _emnist(variant) for variant in datasets.EMNIST.splits},
    "EuroSAT": _Source("EuroSAT", ("eurosat/2750/**/*",), 64, _WHOLE),
    "FGVCAircraft": _Source("FGVCAircraft", ("fgvc-aircraft-2013b/data/**/*",), 224, _THREE),
    "FashionMNIST": _mnist("FashionMNIST"),
    "Flowers102": _Source("Flowers102", ("flowers-102/*.mat", "flowers-102/jpg/*"), 224, _THREE),
    "Food101": _Source("Food101", ("food-101/meta/*", "food-101/images/**/*"), 224, _TWO),
    "GTSRB": _Source("GTSRB", ("gtsrb/GT-final_test.csv", "gtsrb/GTSRB/**/*.ppm"), 32, _TWO, mirror=False),
    "Imagenette": _Source(
        "Imagenette",
        ("imagenette2-320/train/**/*", "imagenette2-320/val/**/*"),
        224,
        {"train": {"split": "train", "size": "320px"}, "test": {"split": "val", "size": "320px"}},
    ),
    "KMNIST": _mnist("KMNIST"),
    "MNIST": _mnist("MNIST"),
    "OxfordIIITPet": _Source(
        "OxfordIIITPet",
        ("oxford-iiit-pet/annotations/*.txt", "oxford-iiit-pet/images/*.jpg"),
        224,
        {**_TWO, "train": {"split": "trainval"}},
    ),
    "RenderedSST2": _Source("RenderedSST2", ("rendered-sst2/**/*",), 224, _THREE, mirror=False),
    "SEMEION": _Source("SEMEION", ("semeion.data",), 16, _WHOLE, mirror=False),
    "STL10": _Source(
        "STL10", tuple(f"stl10_binary/{name}" for name in ("train_*", "test_*", "class_names.txt")), 96, _TWO
    ),
    "SUN397": _Source("SUN397", ("SUN397/**/*",), 224, _WHOLE),
    "SVHN": _Source("SVHN", ("train_32x32.mat", "test_32x32.mat"), 32, _TWO, mirror=False),
    "StanfordCars": _Source("StanfordCars", ("stanford_cars/**/*",), 224, _TWO),
    "USPS": _Source(
        "USPS",
        ("usps.bz2", "usps.t.bz2"),
        16,
        _FLAG,
        mirror=False,
        md5={name: md5 for _, name, md5 in datasets.USPS.split_list.values()},
    ),
}


class Torchvision:
    """
    A classification dataset of torchvision by name, from a folder in its official form or downloaded on request.

    The official test part is the test set; a validation part that does not exist officially is taken from the training
    part, class by class. Images of the training part that the official test part repeats are left out, and of a dataset
    that has a file for each image those that are corrupt, up to `max_bad_fraction`.

    CIFAR's official files are pickles. They are read only after torchvision has found their MD5 to be that of the
    authors' files, so nothing that a user made is unpickled; the `.pt` files of old MNIST copies are refused.
    """

    class Options(Part):
        dataset: Name = Field(json_schema_extra=lambda schema: schema.update(enum=[*sorted(SOURCES)]))
        """torchvision's name, for example `CIFAR10`; EMNIST's variants are `EMNIST-letters` and so on."""
        root: Location | None = None
        """The folder that torchvision calls `root`."""
        download: bool = False
        """Whether the authors' files may be fetched, into the cache of this machine."""
        size: int | None = Field(None, ge=8, le=1024)
        """Height and width to which images are resized, in pixels; by default their own, or a usual one."""
        channels: Channels = 3
        """3 for colour, 1 for grey."""
        validation: float = Field(0.1, gt=0, lt=0.9)
        """Share of the training part taken for validation where there is no official one."""
        test: float = Field(0.2, gt=0, lt=0.9)
        """Share of all images taken for the test where there is no official test part."""
        seed: int = Field(0, ge=0, lt=2**32)
        """Another seed takes other images."""
        max_bad_fraction: BadFraction = MAX_BAD_FRACTION
        """Share of the images that may be left out because their files are truncated, empty, too large or no images."""

        @field_validator("dataset")
        @classmethod
        def _known(cls, dataset: str) -> str:
            if dataset not in SOURCES:
                hint = did_you_mean(dataset, SOURCES) or "; those read here are " + ", ".join(sorted(SOURCES))
                raise ValueError(f"no dataset of torchvision read here is called `{dataset}`{hint}")
            return dataset

        @model_validator(mode="after")
        def _consistent(self) -> Torchvision.Options:
            if self.root is not None and self.download:
                raise ValueError("give either `root` or `download: true`: downloads go to the cache of this machine")
            if self.validation + self.test >= 1:
                raise ValueError("`validation` and `test` together must be below 1: the rest is for training")
            return self

    def __init__(self, options: Options, files: Files) -> None:
        self._options = options
        self._files = files
        self._source = SOURCES[options.dataset]
        self._size = options.size or self._source.size

    def info(self) -> DatasetInfo:
        mean, std = statistics(self._options.channels)
        return DatasetInfo(
            key=self._key,
            classes=self._classes.names,
            channels=self._options.channels,
            size=self._size,
            mean=mean,
            std=std,
            mirror=self._source.mirror,
            pad=max(1, self._size // 8),
        )

    def sizes(self) -> Mapping[SplitName, int]:
        """Of the official parts, shared out; images that two of them have count twice, and corrupt ones as well."""
        sizes: dict[SplitName, int] = {name: len(self._open(name).labels) for name in self._source.parts}
        whole, options = sizes["train"], self._options
        shares: dict[SplitName, float] = {"validation": options.validation, "test": options.test}
        for name, share in shares.items():
            if name not in sizes:
                sizes[name] = round(share * whole)
                sizes["train"] -= sizes[name]
        return sizes

    def counts(self) -> NDArray[np.int64]:
        """As `sizes`, of the official part."""
        whole, options = np.bincount(self._classes.of_labels(self._open("train").labels, "train")), self._options
        shares: dict[SplitName, float] = {"validation": options.validation, "test": options.test}
        given = [share for name, share in shares.items() if name not in self._source.parts]
        taken = np.maximum(1, np.rint(np.outer(given, whole))).sum(axis=0)
        counts: Labels = np.maximum(whole - taken, 0).astype(np.int64)
        return counts

    def split(self, name: SplitName) -> Split:
        self.skipped()
        return self._kept.split(name)

    def skipped(self) -> Skipped:
        return self._passed(self._kept.broken())

    def _passed(self, broken: Broken) -> Skipped:
        if not any(broken.values()):
            return Skipped()
        classes, examples = self._classes, dict[SplitName, list[_Example]]()
        for name in broken:
            part = self._open(name)
            rows = zip(part.pictures(self._tree, self._digests), classes.of_labels(part.labels, name), strict=True)
            examples[name] = [_Example(picture, (int(label),)) for picture, label in rows]
        return Screen(self._tree, classes.names, self._options.max_bad_fraction).passed(examples, broken)

    @property
    def _kept(self) -> Kept:
        return Kept(self._files.cache, self._key, self._build)

    @cached_property
    def _tree(self) -> Tree:
        name, root = self._options.dataset, self._options.root
        if root is not None:
            found = self._files.resolve(root, pointer="/dataset/options/root")
            return Tree(found, root)
        home = self._files.cache / "torchvision" / self._source.loader
        if self._options.dataset.startswith("EMNIST-"):
            home = home.with_name(self._options.dataset)
        if not home.exists():
            if not self._options.download:
                raise DataError(
                    f"{name} is not on this machine; write `download: true`, or `root` with the folder it lies in",
                    pointer="/dataset/options",
                )
            self._download(home)
        return Tree(home.resolve(), name)

    def _download(self, home: Path) -> None:
        """Into a draft beside `home` that takes its name when it is whole."""
        with exclusive(home.with_name(f"{home.name}.lock")):
            if home.exists():
                return
            draft = home.with_name(f".{home.name}.{os.getpid()}")
            draft.mkdir(parents=True, exist_ok=True)
            try:
                for arguments in self._source.parts.values():
                    self._loader(root=draft, download=True, **arguments)
                draft.rename(home)
            except Exception as error:  # torchvision raises whatever the network and the archives do
                raise DataError(
                    f"{self._options.dataset} could not be downloaded ({error}); try again, or fetch it by hand and "
                    "write `root`",
                    pointer="/dataset/options/download",
                ) from error
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    @property
    def _loader(self) -> Any:
        return getattr(datasets, self._source.loader)

    @cached_property
    def _digests(self) -> Mapping[Path, str]:
        """SHA-256 of every file that is read."""
        tree = self._tree
        paths = sorted({path for glob in self._source.files for path in tree.root.glob(glob) if path.is_file()})
        if not paths:
            raise DataError(
                f"there are no files of {self._options.dataset} ({', '.join(self._source.files)} is expected)",
                file=tree.shown,
                pointer="/dataset/options",
            )
        others = {path for path in paths if not path.name.lower().endswith(SUFFIXES)}
        return dict(zip(paths, tree.digests(paths, self._files.cache, others), strict=True))

    @cached_property
    def _key(self) -> str:
        """From every byte that is read, so it is the same wherever the files lie."""
        options = self._options
        content = {
            "recipe": 1,
            "options": options.model_dump(include={"dataset", "channels", "validation", "test", "seed"}),
            "size": self._size,
            "files": [(path.relative_to(self._tree.root).as_posix(), digest) for path, digest in self._digests.items()],
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"torchvision-{options.dataset}-{digest[:32]}"

    @cached_property
    def _classes(self) -> _Classes:
        return _Classes.of(self._open("train"))

    def _open(self, name: SplitName) -> _Part:
        tree, source = self._tree, self._source
        if any(tree.root.glob(f"{source.loader}/processed/*.pt")):
            raise DataError(
                "`.pt` files are not read; remove the folder `processed`, the files in `raw` are enough",
                file=tree.shown,
            )
        for file, md5 in source.md5.items():
            if not check_integrity(tree.root / file, md5):
                raise DataError("missing, or not the authors' file", file=tree.name(tree.root / file))
        try:
            # never left to its default: there are datasets that download unless told not to
            return _Part.of(self._loader(root=str(tree.root), download=False, **source.parts[name]))
        except Exception as error:  # torchvision raises whatever the bytes provoke
            reason = str(error).replace(str(tree.root), tree.shown) or type(error).__name__
            raise DataError(
                f"the files of {self._options.dataset} are missing or damaged ({reason}); fetch them again",
                file=tree.shown,
                pointer="/dataset/options",
            ) from error

    def _build(self) -> Built:
        options, classes = self._options, self._classes
        parts = {name: self._open(name) for name in self._source.parts}
        check_memory(sum(len(part.labels) for part in parts.values()), options.channels, self._size)
        whole, broken = dict[SplitName, Split](), dict[SplitName, Mapping[int, str]]()
        for name, part in parts.items():
            images, broken[name] = part.decode(self._tree, self._digests, self._size, options.channels)
            labels = np.delete(classes.of_labels(part.labels, name), list(broken[name]))
            whole[name] = Split(images, labels)
        self._passed(broken)
        digests = {name: _image_digests(split.images) for name, split in whole.items()}
        chosen = {name: list(range(len(split))) for name, split in whole.items()}
        seen: set[str] = set()
        for name in reversed(SPLITS):  # the test keeps what it has, the others give way
            if name in whole:
                before = len(chosen[name])
                chosen[name] = [index for index in chosen[name] if digests[name][index] not in seen]
                if len(chosen[name]) < before:
                    logger.info(
                        "%s: %d images of %s are in a later split too and are left out",
                        options.dataset,
                        before - len(chosen[name]),
                        name,
                    )
                seen.update(digests[name])
        shares: dict[SplitName, float] = {}
        if "validation" not in whole:
            shares["validation"] = options.validation
        if "test" not in whole:
            shares["test"] = options.test
        result: dict[SplitName, Split] = {
            name: _take(split, chosen[name]) for name, split in whole.items() if name != "train"
        }
        pool = chosen["train"]
        train = whole.pop("train")
        if shares:
            of_pool = [digests["train"][index] for index in pool]
            labels = train.labels[pool].tolist()
            for name, indices in stratified(of_pool, labels, shares, options.seed, classes.names).items():
                result[name] = _take(train, sorted(pool[index] for index in indices))
        else:
            result["train"] = _take(train, pool)
        return Built(result, broken)


@dataclass(frozen=True, slots=True)
class _Part:
    """One official split, opened: labels `[n]`, and where the images are."""

    source: Any
    labels: Labels
    paths: list[Path] | None
    """None where torchvision holds the images in memory."""

    @classmethod
    def of(cls, source: Any) -> _Part:
        rows = getattr(source, "samples", None) or getattr(source, "_samples", None)
        if rows is not None:
            held: Any = [path for path, _ in rows]
            labels = np.asarray([label for _, label in rows])
        else:
            held = getattr(source, "_image_files", None) or getattr(source, "_images", None)
            named = (getattr(source, name, None) for name in ("_labels", "targets", "labels"))
            labels = np.asarray(next(found for found in named if found is not None))
        if labels.ndim == 2:
            labels = labels[:, 0]
        if len(labels) != len(source):
            raise ValueError(f"{len(source)} images and {len(labels)} labels")
        return cls(source, labels.astype(np.int64), None if held is None else [Path(path) for path in held])

    def pictures(self, tree: Tree, files: Mapping[Path, str]) -> list[Picture]:
        """
        Its image files, where it has one for each image.

        Raises:
            DataError: one is missing.
        """
        for path in self.paths or ():
            if path not in files:
                raise DataError("this file is listed and missing; fetch the files again", file=tree.name(path))
        return [Picture(path, files[path]) for path in self.paths or ()]

    def decode(
        self, tree: Tree, files: Mapping[Path, str], size: int, channels: Channels
    ) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """
        `[n, channels, size, size]`, without those that cannot be used; what is wrong with these, by place.

        Raises:
            DataError: an image file is missing, or a file of the dataset leads out of its folder.
        """
        if self.paths is not None:
            return tree.decode(self.pictures(tree, files), size, channels)
        images = np.empty((len(self.labels), channels, size, size), np.uint8)
        for index in range(len(self.labels)):
            images[index] = to_array(self.source[index][0], size, channels)
        return images, {}


@dataclass(frozen=True, slots=True)
class _Example:
    picture: Picture
    classes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Classes:
    """The classes that have training images; some official lists name a class that does not occur."""

    labels: Labels
    names: tuple[str, ...]

    @classmethod
    def of(cls, part: _Part) -> _Classes:
        labels = np.unique(part.labels)
        named = getattr(part.source, "classes", None) or []
        return cls(
            labels, tuple(_name(named[label]) if label < len(named) else str(label) for label in labels.tolist())
        )

    def of_labels(self, labels: Labels, split: SplitName) -> Labels:
        places: Labels = np.searchsorted(self.labels, labels)
        strange = labels[self.labels[np.minimum(places, len(self.labels) - 1)] != labels]
        if len(strange):
            raise DataError(
                f"label {strange[0]} occurs in the {split} part and never in training; fetch the files again"
            )
        return places


def _name(named: object) -> str:
    return str(named[0]) if isinstance(named, (tuple, list)) else str(named)


def _image_digests(images: NDArray[np.uint8]) -> list[str]:
    return [hashlib.sha256(image.data).hexdigest() for image in images]


def _take(split: Split, indices: Sequence[int]) -> Split:
    return Split(split.images[indices], split.labels[indices])
