"""
The grammar of limits, and the judging of costs against them.

A limit is absolute (`200000`, `"200k"`, `"22.9M"`, `"1.2G"`; decimal units) or relative to the teacher (`"20%"`). The
value of a limit is the largest whole number allowed: `"20%"` of 22,901,345 macs is 4,580,269.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from search.errors import BudgetImpossible, UserError

_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_LIMIT = re.compile(r"(?P<number>\d{1,18}(?:\.\d{1,12})?)\s?(?P<unit>%|[A-Za-z]*)")
_LARGEST = 2**53


def limit_value(limit: str, teacher: int) -> int:
    """
    The largest cost that `limit` allows, given the teacher's cost in the same metric.

    Raises:
        UserError: `limit` is not in the grammar.
    """
    number, unit = _parse(limit)
    return math.floor(number * teacher / 100) if unit == "%" else math.floor(number * _UNITS[unit])


def _parse(limit: str) -> tuple[Fraction, str]:
    match = _LIMIT.fullmatch(limit.strip())
    if match is None:
        raise UserError(f"`{limit[:64]}` is not a limit; write a number with k, M, G or T, or a share such as 20%")
    number, unit = Fraction(match["number"]), match["unit"]
    if unit != "%" and unit not in _UNITS:
        hint = " (M is million)" if unit == "m" else ""
        raise UserError(f"unknown unit `{unit[:16]}`; use k, M, G, T or %{hint}", allowed=["k", "M", "G", "T", "%"])
    if number <= 0:
        raise UserError("a limit must be above zero")
    if unit == "%" and number > 100:
        raise UserError("a share above 100% would allow more than the teacher itself; write at most 100%")
    if unit != "%" and number * _UNITS[unit] > _LARGEST:
        raise UserError(f"a limit must be at most {_LARGEST:,}")
    return number, unit


def _checked(limit: Any) -> str:
    if isinstance(limit, bool) or not isinstance(limit, (str, int, float)):
        raise _as_value_error(UserError('a limit is a number or a text such as "20%" or "200k"'))
    text = limit if isinstance(limit, str) else f"{limit:.12f}".rstrip("0").rstrip(".")
    try:
        _parse(text)
    except UserError as error:
        raise _as_value_error(error) from None
    return text


def _as_value_error(error: UserError) -> ValueError:
    """pydantic gathers only `ValueError`s; the text goes on as it is."""
    return ValueError(error.message)


Limit = Annotated[
    str,
    BeforeValidator(_checked, json_schema_input_type=str | int | float),
    Field(examples=["20%", "200k", 4_500_000]),
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one cost stands to its limit; both in the metric's unit."""

    metric: str
    limit: int
    value: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits with their values worked out: `limits[metric]` is the largest cost allowed."""

    limits: Mapping[str, int]

    @classmethod
    def of(cls, limits: Mapping[str, str], teacher: Mapping[str, int]) -> Budget:
        """
        Works out every limit against the teacher's cost.

        Raises:
            UserError: a metric of the budget is not among the costs of the teacher.
        """
        for metric in limits:
            if metric not in teacher:
                known = sorted(teacher)
                raise UserError(
                    f"no cost is called `{metric}`; known are {', '.join(known)}",
                    pointer=f"/budget/{metric}",
                    allowed=known,
                )
        return cls({metric: limit_value(limit, teacher[metric]) for metric, limit in limits.items()})

    def judge(self, cost: Mapping[str, int]) -> tuple[Verdict, ...]:
        return tuple(
            Verdict(metric, limit, cost[metric], cost[metric] <= limit) for metric, limit in self.limits.items()
        )

    def fits(self, costs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Whether each of n networks is within every limit; `costs[metric]` is `[n]`, the answer too."""
        fitting: NDArray[np.bool_] = np.logical_and.reduce(
            [costs[metric] <= limit for metric, limit in self.limits.items()]
        )
        return fitting

    def check(self, smallest: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """
        `smallest` is the cost of the smallest student, least in every metric at once.

        Raises:
            BudgetImpossible: even that student is over a limit.
        """
        for metric, limit in self.limits.items():
            if smallest[metric] > limit:
                raise BudgetImpossible(metric, limit, smallest[metric], teacher[metric])
