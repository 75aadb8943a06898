"""
The grammar of limits, and the judging of costs against them.

A limit is absolute, in the units of its metric (`"1.5 GMACs"`, `"800k"`, `"3 MiB"`, `"4 ms"`, `"200/s"`), or relative
to the teacher (`"20%"`, `"4x smaller"`, `"2x faster"`). Every metric has a largest value but a throughput, which has a
least one. Worked out, a limit is a whole number: `"20%"` of 22,901,345 macs is 4,580,269 and not one more.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from search.errors import UserError

AT_LEAST = frozenset({"throughput"})
"""The metrics of which more is better: their limits are least values."""

_LARGEST = 2**53
_WRITTEN = re.compile(r"(?P<number>\d{1,18}(?:\.\d{1,12})?)\s?(?P<unit>%|[A-Za-z]*(?: ?[A-Za-z]+)?(?:/s)?)", re.ASCII)
_FACTOR = re.compile(r"(?P<number>\d{1,18}(?:\.\d{1,12})?)\s?[x×]\s+(?P<word>[a-z]+)", re.ASCII)
_SCALES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class _Quantity:
    """How the limits of a metric are written: its units as whole numbers of the metric's own, and its words."""

    units: Mapping[str, int]
    shown: tuple[str, ...]
    """What a remedy lists; the units themselves have more spellings."""
    remedy: str
    word: str = "smaller"
    """After a factor: `4x smaller`."""
    share: bool = True


def _counted(suffix: str = "") -> _Quantity:
    return _Quantity(
        units={scale + end: factor for scale, factor in _SCALES.items() for end in {"", suffix}},
        shown=("k", "M", "G", "T"),
        remedy="a number with k, M, G or T, or a share such as 20%",
    )


