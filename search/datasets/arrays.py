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


def kept_split(cache: Path, key: str, name: SplitName, build: Callable[[], Mapping[SplitName, Split]]) -> Split:
    """
    One split of the dataset whose content is named by `key`, from `cache` or else from `build`.

    `build` is called at most once at a time over all processes of the machine; what it raises goes through.
    """
    path = cache / "datasets" / f"{key}.safetensors"
    found = _read(path, name)
    if found is None:
        with exclusive(path.with_suffix(".lock")):
            found = _read(path, name)  # another process may have built it meanwhile
            if found is None:
                splits = build()
                _write(path, splits)
                found = splits[name]
    return frozen(found)


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


def _write(path: Path, splits: Mapping[SplitName, Split]) -> None:
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, split in splits.items():
        arrays[f"{name}.images"] = np.ascontiguousarray(split.images)
        arrays[f"{name}.labels"] = np.ascontiguousarray(split.labels)
    sums = json.dumps({name: _crc32(array) for name, array in arrays.items()})
    with published(path) as draft:
        save_file(arrays, draft, metadata={"crc32": sums})


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
    logger.warning("the cached dataset %s is damaged (%s); it is built again", path, reason)
    return None


def _crc32(array: NDArray[np.generic]) -> int:
    return zlib.crc32(array.data) if array.size else 0


def frozen(split: Split) -> Split:
    """The same split, its arrays made read-only."""
    split.images.setflags(write=False)
    split.labels.setflags(write=False)
    return split
