"""Any dataset with most of the training images of most of its classes left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from search.catalog import Catalog
from search.datasets.arrays import frozen
from search.errors import DataError, InvalidSpec, UserError
from search.files import Files
from search.part import Part
from search.plugins import Counted, Dataset, DatasetInfo, Screened, Skipped, Split, SplitName
from search.spec import Pick

Kind = Literal["exponential", "step"]


class LongTailed:
    """
    Another dataset, its training images thinned class by class, so that a few classes have many and many have few.

    The first class has the most. Validation and test stay as they are, balanced if they were: they tell how well the
    rare classes are learned. The counts are those of the CIFAR-LT of Cao et al. (LDAM, NeurIPS 2019: arXiv
    1906.07413), which is also that of the authors of `bkd`; which images stay is decided by hashes of the seed, the
    same ones on every machine. A smaller imbalance keeps what a larger one keeps.
    """

    class Options(Part):
        of: Pick
        """The dataset to be thinned: its name and its options."""
        imbalance: float = Field(100.0, ge=1, le=1_000_000)
        """How many times as many images the first class has as the last; 1 makes all classes equal."""
        kind: Kind = "exponential"
        """`exponential`: from class to class fewer by one factor. `step`: the second half of the classes are rare."""
        seed: int = Field(0, ge=0, lt=2**32)
        """Another seed keeps other images."""

        @field_validator("of")
        @classmethod
        def _another(cls, of: Pick) -> Pick:
            if of.name == NAME:
                raise ValueError(f"`{NAME}` is made of another dataset, not of itself; name that one")
            return of

    def __init__(self, options: Options, files: Files) -> None:
        self._options = options
        try:
            self._whole: Dataset = Catalog().make("datasets", options.of, files=files)
        except InvalidSpec as error:
            raise error.under("/options/of") from None

    def info(self) -> DatasetInfo:
        """Mean and standard deviation are those of the whole dataset."""
        info = self._info
        decides = [1, info.key, self._options.model_dump(mode="json", exclude={"of"})]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return replace(info, key=f"{NAME}-{digest[:32]}")

    @cached_property
    def _info(self) -> DatasetInfo:
        with _pointing():
            info = self._whole.info()
        if info.task != "classification":
            raise DataError(
                f"`{self._options.of.name}` is a dataset of {info.task}, whose images have no class to be thinned by; "
                "name one of classification",
                pointer="/dataset/options/of",
            )
        return info

    def sizes(self) -> Mapping[SplitName, int]:
        with _pointing():
            whole = self._whole.sizes()
        return {**whole, "train": int(self.counts().sum())}

    def counts(self) -> NDArray[np.int64]:
        classes = len(self._info.classes)
        with _pointing():
            if isinstance(self._whole, Counted):
                counts = self._whole.counts()
            else:
                counts = np.bincount(self._whole.split("train").labels, minlength=classes)
        return self._kept(counts)

    def split(self, name: SplitName) -> Split:
        if name == "train":
            return self._train
        with _pointing():
            return self._whole.split(name)

    def skipped(self) -> Skipped:
        """Of the whole dataset."""
        with _pointing():
            return self._whole.skipped() if isinstance(self._whole, Screened) else Skipped()

    @cached_property
    def _train(self) -> Split:
        classes = len(self._info.classes)
        with _pointing():
            whole = self._whole.split("train")
        members = [np.flatnonzero(whole.labels == label).tolist() for label in range(classes)]
        counts = self._kept(np.array([len(found) for found in members])).tolist()
        chosen = [sorted(found, key=self._rank)[:count] for found, count in zip(members, counts, strict=True)]
        at = np.sort(np.concatenate(chosen).astype(np.int64))
        return frozen(Split(whole.images[at], whole.labels[at]))

    def _kept(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """As many as every class has at most, so that the profile is exact whichever class has the fewest."""
        options = self._options
        return profile(int(counts.min()), len(counts), options.imbalance, options.kind)

    def _rank(self, index: int) -> bytes:
        return hashlib.sha256(f"{self._options.seed} {index}".encode()).digest()


NAME = "long_tailed"


def profile(most: int, classes: int, imbalance: float, kind: Kind) -> NDArray[np.int64]:
    """
    Images of each class, `[classes]`, when the first one has `most`: `most * imbalance^(-c / (classes - 1))`, or
    `most` for the first half of the classes and `most / imbalance` for the others. Rounded down, as in the authors'
    code, but not to none.
    """
    share = 1 / imbalance
    if kind == "exponential":
        counts = [most * share ** (label / max(classes - 1, 1)) for label in range(classes)]
    else:
        counts = [most if label < classes // 2 else most * share for label in range(classes)]
    return np.maximum(np.array(counts).astype(np.int64), min(most, 1))


@contextmanager
def _pointing() -> Iterator[None]:
    """What is wrong with the dataset within is said of where that stands."""
    try:
        yield
    except UserError as error:
        error.errors = tuple(
            replace(found, pointer="/dataset/options/of" + found.pointer.removeprefix("/dataset"))
            for found in error.errors
        )
        raise
