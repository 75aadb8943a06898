"""Datasets that are painted rather than read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from search.datasets.arrays import SPLITS, check_memory, kept_split
from search.files import Files
from search.part import Part
from search.plugins import DatasetInfo, Split, SplitName


class Painted(ABC):
    """Images composed when they are first asked for and then kept."""

    class Options(Part):
        train: int = Field(8000, ge=10, le=1_000_000)
        """Images for training."""
        validation: int = Field(2000, ge=10, le=1_000_000)
        """Images for validation."""
        test: int = Field(3000, ge=10, le=1_000_000)
        """Images for the test."""
        seed: int = Field(0, ge=0, lt=2**32)
        """Another seed, other images."""

    def __init__(self, options: Options, files: Files) -> None:
        self.options = options
        self._cache = files.cache

    @abstractmethod
    def info(self) -> DatasetInfo: ...

    @abstractmethod
    def compose(self, name: SplitName, count: int, seed: str) -> Split:
        """`count` images of a split; the same arguments give the same bytes on every machine."""

    def sizes(self) -> Mapping[SplitName, int]:
        sizes = self.options
        return {"train": sizes.train, "validation": sizes.validation, "test": sizes.test}

    def split(self, name: SplitName) -> Split:
        info = self.info()
        check_memory(sum(self.sizes().values()), info.channels, info.size)
        return kept_split(self._cache, info.key, name, self._build)

    def key(self, name: str, version: int) -> str:
        """Names the content: a change of the pixels is another version."""
        sizes = self.options
        return f"{name}-{version}-{sizes.train}-{sizes.validation}-{sizes.test}-{sizes.seed}"

    def _build(self) -> Mapping[SplitName, Split]:
        return {name: self.compose(name, self.sizes()[name], f"{self.options.seed} {name}") for name in SPLITS}


class Composed(Painted):
    """RGB images of 32x32, of one class each."""

    @abstractmethod
    def labels(self, name: SplitName, count: int) -> NDArray[np.int64]:
        """Of the images that `compose` would give, `[count]`."""

    def counts(self) -> NDArray[np.int64]:
        labels = self.labels("train", self.options.train)
        return np.bincount(labels, minlength=len(self.info().classes))
