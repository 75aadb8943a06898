"""
The space of students of one teacher: finite, categorical, hashable.

A *site* is one thing that can be chosen, a *choice* one option at a site, a *candidate* a choice for every site. All
choices are whole numbers, and all costs rise with them, but for operators: there one cost may fall as another rises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from search.errors import FieldError, InvalidSpec, did_you_mean


@dataclass(frozen=True, slots=True)
class Site:
    """
    One thing that can be chosen.

    `width`: channels kept of a group of coupled channels; choices rise to the teacher's width.
    `group`: channels kept of every group of grouped convolutions; where there is such a site, `width` counts as if
    groups were whole, and says how many of them are kept.
    `removal`: 0 takes the residual block away, 1 keeps it.
    `kernel`: the odd size to which a kernel is cropped.
    `operator`: 8 is the convolution as it is, 2 and 4 a pair of convolutions of that rank in eighths of the channels
    it writes, 0 a depthwise and a pointwise convolution.
    `resolution`: the size in pixels at which the student looks at its images.

    `within` names the removal site whose 0 makes this site's choice void.
    """

    name: str
    kind: Literal["width", "group", "removal", "kernel", "operator", "resolution"]
    block: str
    choices: tuple[int, ...]
    within: str | None = None

    @property
    def full(self) -> int:
        return self.choices[-1]

    @property
    def least(self) -> int:
        return self.choices[0]


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    A choice for every site, in the order of the space's sites.

    Made by `Space.candidate`, which writes the choices of void sites as the full ones: two spellings of one network
    are equal, and `key` is the same on every machine.
    """

    choices: tuple[tuple[str, int], ...]
    key: str = field(compare=False)

    def __getitem__(self, site: str) -> int:
        return self.as_dict()[site]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.choices)

    def as_dict(self) -> dict[str, int]:
        return dict(self.choices)


@dataclass(frozen=True)
class Space:
    """All sites of a teacher. Equal spaces have equal keys, whatever weights the teacher has."""

    sites: tuple[Site, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Site]:
        return {site.name: site for site in self.sites}

    @cached_property
    def key(self) -> str:
        rows = [[site.name, site.kind, site.block, list(site.choices), site.within] for site in self.sites]
        return _digest(rows)

    @property
    def size(self) -> int:
        """How many spellings there are; void choices count, so this is an upper bound on the networks."""
        size = 1
        for site in self.sites:
            size *= len(site.choices)
        return size

    def candidate(self, choices: Mapping[str, int]) -> Candidate:
        """
        Raises:
            InvalidSpec: a site is missing, unknown, or given a choice it does not offer.
        """
        errors = [
            FieldError(f"/{name}", "UNKNOWN_FIELD", f"no site is called `{name}`{did_you_mean(name, self.by_name)}")
            for name in choices.keys() - self.by_name.keys()
        ]
        for site in self.sites:
            if site.name not in choices:
                errors.append(FieldError(f"/{site.name}", "MISSING_FIELD", "every site needs a choice"))
            elif choices[site.name] not in site.choices:
                allowed = tuple(map(str, site.choices))
                errors.append(
                    FieldError(f"/{site.name}", "INVALID_VALUE", f"choose from {', '.join(allowed)}", allowed)
                )
        if errors:
            raise InvalidSpec(errors)
        canonical = tuple(
            (site.name, site.full if site.within is not None and choices[site.within] == 0 else choices[site.name])
            for site in self.sites
        )
        return Candidate(canonical, _digest([self.key, canonical]))

    def network(self, choices: Mapping[str, int]) -> dict[str, int]:
        """
        The choices that tell a network from the others of its teacher, by site: not void, and every width with those of
        the rest that change anything. Two spaces of one teacher that both hold a network say the same of it.
        """
        return {
            site.name: choices[site.name]
            for site in self.sites
            if (site.within is None or choices[site.within] != 0)
            and (site.kind == "width" or choices[site.name] != site.full)
        }

    def full(self) -> Candidate:
        """The last choice everywhere: the teacher itself, where no rule of the space keeps it narrower."""
        return self.candidate({site.name: site.full for site in self.sites})

    def least(self) -> Candidate:
        """The first choice everywhere; the cheapest student in every cost, unless there are operators to choose."""
        return self.candidate({site.name: site.least for site in self.sites})

    def sample(self, rng: np.random.Generator) -> Candidate:
        return self.candidate({site.name: int(rng.choice(site.choices)) for site in self.sites})

    def neighbours(self, candidate: Candidate) -> Iterator[Candidate]:
        """Every other candidate that differs by one step at one site."""
        seen = {candidate.key}
        choices = candidate.as_dict()
        for site in self.sites:
            at = site.choices.index(choices[site.name])
            for step in (at - 1, at + 1):
                if 0 <= step < len(site.choices):
                    neighbour = self.candidate({**choices, site.name: site.choices[step]})
                    if neighbour.key not in seen:
                        seen.add(neighbour.key)
                        yield neighbour

    def array(self, candidates: Sequence[Candidate]) -> NDArray[np.int64]:
        """The choices as numbers, `[n, sites]`, for cost polynomials."""
        rows = [[choice for _, choice in candidate] for candidate in candidates]
        return np.asarray(rows, dtype=np.int64).reshape(len(rows), len(self.sites))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()[:24]
