"""A small plot of accuracy over a cost, in characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.text import Text

from service.screens.words import Signs, amount, percent

Point = tuple[float, float]
"""Cost and accuracy."""

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character, by row and column; Unicode 15, block U+2800."""
_MARGIN = 9
"""Columns left of the plot, for the numbers of the accuracy axis."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What is plotted. Costs are above zero; accuracies, 0..1, are all on one set."""

    candidates: Sequence[Point]
    teacher: Point | None
    """None where there is none."""
    students: Sequence[Point]
    limits: Sequence[float]
    """Largest costs allowed, one a level."""


def scatter(picture: Picture, *, width: int, height: int, signs: Signs) -> list[Text]:
    """
    `height` lines of plot and two of cost axis, at most `width` columns wide. The cost axis is logarithmic: most
    candidates lie close below their limit and far from their teacher.
    """
    columns = max(width - _MARGIN, 16)
    teachers = [] if picture.teacher is None else [picture.teacher]
    everything = [*picture.candidates, *teachers, *picture.students]
    costs = [*(cost for cost, _ in everything), *picture.limits]
    accuracies = [accuracy for _, accuracy in everything]
    floor = _floor(accuracies)
    across = _Axis(math.log(min(costs)), math.log(max(costs)), columns)
    up = _Axis(floor, max(accuracies), height)
    fine = (_Axis(across.low, across.high, 2 * columns), _Axis(up.low, up.high, 4 * height))

    cells: list[list[tuple[str, str]]] = [[(" ", "")] * columns for _ in range(height)]
    bits: dict[tuple[int, int], int] = {}
    for cost, accuracy in picture.candidates:
        x, y = fine[0].place(math.log(cost)), 4 * height - 1 - fine[1].place(accuracy)
        bits[y // 4, x // 2] = bits.get((y // 4, x // 2), 0) | _DOTS[y % 4][x % 2]
    for (row, column), dots in bits.items():
        cells[row][column] = (chr(0x2800 + dots) if signs.braille else "o", "cyan")
    for limit in picture.limits:
        column = across.place(math.log(limit))
        for line_of_cells in cells:
            if line_of_cells[column][0] == " ":
                line_of_cells[column] = (signs.limit, "dim")
    marks = [
        *((point, signs.teacher, "yellow") for point in teachers),
        *((point, signs.student, "green") for point in picture.students),
    ]
    for (cost, accuracy), sign, style in marks:
        cells[height - 1 - up.place(accuracy)][across.place(math.log(cost))] = (sign, f"bold {style}")

    below = f"{signs.most}{percent(up.low)}"
    if len(below) > _MARGIN - 2:
        below = f"{signs.most}{up.low:.0%}"
    lines = []
    for number, drawn in enumerate(cells):
        label = {0: percent(up.high), height - 1: percent(up.low) if floor == min(accuracies) else below}.get(
            number, ""
        )
        line = Text(f"{label:>{_MARGIN - 2}} {signs.upright}", style="dim")
        for character, style in drawn:
            line.append(character, style=style or "not dim")
        line.rstrip()
        lines.append(line)
    lines.append(Text(" " * (_MARGIN - 1) + signs.corner + signs.axis * columns, style="dim"))
    lines.append(_ticks(picture, across, columns))
    return lines


def _floor(accuracies: Sequence[float]) -> float:
    """
    The lowest accuracy that the plot tells apart. A few trials far below the rest would press all others together, so
    what lies further below the median than three times the way from there to the top is drawn on the bottom line.
    """
    top, middle = max(accuracies), median(accuracies)
    return max(min(accuracies), middle - 3 * (top - middle))


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    cells: int

    def place(self, value: float) -> int:
        if self.high <= self.low:
            return self.cells // 2
        return min(self.cells - 1, max(0, round((value - self.low) / (self.high - self.low) * (self.cells - 1))))


def _ticks(picture: Picture, across: _Axis, columns: int) -> Text:
    """Costs below the axis: the highest, the limits, and the lowest, as far as they do not touch those before."""
    row = [" "] * columns
    wanted = [across.high, *map(math.log, picture.limits), across.low]
    for value in wanted:
        label = amount(math.exp(value))
        start = min(max(across.place(value) - len(label) // 2, 0), columns - len(label))
        if all(character == " " for character in row[max(start - 2, 0) : start + len(label) + 2]):
            row[start : start + len(label)] = label
    return Text(" " * _MARGIN + "".join(row).rstrip(), style="dim")
