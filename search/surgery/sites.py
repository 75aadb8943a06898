"""From width groups and removable blocks to the sites of a space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.space import Site, Space
from search.spec import SpaceSpec
from search.surgery.groups import Group


@dataclass(frozen=True)
class Sites:
    """`group_of` and `block_of` say, by site index, what a site stands for; every site is in one of them."""

    space: Space
    group_of: Mapping[int, int]
    block_of: Mapping[int, str]


def widths(full: int, unit: int, options: SpaceSpec) -> tuple[int, ...]:
    """
    The widths offered for `full` channels that can be cut `unit` at a time; rising, the last one is `full`.

    They are the multiples of the divisor (and of `unit`) nearest to even shares of the full width, at least `min_keep`
    of it. When the common multiple leaves no choice, multiples of `unit` alone are offered, for groups of a grouped
    convolution wider than that.
    """
    multiple = math.lcm(unit, options.divisor)
    if multiple >= full and unit > 1:
        multiple = unit
    nearest = (
        math.floor(full * step / options.steps / multiple + 0.5) * multiple for step in range(1, options.steps + 1)
    )
    least = max(1, options.min_keep * full)
    return (*sorted({width for width in nearest if least <= width < full}), full)


def sites_of(groups: Sequence[Group], blocks: Sequence[str], order: Sequence[str], options: SpaceSpec) -> Sites:
    """
    One site per group and per block, in order of execution (`order` names the layers so).

    Names follow from the names of modules alone: `layer1.width` for a stage, `layer1.0.conv1` for the channels that one
    layer writes, `layer1.0.keep` for a removal.
    """
    at = {layer: index for index, layer in enumerate(order)}
    names = _names(groups)
    rows: list[tuple[tuple[int, int], Site, int | str]] = []
    for number, (group, name) in enumerate(zip(groups, names, strict=True)):
        within = next((block for block in blocks if all(_is_inside(layer, block) for layer in group.layers)), None)
        block = within or _home(group, name)
        choices = widths(group.width, group.unit, options)
        keep = None if within is None else f"{within}.keep"
        rows.append(((at[group.writers[0]], 1), Site(name, "width", block, choices, keep), number))
    for block in blocks:
        first = min(index for layer, index in at.items() if _is_inside(layer, block))
        rows.append(((first, 0), Site(f"{block}.keep", "removal", block, (0, 1)), block))
    rows.sort(key=lambda row: row[0])
    return Sites(
        Space(tuple(site for _, site, _ in rows)),
        {index: means for index, (_, _, means) in enumerate(rows) if isinstance(means, int)},
        {index: means for index, (_, _, means) in enumerate(rows) if isinstance(means, str)},
    )


def _names(groups: Sequence[Group]) -> list[str]:
    homes = [_common(group.writers) if len(group.writers) > 1 else "" for group in groups]
    return [
        f"{home}.width" if home and homes.count(home) == 1 else group.writers[0]
        for home, group in zip(homes, groups, strict=True)
    ]


def _common(writers: Sequence[str]) -> str:
    """
    The innermost module that holds the writers, a stem of single layers before it left aside; empty when only the
    whole network does.
    """
    home: list[str] = []
    paths = [writer.split(".") for writer in writers]
    while True:
        depth = len(home)
        inside = [path for path in paths if path[:depth] == home and len(path) > depth + 1]
        if not inside or len({path[depth] for path in inside}) > 1 or 2 * len(inside) <= len(writers):
            return ".".join(home)
        home.append(inside[0][depth])


def _home(group: Group, name: str) -> str:
    if name.endswith(".width") and name not in group.writers:
        return name.removesuffix(".width")
    parent = group.writers[0].rpartition(".")[0]
    return parent or group.writers[0]


def _is_inside(layer: str, block: str) -> bool:
    return layer.startswith(f"{block}.")
