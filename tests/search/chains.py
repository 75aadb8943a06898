"""Spaces and exact cost models small enough to check by hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from search.costs.polynomial import Polynomials, Term, Variable
from search.space import Site, Space

WIDTHS = (4, 8, 12, 16)


class Chain:
    """
    A chain of layers with three widths; b lives in a removable block on a.

    macs = 9a + r * 2ab + ac + 10c, params = r * ab + c.
    """

    def __init__(self) -> None:
        self.space = Space(
            (
                Site("a", "width", "stem", WIDTHS),
                Site("block", "removal", "block", (0, 1)),
                Site("b", "width", "block", WIDTHS, within="block"),
                Site("c", "width", "head", WIDTHS),
            )
        )

    def costs_of(self, choices: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
        a, r, b, c = choices.T
        return {"macs": 9 * a + r * 2 * a * b + a * c + 10 * c, "params": r * a * b + c}

    @property
    def polynomials(self) -> Polynomials:
        a, r, b, c = range(4)
        return Polynomials(
            [site.choices for site in self.space.sites],
            [Variable((at,), site.choices) for at, site in enumerate(self.space.sites)],
            {
                "macs": (Term(9, (a,)), Term(2, (a, r, b)), Term(1, (a, c)), Term(10, (c,))),
                "params": (Term(1, (a, r, b)), Term(1, (c,))),
            },
        )


class Fork:
    """
    Two operators, each with choices that make one cost fall and the other rise, and a width between.

    macs = w * (9, 1, 4)[one] + w * (2, 8, 1)[other], params = w + (1, 20, 3)[one] + (5, 1, 30)[other].
    """

    _MACS, _PARAMS = ((9, 1, 4), (2, 8, 1)), ((1, 20, 3), (5, 1, 30))

    def __init__(self) -> None:
        self.space = Space(
            (
                Site("one", "operator", "one", (0, 1, 2)),
                Site("w", "width", "one", WIDTHS),
                Site("other", "operator", "other", (0, 1, 2)),
            )
        )

    @property
    def polynomials(self) -> Polynomials:
        variables = [Variable((1,), WIDTHS)]
        for site, table in ((0, 0), (2, 1)):
            variables += [Variable((site,), self._MACS[table]), Variable((site,), self._PARAMS[table])]
        sums = {
            "macs": (Term(1, (0, 1)), Term(1, (0, 3))),
            "params": (Term(1, (0,)), Term(1, (2,)), Term(1, (4,))),
        }
        return Polynomials([site.choices for site in self.space.sites], variables, sums)

    def costs_of(self, choices: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
        return self.polynomials(choices)
