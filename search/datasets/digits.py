"""Real handwritten digits that need no download."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from sklearn.datasets import load_digits

from search.datasets.arrays import SPLITS, frozen
from search.files import Files
from search.part import Part
from search.plugins import DatasetInfo, Split, SplitName

CLASSES = tuple("0123456789")
_SHARES: Mapping[SplitName, slice] = {
    "train": slice(0, 1150),
    "validation": slice(1150, 1400),
    "test": slice(1400, 1797),
}


class Digits:
    """
    scikit-learn's 1,797 real handwritten digits, resized from 8x8 and given three equal channels.

    1,150 for training, 250 for validation, 397 for the test; the split is always the same. Alpaydin and Kaynak,
    "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998 (its test part).
    """

    class Options(Part):
        size: int = Field(32, ge=8, le=256)
        """Height and width in pixels."""

    def __init__(self, options: Options, files: Files) -> None:
        self._size = options.size

    def info(self) -> DatasetInfo:
        return DatasetInfo(
            key=f"digits-1-{self._size}",
            classes=CLASSES,
            channels=3,
            size=self._size,
            mean=(0.31,) * 3,
            std=(0.349,) * 3,
            mirror=False,
            pad=2,
        )

    def sizes(self) -> Mapping[SplitName, int]:
        return {name: len(sources(name)) for name in SPLITS}

    def counts(self) -> NDArray[np.int64]:
        return np.bincount(originals(self._size)[1][sources("train")])

    def split(self, name: SplitName) -> Split:
        digits, labels = originals(self._size)
        members = sources(name)
        return frozen(Split(np.repeat(digits[members, None], 3, axis=1), labels[members]))


def sources(name: SplitName) -> NDArray[np.int64]:
    """
    Which of the 1,797 digits belong to a split, `[n]`.

    The order is one of hashes rather than of a random generator: it stays when a library changes its generator.
    """
    order = sorted(range(1797), key=lambda index: hashlib.sha256(f"digits {index}".encode()).digest())
    return np.asarray(order[_SHARES[name]], dtype=np.int64)


@cache
def originals(size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All digits `[1797, size, size]`, white on black, resized by bicubic interpolation, and their labels `[1797]`."""
    bunch = load_digits()
    small = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    resized = [Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC) for digit in small]
    images = np.stack([np.asarray(digit) for digit in resized])
    labels = bunch.target.astype(np.int64)
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels
