"""
Datasets of image files, some of which cannot be used.

Splits go without those, up to a share of all images that the user allows, and what was left out is told. Which they
are, the bytes alone decide: the same images on every machine and in every trial, whatever the files are called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, Protocol, TypeVar

from pydantic import Field

from search.datasets.arrays import Broken, Built, Kept, check_memory
from search.datasets.pictures import Channels, Picture, Tree
from search.errors import DatasetCorrupt
from search.plugins import Fault, Inspection, Labels, Skipped, Split, SplitName

BadFraction = Annotated[float, Field(ge=0, le=0.5)]
MAX_BAD_FRACTION = 0.001
_MOST_FAULTS = 50
_NAMED = 3


class Shown(Protocol):
    """An image file, and the classes of what can be seen on it."""

    @property
    def picture(self) -> Picture: ...

    @property
    def classes(self) -> Iterable[int]: ...


S = TypeVar("S", bound=Shown)


@dataclass(frozen=True, slots=True)
class Screen:
    """How many images of a tree may be of no use: at most the share `most`, and never all of a class."""

    tree: Tree
    classes: Sequence[str]
    most: float

    def passed(self, examples: Mapping[SplitName, Sequence[Shown]], broken: Broken) -> Skipped:
        """
        What is left out, of all `examples` those that are `broken`.

        Raises:
            DatasetCorrupt: that is too much.
        """
        faults = {name: self._faults(examples[name], places) for name, places in broken.items() if places}
        images, found = sum(map(len, examples.values())), [fault for of in faults.values() for fault in of]
        if not found:
            return Skipped()
        if len(found) / images > self.most:
            share = f"{len(found) / images:.2%}, and `max_bad_fraction` is {self.most:.2%}"
            raise self._corrupt(f"{len(found):,} of {images:,} images cannot be used ({share})", found)
        for name, of_split in faults.items():
            before, after = examples[name], _without(examples[name], broken[name])
            lost = _classes(before) - _classes(after)
            if lost or not after:
                what = f"class `{self.classes[min(lost)]}` has" if lost else "there is"
                raise self._corrupt(f"{what} no image left in the {name} split, for some cannot be used", of_split)
        places = {name: sorted(of) for name, of in broken.items() if of}
        key = hashlib.sha256(json.dumps(places, sort_keys=True).encode()).hexdigest()[:16]
        return Skipped(len(found), images, key, tuple(_by_name(found)[:_MOST_FAULTS]))

    def _faults(self, examples: Sequence[Shown], broken: Mapping[int, str]) -> list[Fault]:
        return [self.tree.fault(examples[place].picture.path, said) for place, said in broken.items()]

    def _corrupt(self, what: str, faults: Sequence[Fault]) -> DatasetCorrupt:
        named = [f"{Path(self.tree.shown) / fault.file}: {fault.message}" for fault in _by_name(faults)[:_NAMED]]
        named += [f"{len(faults) - _NAMED:,} more"] if len(faults) > _NAMED else []
        return DatasetCorrupt(
            f"{what}: {'; '.join(named)}; replace or remove such files, or allow a larger `max_bad_fraction`"
        )


@dataclass(frozen=True)
class Album(Generic[S]):
    """
    Images by split, in an order that their contents decide. `key` names these, and all that decides what arrays they
    become; `label` gives the labels of images, `[n, ...]`.
    """

    screen: Screen
    key: str
    examples: Mapping[SplitName, Sequence[S]]
    size: int
    channels: Channels
    label: Callable[[Sequence[S]], Labels]
    cache: Path

    def split(self, name: SplitName) -> Split:
        """What `search.plugins.Dataset` promises."""
        self.skipped()
        return self._kept.split(name)

    def skipped(self) -> Skipped:
        """What `search.plugins.Screened` promises."""
        check_memory(sum(map(len, self.examples.values())), self.channels, self.size)
        return self.screen.passed(self.examples, self._kept.broken())

    def usable(self, name: SplitName) -> Sequence[S]:
        """The images of a split, as far as this machine knows without opening any."""
        return _without(self.examples[name], (self._kept.known_broken() or {}).get(name, {}))

    def inspect(self, seconds: float) -> Inspection:
        """What `search.plugins.Inspected` promises."""
        tree = self.screen.tree
        pictures = sorted({one.picture for of in self.examples.values() for one in of}, key=lambda one: one.digest)
        opened, said = tree.look(pictures, self.size, self.channels, seconds)
        corrupt = _by_name(tree.fault(picture.path, message) for picture, message in said.items())
        suspicious = [tree.fault(one.path, message) for one in pictures if (message := _linked(one.path))]
        broken = {
            name: {place: said[one.picture] for place, one in enumerate(of_split) if one.picture in said}
            for name, of_split in self.examples.items()
        }
        refusal = ""
        try:
            self.screen.passed(self.examples, broken)
        except DatasetCorrupt as error:
            refusal = error.message
        others = tree.count(tree.root) - len({picture.path for picture in pictures})
        return Inspection(
            images=len(pictures),
            opened=opened,
            others=max(others, 0),
            corrupt=len(corrupt),
            suspicious=len(suspicious),
            faults=(*corrupt, *suspicious)[:_MOST_FAULTS],
            refusal=refusal,
        )

    @property
    def _kept(self) -> Kept:
        return Kept(self.cache, self.key, self._build)

    def _build(self) -> Built:
        images, broken = {}, {}
        for name, of_split in self.examples.items():
            pictures = [one.picture for one in of_split]
            images[name], broken[name] = self.screen.tree.decode(pictures, self.size, self.channels)
        self.screen.passed(self.examples, broken)  # what no job takes is not kept
        splits = {
            name: Split(images[name], self.label(_without(of_split, broken[name])))
            for name, of_split in self.examples.items()
        }
        return Built(splits, broken)


def _classes(examples: Sequence[Shown]) -> set[int]:
    return {label for one in examples for label in one.classes}


def _without(examples: Sequence[S], broken: Mapping[int, str]) -> Sequence[S]:
    return [one for place, one in enumerate(examples) if place not in broken] if broken else examples


def _by_name(faults: Iterable[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: fault.file)


def _linked(path: Path) -> str | None:
    try:
        names = path.stat().st_nlink
    except OSError:
        return None  # which opening it will tell
    if names < 2:
        return None
    return f"a hard link, one of {names}: what it holds can be changed from elsewhere; put a copy there"
