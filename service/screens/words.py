"""Numbers and signs as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from search.budget import AT_LEAST


@dataclass(frozen=True, slots=True)
class Signs:
    """The characters that a terminal may not have."""

    arrow: str = "→"
    times: str = "×"
    minus: str = "−"
    most: str = "≤"
    least: str = "≥"
    tick: str = "✓"
    cross: str = "✗"
    active: str = "●"
    waiting: str = "·"
    dot: str = "·"
    teacher: str = "◆"
    student: str = "★"
    limit: str = "┆"
    axis: str = "─"
    corner: str = "└"
    upright: str = "│"
    bar: str = "━"
    bars: str = "▁▂▃▄▅▆▇█"
    braille: bool = True

    @staticmethod
    def of(console: Console) -> Signs:
        return ASCII if console.options.ascii_only else UNICODE


UNICODE = Signs()
ASCII = Signs(
    arrow="->",
    times="x",
    minus="-",
    most="<=",
    least=">=",
    tick="ok",
    cross="no",
    active="*",
    waiting=".",
    dot="-",
    teacher="T",
    student="S",
    limit=":",
    axis="-",
    corner="+",
    upright="|",
    bar="=",
    bars="_.-=#",
    braille=False,
)


def amount(value: float) -> str:
    """Three digits and a decimal unit: `22.9 M`, `4.58 M`, `610 k`, `950`."""
    return _scaled(value, ("", " k", " M", " G", " T"))


def size(value: float) -> str:
    """Bytes, decimal: `2.46 MB`."""
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def measure(metric: str, value: float) -> str:
    """A value in the unit of its metric: `4.58 M` macs, `2.46 MB`, `4.00 ms`, `210/s`, `91.5 %` accuracy."""
    if metric == "accuracy":
        return percent(value)
    if metric.endswith("_bytes"):
        return size(value)
    if metric == "latency":
        return _scaled(value, (" ns", " us", " ms", " s"))
    return f"{amount(value)}/s" if metric == "throughput" else amount(value)


def merit(spec: Mapping[str, Any]) -> str:
    """What the networks of a job are judged by."""
    return "mAP" if spec.get("task") == "detection" else "accuracy"


def bound(metric: str, limit: float, signs: Signs) -> str:
    """`≤ 4.58 M`, and for a least value `≥ 210/s`."""
    return f"{signs.least if metric in AT_LEAST or metric == 'accuracy' else signs.most} {measure(metric, limit)}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    place = 0
    while value >= 999.5 and place < len(units) - 1:
        value, place = value / 1000, place + 1
    if place == 0:
        return f"{value:.0f}{units[0]}"
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}{units[place]}"


def aims(budget: Mapping[str, Any], signs: Signs) -> str:
    """The budget of a spec as one reads it: `macs ≤ 50% / 20%, latency ≤ 4 ms`."""
    said = []
    for metric, written in budget.items():
        if metric == "accuracy":
            floor = written["at_least"] or f"teacher {signs.minus} {written['max_drop']:g} pt"
            said.append(f"least {written['cheapest']}, accuracy {signs.least} {floor}")
            continue
        limit = written["limit"] if isinstance(written, Mapping) else written
        steps = [limit] if isinstance(limit, str) else limit
        said.append(f"{metric} {signs.least if metric in AT_LEAST else signs.most} {' / '.join(steps)}")
    return ", ".join(said)


def percent(share: float) -> str:
    """`0.953` as `95.3 %`."""
    return f"{100 * share:.1f} %"


def points(difference: float, signs: Signs) -> str:
    """A difference of shares: `-0.004` as `−0.4 pt`."""
    rounded = round(100 * difference, 1)
    sign = signs.minus if rounded < 0 else "+"
    return f"{sign if rounded else ''}{abs(rounded):.1f} pt"


def ratio(larger: float, smaller: float, signs: Signs) -> str:
    """How many times fewer: `5.1×`."""
    quotient = larger / smaller if smaller else float("inf")
    return f"{quotient:.{1 if quotient < 99.95 else 0}f}{signs.times}"


def duration(seconds: float) -> str:
    """`8.3 s`, `1 m 02 s`, `2 h 05 m`, `3 d 04 h`."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def age(seconds: float) -> str:
    """The largest unit alone: `12 s`, `30 m`, `5 h`, `3 d`."""
    whole = max(round(seconds), 0)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= unit:
            return f"{whole // unit} {name}"
    return f"{whole} s"


def plural(count: int, noun: str) -> str:
    """`1 trial`, `12 trials`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def sparkline(values: list[float], width: int, signs: Signs) -> str:
    """The last `width` values as a row of bars, lowest to highest."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    top = len(signs.bars) - 1
    if high == low:
        return signs.bars[top // 2] * len(shown)
    return "".join(signs.bars[round((value - low) / (high - low) * top)] for value in shown)
