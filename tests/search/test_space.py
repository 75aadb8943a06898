"""Spaces: one network has one key, and a neighbour is one step away."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import InvalidSpec
from search.space import Candidate, Site, Space


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    sites: list[Site] = []
    for index in range(draw(st.integers(1, 5))):
        block = f"block{index}"
        within = None
        if draw(st.booleans()):
            within = f"{block}.keep"
            sites.append(Site(within, "removal", block, (0, 1)))
        choices = tuple(sorted(draw(st.sets(st.integers(1, 64), min_size=1, max_size=5))))
        sites.append(Site(f"{block}.width", "width", block, choices, within))
    return Space(tuple(sites))


@st.composite
def spaces_with_choices(draw: st.DrawFn) -> tuple[Space, dict[str, int]]:
    space = draw(spaces())
    return space, {site.name: draw(st.sampled_from(site.choices)) for site in space.sites}


@given(spaces_with_choices())
def test_canonical_form_is_reached_in_one_step(made: tuple[Space, dict[str, int]]) -> None:
    space, choices = made
    candidate = space.candidate(choices)
    again = space.candidate(candidate.as_dict())
    assert again == candidate
    assert again.key == candidate.key
    for site in space.sites:
        void = site.within is not None and choices[site.within] == 0
        assert candidate[site.name] == (site.full if void else choices[site.name])


@given(spaces_with_choices(), st.data())
def test_what_a_removed_block_holds_does_not_change_the_key(
    made: tuple[Space, dict[str, int]], data: st.DataObject
) -> None:
    space, choices = made
    respelt = {
        site.name: data.draw(st.sampled_from(site.choices))
        if site.within is not None and choices[site.within] == 0
        else choices[site.name]
        for site in space.sites
    }
    assert space.candidate(respelt).key == space.candidate(choices).key


@given(spaces_with_choices())
def test_different_networks_have_different_keys(made: tuple[Space, dict[str, int]]) -> None:
    space, choices = made
    candidate = space.candidate(choices)
    others = list(space.neighbours(candidate))
    assert len({candidate.key, *(other.key for other in others)}) == 1 + len(others)


@given(spaces_with_choices())
def test_neighbours_differ_by_one_step_at_one_site(made: tuple[Space, dict[str, int]]) -> None:
    space, choices = made
    candidate = space.candidate(choices)
    for neighbour in space.neighbours(candidate):
        moved = [site for site in space.sites if neighbour[site.name] != candidate[site.name]]
        stepped = [
            site
            for site in moved
            if abs(site.choices.index(neighbour[site.name]) - site.choices.index(candidate[site.name])) == 1
        ]
        removed = {site.name for site in moved if site.kind == "removal" and neighbour[site.name] == 0}
        free = [site for site in moved if site.within not in removed]
        assert len(free) == 1, "besides what a removal makes void, one site moves"
        assert free[0] in stepped


@given(spaces_with_choices())
def test_every_step_that_makes_another_network_is_a_neighbour(made: tuple[Space, dict[str, int]]) -> None:
    space, choices = made
    candidate = space.candidate(choices)
    expected: set[str] = set()
    for site in space.sites:
        at = site.choices.index(candidate[site.name])
        for choice in site.choices[max(0, at - 1) : at + 2]:
            expected.add(space.candidate({**candidate.as_dict(), site.name: choice}).key)
    assert {neighbour.key for neighbour in space.neighbours(candidate)} == expected - {candidate.key}


@given(spaces())
def test_ends_hold_the_extreme_choices(space: Space) -> None:
    full, least = space.full(), space.least()
    for site in space.sites:
        assert full[site.name] == site.full
        void = site.within is not None
        assert least[site.name] == (site.full if void else site.least)


@given(spaces(), st.integers(0, 2**32 - 1))
def test_samples_belong_to_the_space_and_follow_the_seed(space: Space, seed: int) -> None:
    candidate = space.sample(np.random.default_rng(seed))
    assert space.candidate(candidate.as_dict()) == candidate
    assert space.sample(np.random.default_rng(seed)) == candidate
    assert space.array([candidate]).tolist() == [[candidate[site.name] for site in space.sites]]


SPACE = Space(
    (
        Site("stem", "width", "stem", (8, 16)),
        Site("block.keep", "removal", "block", (0, 1)),
        Site("block.conv1", "width", "block", (4, 8, 12), "block.keep"),
    )
)


def test_size_counts_spellings() -> None:
    assert SPACE.size == 2 * 2 * 3
    assert SPACE.array([]).shape == (0, 3)


@pytest.mark.timeout(60)
def test_keys_are_the_same_in_another_process() -> None:
    program = (
        "from tests.search.test_space import SPACE; print(SPACE.key, SPACE.full().key, SPACE.least().key, sep=chr(10))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [SPACE.key, SPACE.full().key, SPACE.least().key]


def test_mistakes_in_choices_are_named_all_at_once() -> None:
    with pytest.raises(InvalidSpec) as raised:
        SPACE.candidate({"stemm": 8, "block.keep": 1, "block.conv1": 5})
    found = {error.pointer: error for error in raised.value.errors}
    assert 'did you mean "stem"?' in found["/stemm"].message
    assert found["/stem"].code == "MISSING_FIELD"
    assert found["/block.conv1"].allowed == ("4", "8", "12")


def test_candidates_are_equal_by_their_choices() -> None:
    wide: Candidate = SPACE.full()
    assert wide == SPACE.candidate(wide.as_dict())
    assert wide != SPACE.least()
    assert len({wide, SPACE.candidate(wide.as_dict()), SPACE.least()}) == 2


@given(spaces_with_choices())
def test_equal_networks_are_described_alike_and_different_ones_are_not(made: tuple[Space, dict[str, int]]) -> None:
    space, choices = made
    for other in (space.candidate(choices), *space.neighbours(space.candidate(choices))):
        same = other.key == space.candidate(choices).key
        assert (space.network(other.as_dict()) == space.network(choices)) is same


def test_two_spaces_say_the_same_of_a_network_that_both_hold() -> None:
    """One offers more widths, a removal and kernels that the other leaves as they are."""
    rich = Space(
        (
            Site("a", "width", "stem", (4, 8, 16)),
            Site("block.keep", "removal", "block", (0, 1)),
            Site("b", "width", "block", (4, 8, 16), within="block.keep"),
            Site("b.kernel", "kernel", "block", (3, 5), within="block.keep"),
        )
    )
    poor = Space((Site("a", "width", "stem", (8, 16)), Site("b", "width", "block", (8,))))
    assert rich.network({"a": 16, "block.keep": 1, "b": 8, "b.kernel": 5}) == poor.network({"a": 16, "b": 8})
    assert rich.network({"a": 16, "block.keep": 1, "b": 8, "b.kernel": 3}) != poor.network({"a": 16, "b": 8})
