from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from search.part import Part
from search.plugins import Proposal, Start
from search.space import Candidate, Space
from search.trial import Trial


class Uniform:
    """
    The teacher narrowed evenly, first with all its blocks, then with one, two, ... of them taken away.

    It proposes full widths and leaves the narrowing to the projection, which keeps the ratio between widths. Even
    widths with good distillation are the baseline that is hard to beat.
    """

    needs_plan = False

    class Options(Part):
        pass

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._shapes = self._full_widths(space)

    def ask(self) -> Proposal | None:
        candidate = next(self._shapes, None)
        return None if candidate is None else Proposal(candidate, candidate)

    def tell(self, trial: Trial) -> None:
        """Nothing is learned; a replay walks the same list, and those on record are skipped as repeats."""

    @staticmethod
    def _full_widths(space: Space) -> Iterator[Candidate]:
        full = space.full().as_dict()
        # From the last block backwards: late blocks hold most parameters and their loss is the mildest.
        removals = [site.name for site in reversed(space.sites) if site.kind == "removal"]
        for count in range(len(removals) + 1):
            for gone in combinations(removals, count):
                yield space.candidate(full | dict.fromkeys(gone, 0))
