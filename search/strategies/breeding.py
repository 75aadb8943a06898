"""What evolution does with candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.space import Candidate, Space


def mutant(space: Space, parent: Candidate, rng: np.random.Generator, sites: int = 2) -> Candidate:
    """`parent` moved by a step or two at one to `sites` of the sites that count and have a choice."""
    choices = parent.as_dict()
    open_ = [
        site for site in space.sites if len(site.choices) > 1 and (site.within is None or choices[site.within] != 0)
    ]
    if not open_:
        return parent
    count = min(len(open_), int(rng.integers(1, sites + 1)))
    for at in rng.choice(len(open_), count, replace=False):
        site = open_[int(at)]
        place = site.choices.index(choices[site.name])
        near = [other for other in range(len(site.choices)) if 0 < abs(other - place) <= 2]
        choices[site.name] = site.choices[near[int(rng.integers(len(near)))]]
    return space.candidate(choices)


def crossed(space: Space, one: Candidate, other: Candidate, rng: np.random.Generator) -> Candidate:
    """Every site's choice from one of two parents."""
    first, second = one.as_dict(), other.as_dict()
    return space.candidate({name: (first if rng.random() < 0.5 else second)[name] for name in space.by_name})


def winner(pool: Sequence[tuple[float, Candidate]], rng: np.random.Generator, size: int) -> Candidate:
    """The best of `size` drawn from candidates with their values, larger being better."""
    drawn = rng.choice(len(pool), min(size, len(pool)), replace=False)
    return max((pool[int(at)] for at in sorted(drawn)), key=lambda entry: entry[0])[1]
