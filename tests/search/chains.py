"""A space and an exact cost model small enough to check by hand: a chain of layers with one removable block."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from search.space import Site, Space

WIDTHS = (4, 8, 12, 16)


class Chain:
    """Three widths; b lives in a removable block on a. macs = 9a + r * 2ab + ac + 10c, params = r * ab + c."""

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