_PLAIN = _counted()
"""Of a metric that a plugin adds."""
_BYTES = _Quantity(
    units={"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    | {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    shown=("B", "kB", "MB", "GB", "KiB", "MiB", "GiB"),
    remedy='a size such as "3 MB" or "3 MiB", or a share such as 20%',
)
_QUANTITIES: Mapping[str, _Quantity] = {
    "macs": _counted("MACs"),
    "flops": _counted("FLOPs"),
    "params": _counted("params"),
    "weight_bytes": _BYTES,
    "activation_bytes": _BYTES,
    "latency": _Quantity(
        units={"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9},
        shown=("ns", "us", "ms", "s"),
        remedy='a time such as "4 ms", or "2x faster"',
        word="faster",
    ),
    "throughput": _Quantity(
        units={f"{scale}/s": _SCALES[scale] for scale in ("", "k", "K", "M")},
        shown=("/s", "k/s", "M/s"),
        remedy='a rate such as "200/s", or "2x faster"',
        word="faster",
        share=False,
    ),
}
_FLOPS_IN_A_MAC = 2
_MISTAKEN = MappingProxyType({("macs", "FLOPs"): Fraction(1, _FLOPS_IN_A_MAC), ("flops", "MACs"): Fraction(2)})
"""By metric and a suffix that is another metric's: what one of those is worth."""


@dataclass(frozen=True, slots=True)
class Limit:
    """
    One limit as it was asked for.

    `amount` is in the metric's whole unit (bytes, nanoseconds a batch, images a second), or, when `relative`, a
    multiple of the teacher's value.
    """

    metric: str
    amount: Fraction
    relative: bool

    @classmethod
    def read(cls, metric: str, written: object) -> Limit:
        """
        `written` is a text, or a number where the metric has a unit of its own to be counted in.

        Raises:
            UserError: it is not in the grammar of `metric`; says what to write.
        """
        quantity, text = _QUANTITIES.get(metric, _PLAIN), as_text(written)
        if factor := _FACTOR.fullmatch(text.strip()):
            return cls(metric, _multiple(metric, quantity, Fraction(factor["number"]), factor["word"]), relative=True)
        match = _WRITTEN.fullmatch(text.strip())
        if match is None:
            raise UserError(f"`{text[:64]}` is not a limit; write {quantity.remedy}")
        number, unit = Fraction(match["number"]), match["unit"].replace(" ", "")
        if number <= 0:
            raise UserError("a limit must be above zero")
        if unit == "%":
            return cls(metric, _share(quantity, number), relative=True)
        amount = number * _worth(metric, quantity, unit, match["number"])
        if amount > _LARGEST:
            raise UserError(f"a limit must be at most {_LARGEST:,}")
        return cls(metric, amount, relative=False)

    def value(self, teacher: int) -> int:
        """The whole number that the limit comes to, given the teacher's value of the metric."""
        exact = self.amount * teacher if self.relative else self.amount
        return math.ceil(exact) if self.metric in AT_LEAST else math.floor(exact)

    def loosens(self, former: Limit) -> bool:
        """Whether this is no tighter than `former` whatever the teacher costs."""
        if self.relative != former.relative:
            return False
        return self.amount <= former.amount if self.metric in AT_LEAST else self.amount >= former.amount


def as_text(written: object) -> str:
    """
    A limit as text, numbers written out without an exponent.

    Raises:
        UserError: it is neither number nor text.
    """
    if isinstance(written, str):
        return written
    if isinstance(written, bool) or not isinstance(written, (int, float)) or not math.isfinite(written):
        raise UserError('a limit is a number or a text such as "20%" or "200k"')
    return f"{written:.12f}".rstrip("0").rstrip(".") if isinstance(written, float) else str(written)


def spelled(metric: str, value: int) -> str:
    """A limit of this value as a user may write it, whatever the metric: `4500000`, `4000000 ns`, `200/s`."""
    quantity = _QUANTITIES.get(metric, _PLAIN)
    unit = "" if "" in quantity.units else quantity.shown[0]
    return f"{value}{unit}" if unit.startswith("/") else f"{value} {unit}".rstrip()


def check_ladder(limits: Sequence[Limit]) -> None:
    """
    Raises:
        UserError: a level is no tighter than the one before it; the pointer is its place, such as `/1`.
    """
    for level, (former, limit) in enumerate(itertools.pairwise(limits), start=1):
        if limit.loosens(former):
            raise _not_tighter(limit.metric, f"/{level}")


def _not_tighter(metric: str, pointer: str) -> UserError:
    way = "rise, because a throughput is a least value" if metric in AT_LEAST else "fall"
    return UserError(f"the limits of a ladder must {way}: each level tighter than the one before it", pointer=pointer)


def _multiple(metric: str, quantity: _Quantity, number: Fraction, word: str) -> Fraction:
    """What `4x smaller` makes of the teacher's value."""
    if word != quantity.word:
        raise UserError(f'{metric} cannot be "{word[:16]}"; write "{float(number):g}x {quantity.word}"')
    if number < 1:
        raise UserError(f"a factor below 1x would allow more than the teacher itself; write at least 1x {word}")
    return number if metric in AT_LEAST else 1 / number


def _share(quantity: _Quantity, number: Fraction) -> Fraction:
    if not quantity.share:
        raise UserError(f"a share of the teacher's would allow a slower student; write {quantity.remedy}")
    if number > 100:
        raise UserError("a share above 100% would allow more than the teacher itself; write at most 100%")
    return number / 100


def _worth(metric: str, quantity: _Quantity, unit: str, number: str) -> int:
    """How many of the metric's whole units one `unit` is."""
    if unit in quantity.units:
        return quantity.units[unit]
    for (mistaken, suffix), worth in _MISTAKEN.items():
        scale = unit.removesuffix(suffix)
        if metric == mistaken and unit.endswith(suffix) and scale in _SCALES:
            instead = f"{_decimal(Fraction(number) * worth)} {scale}{'MACs' if metric == 'macs' else 'FLOPs'}"
            other = "flops" if metric == "macs" else "macs"
            raise UserError(
                f'1 MAC is 2 FLOPs, and this limits {metric}: write "{instead}" here, or the limit under `{other}`'
            )
    shown = [*quantity.shown, *(["%"] if quantity.share else [])]
    if not unit:
        raise UserError(f"`{number}` has no unit; write {quantity.remedy}", allowed=shown)
    hint = " (M is million)" if unit == "m" and "M" in quantity.units else ""
    listed = f"{', '.join(shown[:-1])} or {shown[-1]}"
    raise UserError(f"unknown unit `{unit[:16]}`; use {listed}{hint}", allowed=shown)


def _decimal(number: Fraction) -> str:
    """A fraction that ends within 13 decimals, written out."""
    whole, part = divmod(number, 1)
    return f"{whole}.{int(part * 10**13):013d}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one value stands to its limit; both in the metric's unit."""

    metric: str
    limit: float
    value: float
    fits: bool
    at_least: bool = False
    """Whether the limit is the least value allowed, not the largest."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits with their values worked out: `limits[metric]` is the largest value allowed, or the least (`AT_LEAST`)."""

    limits: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, limits: Mapping[str, Limit], teacher: Mapping[str, int]) -> Budget:
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
        return cls({metric: limit.value(teacher[metric]) for metric, limit in limits.items()})

    def judge(self, cost: Mapping[str, int]) -> tuple[Verdict, ...]:
        return tuple(
            Verdict(metric, limit, cost[metric], self._kept(metric, cost[metric]), metric in AT_LEAST)
            for metric, limit in self.limits.items()
        )

    def holds(self, cost: Mapping[str, int]) -> bool:
        """Whether one network is within every limit."""
        return all(self._kept(metric, cost[metric]) for metric in self.limits)

    def fits(self, costs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Whether each of n networks is within every limit; `costs[metric]` is `[n]`, the answer too."""
        if not self.limits:
            return np.ones(len(next(iter(costs.values()))), dtype=bool)
        fitting: NDArray[np.bool_] = np.logical_and.reduce(
            [
                costs[metric] >= limit if metric in AT_LEAST else costs[metric] <= limit
                for metric, limit in self.limits.items()
            ]
        )
        return fitting

    def excess(self, costs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float64]:
        """How far n networks are from fitting: the largest ratio of a cost to its limit, `[n]`; 1 at the limit."""
        ratios: NDArray[np.float64] = np.max(
            [
                limit / np.maximum(costs[metric], 1) if metric in AT_LEAST else costs[metric] / limit
                for metric, limit in self.limits.items()
            ],
            axis=0,
        )
        return ratios

    def _kept(self, metric: str, value: int) -> bool:
        return value >= self.limits[metric] if metric in AT_LEAST else value <= self.limits[metric]


def ladder(limits: Mapping[str, Sequence[Limit]], teacher: Mapping[str, int]) -> tuple[Budget, ...]:
    """
    One budget a level, loosest first. A metric with one limit has it at every level; the others have one a level.

    Raises:
        UserError: an unknown metric, or a level that turns out no tighter than the one before it for this teacher.
    """
    count = max((len(steps) for steps in limits.values()), default=1)
    levels = tuple(
        Budget.of({metric: steps[level] if len(steps) > 1 else steps[0] for metric, steps in limits.items()}, teacher)
        for level in range(count)
    )
    for level, (former, budget) in enumerate(itertools.pairwise(levels), start=1):
        for metric, steps in limits.items():
            before, now = former.limits[metric], budget.limits[metric]
            if len(steps) > 1 and (now <= before if metric in AT_LEAST else now >= before):
                raise _not_tighter(metric, f"/budget/{metric}/{level}")
    return levels


def level_of(levels: Sequence[Budget], cost: Mapping[str, int]) -> int:
    """The tightest level that a network fits; 0 when it fits none. Levels are nested, loosest first."""
    return max((level for level, budget in enumerate(levels) if budget.holds(cost)), default=0)
