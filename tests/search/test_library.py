"""The block library: every choice distilled alone, put back in its place, and cut for candidates."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from search.library import Entry, Librarian, Library, Lot, harm_table, lot_key, lots
from search.quality import quality
from search.space import Candidate, Site, Space
from search.spec import LibrarySpec
from search.training import recalibrate
from tests.search.weights import answered, surveyed

pytestmark = pytest.mark.timeout(60)

SPEC = LibrarySpec(steps=6, coupled_steps=2, batch_size=32, images=64)


@cache
def entry(site: str, choice: int, steps: int = SPEC.steps) -> Entry:
    spec = SPEC.model_copy(update={"steps": steps})
    return Librarian(surveyed(), answered(), answered(), spec).learn(Lot(site, choice))


def alone(site: str, choice: int) -> Candidate:
    space = surveyed().space
    return space.candidate({**space.full().as_dict(), site: choice})


def test_all_choices_but_the_full_one_are_lots_and_of_widths_some() -> None:
    space = surveyed().space
    every = lots(space, SPEC.model_copy(update={"choices": 64}))
    assert len(every) == sum(len(site.choices) - 1 for site in space.sites)
    some = lots(space, SPEC.model_copy(update={"choices": 2}))
    for site in space.sites:
        mine = [lot.choice for lot in some if lot.site == site.name]
        assert site.full not in mine
        assert mine[0] == site.least
        assert len(mine) == (min(2, len(site.choices) - 1) if site.kind == "width" else len(site.choices) - 1)


@pytest.mark.parametrize(
    ("site", "choice", "home"),
    [
        ("layer2.1.conv1", 8, "layer2.1"),
        ("layer2.0.conv2.operator", 0, "layer2.0"),
        ("layer2.width", 8, None),  # reaches into the next stage
        ("layer2.1.keep", 0, None),  # nothing is left to train
        ("input.resolution", 12, None),
    ],
)
def test_a_choice_is_distilled_in_the_block_that_holds_it(site: str, choice: int, home: str | None) -> None:
    found = entry(site, choice)
    assert found.home == home
    assert bool(found.tensors) == (home is not None)
    assert found.harm >= 0


def test_harm_is_the_distance_of_the_whole_network_with_that_choice_put_in() -> None:
    untrained = entry("layer2.1.conv1", 8, steps=0)
    student = surveyed().graft(alone("layer2.1.conv1", 8))
    recalibrate(student, answered(), batches=8, batch_size=32)
    held_out = type(answered())(
        answered().images[:64], answered().labels[:64], answered().logits[:64], answered().normalise
    )
    assert untrained.harm == pytest.approx(quality(student, held_out).kl, rel=1e-5)


def test_distillation_lessens_the_harm() -> None:
    assert entry("layer2.1.conv1", 4, steps=40).harm < 0.95 * entry("layer2.1.conv1", 4, steps=0).harm


def test_an_entry_packed_and_unpacked_is_the_same() -> None:
    found = entry("layer2.0.conv2.operator", 2)
    again = Entry.unpack(found.pack())
    assert (again.lot, again.harm, again.home, again.seconds) == (found.lot, found.harm, found.home, found.seconds)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in found.tensors.items())


@pytest.mark.parametrize(
    ("site", "choice"), [("layer2.1.conv1", 8), ("layer2.0.conv2.operator", 0), ("layer2.0.conv2.operator", 2)]
)
def test_a_candidate_of_one_choice_has_the_weights_of_its_entry(site: str, choice: int) -> None:
    found = entry(site, choice)
    student = Library(surveyed(), {found.lot: found.harm}, lambda lot: found).graft(alone(site, choice)).state_dict()
    own = surveyed().graft(alone(site, choice)).state_dict()
    for name, tensor in student.items():
        assert torch.equal(tensor, found.tensors.get(name, own[name])), name
    assert any(not torch.equal(tensor, own[name]) for name, tensor in found.tensors.items())


def test_other_widths_are_cut_from_the_entry() -> None:
    found = entry("layer2.1.conv1", 8)
    library = Library(
        surveyed(), {found.lot: found.harm}, lambda lot: Entry(lot, 0.0, None, {}, 0.0) if lot != found.lot else found
    )
    space = surveyed().space
    narrow = space.candidate({**space.full().as_dict(), "layer2.1.conv1": 8, "layer2.width": 12})
    student = library.graft(narrow)
    weight = student.get_parameter("layer2.1.conv1.weight")
    assert torch.equal(weight, found.tensors["layer2.1.conv1.weight"][:, : weight.shape[1]])
    assert torch.isfinite(student(torch.randn(2, 3, 16, 16))).all()


def test_of_two_choices_in_a_block_the_more_harmful_one_gives_the_weights() -> None:
    width, operator = entry("layer2.1.conv1", 8), entry("layer2.1.conv2.operator", 2)
    entries = {width.lot: width, operator.lot: operator}
    space = surveyed().space
    both = space.candidate({**space.full().as_dict(), width.lot.site: 8, operator.lot.site: 2})
    for harms, winner in (
        ({width.lot: 2.0, operator.lot: 1.0}, width),
        ({width.lot: 1.0, operator.lot: 2.0}, operator),
    ):
        student = Library(surveyed(), harms, entries.__getitem__).graft(both)
        assert torch.equal(student.get_parameter("layer2.1.bn2.weight"), winner.tensors["layer2.1.bn2.weight"])


def test_the_planners_table_has_what_was_measured_and_what_lies_between() -> None:
    space = Space((Site("a", "width", "b", (2, 4, 6, 8, 10)), Site("b.keep", "removal", "b", (0, 1))))
    table = harm_table(space, {Lot("a", 2): 0.64, Lot("a", 6): 0.16, Lot("b.keep", 0): 0.3})
    assert table[0] == pytest.approx([0.64, 0.36, 0.16, 0.04, 0.0])  # the roots fall evenly: .8 .6 .4 .2 0
    assert table[1] == [0.3, 0.0]


def test_what_could_not_be_measured_counts_as_the_worst() -> None:
    space = Space((Site("a", "width", "b", (2, 4)), Site("b.keep", "removal", "b", (0, 1))))
    assert harm_table(space, {Lot("a", 2): 0.5}) == [[pytest.approx(0.5), 0.0], [0.5, 0.0]]


def test_a_width_that_was_not_measured_is_cut_from_the_next_wider_one() -> None:
    found = entry("layer2.1.conv1", 8)
    library = Library(surveyed(), {found.lot: found.harm}, lambda lot: found)
    student = library.graft(alone("layer2.1.conv1", 4))
    assert torch.equal(student.get_parameter("layer2.1.conv1.weight"), found.tensors["layer2.1.conv1.weight"][:4])
    wider = library.graft(alone("layer2.1.conv1", 12)).get_parameter("layer2.1.conv1.weight")
    assert torch.equal(wider, surveyed().graft(alone("layer2.1.conv1", 12)).get_parameter("layer2.1.conv1.weight"))


def test_a_key_follows_from_all_that_decides_an_entry() -> None:
    keys = {
        lot_key(Lot("a", 1), "teacher", "data", SPEC),
        lot_key(Lot("a", 2), "teacher", "data", SPEC),
        lot_key(Lot("a", 1), "other", "data", SPEC),
        lot_key(Lot("a", 1), "teacher", "other", SPEC),
        lot_key(Lot("a", 1), "teacher", "data", SPEC.model_copy(update={"steps": 7})),
    }
    assert len(keys) == 5
    more_measured = SPEC.model_copy(update={"choices": SPEC.choices + 1})
    assert lot_key(Lot("a", 1), "teacher", "data", more_measured) in keys
