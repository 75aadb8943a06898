"""
Decoded splits, kept on disk.

Building a dataset costs seconds to minutes, and every process of a node needs it: the first one builds and publishes,
the others wait and read. A file is published whole or not at all, checked when read, and built again when damaged.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from search.errors import DataError
from search.files import exclusive, published
from search.plugins import Split, SplitName

logger = logging.getLogger("stillhouse.datasets")

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MOST_BYTES = 8 * 2**30
"""Largest decoded dataset, in bytes: every node holds it in memory."""
_BROKEN = "broken"
"""Beside the checksums of arrays, in a file's one entry: several have no order of their own."""


Broken = Mapping[SplitName, Mapping[int, str]]
"""By split what is wrong with the images at these places of it, counted before they are left out."""


@dataclass(frozen=True, slots=True)
class Built:
    """Decoded splits, and what had to be left out of them."""

    splits: Mapping[SplitName, Split]
    broken: Broken = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """
    The splits of the dataset whose content is named by `key`, from `cache` or else from `build`.

    `build` is called at most once at a time over all processes of the machine; what it raises goes through.
    """

    cache: Path
    key: str
    build: Callable[[], Built]

    def split(self, name: SplitName) -> Split:
        found = _read(self._path, name)
        if found is None:
            with exclusive(self._path.with_suffix(".lock")):
                found = _read(self._path, name)  # another process may have built it meanwhile
                if found is None:
                    found = self._built().splits[name]
        return frozen(found)

    def broken(self) -> Broken:
        """What is left out of the splits, which are built when they are not there."""
        found = self.known_broken()
        if found is None:
            with exclusive(self._path.with_suffix(".lock")):
                found = self.known_broken()
                if found is None:
                    found = self._built().broken
        return found

    def known_broken(self) -> Broken | None:
        """The same as far as it is known: None while the splits are not there."""
        return _read_broken(self._path)

    @property
    def _path(self) -> Path:
        return self.cache / "datasets" / f"{self.key}.safetensors"

    def _built(self) -> Built:
        built = self.build()
        _write(self._path, built)
        return built


def kept_split(cache: Path, key: str, name: SplitName, build: Callable[[], Mapping[SplitName, Split]]) -> Split:
    """One split of a dataset of which nothing is left out, kept as by `Kept`."""
    return Kept(cache, key, lambda: Built(build())).split(name)


def check_memory(images: int, channels: int, size: int) -> None:
    """
    Raises:
        DataError: that many images, decoded, would not fit into the bound.
    """
    needed = images * channels * size * size
    if needed > MOST_BYTES:
        fitting = int((MOST_BYTES / (images * channels)) ** 0.5)
        raise DataError(
            f"{images:,} images of {channels}x{size}x{size} need {needed / 2**30:.1f} GiB decoded, more than the "
            f"{MOST_BYTES / 2**30:.0f} GiB allowed; write `size: {fitting}` or less, or use fewer images",
            pointer="/dataset/options/size",
        )


def _write(path: Path, built: Built) -> None:
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, split in built.splits.items():
        arrays[f"{name}.images"] = np.ascontiguousarray(split.images)
        arrays[f"{name}.labels"] = np.ascontiguousarray(split.labels)
    told = {name: _crc32(array) for name, array in arrays.items()} | {_BROKEN: built.broken}
    with published(path) as draft:
        save_file(arrays, draft, metadata={"crc32": json.dumps(told)})


def _read(path: Path, name: SplitName) -> Split | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            sums = json.loads(file.metadata()["crc32"])
            images, labels = (file.get_tensor(f"{name}.{part}") for part in ("images", "labels"))
        if _crc32(images) == sums[f"{name}.images"] and _crc32(labels) == sums[f"{name}.labels"]:
            return Split(images, labels)
        reason = "its checksum is wrong"
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    _warn(path, reason)
    return None


def _read_broken(path: Path) -> Broken | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            broken = json.loads(file.metadata()["crc32"]).get(_BROKEN, {})  # at first there was nothing to be told
        return {name: {int(place): said for place, said in of.items()} for name, of in broken.items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _warn(path, str(error))
    return None


def _warn(path: Path, reason: str) -> None:
    logger.warning("the cached dataset %s is damaged (%s); it is built again", path, reason)


def _crc32(array: NDArray[np.generic]) -> int:
    return zlib.crc32(array.data) if array.size else 0


def frozen(split: Split) -> Split:
    """The same split, its arrays made read-only."""
    split.images.setflags(write=False)
    split.labels.setflags(write=False)
    return split
