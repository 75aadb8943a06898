"""From width groups, blocks and convolutions to the sites of a space."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from search.space import Site, Space
from search.surgery.groups import Group
from search.surgery.operators import DENSE, RANKS, SEPARABLE, is_replaceable, kernels_of
from search.surgery.rules import Rules, Setting

RESOLUTION = "input.resolution"


@dataclass(frozen=True)
class Sites:
    """
    What sites stand for, by site index: the width of a group, the inner width of its units, a removable block, the
    kernel or operator of a layer. Every site is in one of these, or is the `resolution`.
    """

    space: Space
    group_of: Mapping[int, int]
    inner_of: Mapping[int, int]
    block_of: Mapping[int, str]
    kernel_of: Mapping[int, str]
    operator_of: Mapping[int, str]
    resolution: int | None


def widths(full: int, unit: int, setting: Setting) -> tuple[int, ...]:
    """
    The widths offered for `full` channels that can be cut `unit` at a time; rising, the last one is `full` unless
    `max_keep` or `keep` say otherwise.

    They are the multiples of the divisor (and of `unit`) nearest to even shares of the full width, at least `min_keep`
    of it. When the common multiple leaves no choice, multiples of `unit` alone are offered, for groups of a grouped
    convolution wider than that.
    """
    multiple = math.lcm(unit, setting.divisor)
    if multiple >= full and unit > 1:
        multiple = unit
    if setting.keep is not None:
        wanted = [full if share == 1 else _nearest(full * share, multiple) for share in setting.keep]
        return tuple(sorted({min(max(width, min(multiple, full)), full) for width in wanted}))
    least, most = max(1, setting.min_keep * full), setting.max_keep * full
    even = (_nearest(full * step / setting.steps, multiple) for step in range(1, setting.steps + 1))
    chosen = {width for width in even if least <= width <= most and width < full}
    if most >= full:
        chosen.add(full)
    return tuple(sorted(chosen or {full}))


def _nearest(share: float, multiple: int) -> int:
    return math.floor(share / multiple + 0.5) * multiple


class Finder:
    """
    Names and offers sites. Names follow from the names of modules alone: `layer1.width` for a stage, `layer1.0.conv1`
    for the channels that one layer writes, `layer1.0.keep` for a removal, `layer1.0.conv2.kernel` and `.operator`.
    """

    def __init__(self, modules: Mapping[str, nn.Module], layers: Sequence[str], rules: Rules, size: int) -> None:
        self._modules, self._rules, self._size = modules, rules, size
        self._at = {layer: index for index, layer in enumerate(layers)}

    def widths(self, group: Group, name: str, block: str) -> tuple[int, ...]:
        """The widths offered at a group; its own alone when it must stay."""
        names = (name, block, *group.writers)
        if not self._rules.allows(*names):
            return (group.width,)
        return widths(group.width, group.unit, self._rules.at(*names))

    def why_whole(self, group: Group, name: str, block: str) -> str:
        """Why a group has its own width and no other."""
        names = (name, block, *group.writers)
        if not self._rules.allows(*names):
            return "the space leaves it out"
        if group.units == 1:
            return "its channels are coupled so that they can only be kept all together"
        setting = self._rules.at(*names)
        return (
            f"no width below its {group.width} channels is a multiple of {setting.divisor} "
            f"and at least {setting.min_keep:.1%} of them"
        )

    def named(self, groups: Sequence[Group], blocks: Sequence[str]) -> Iterator[tuple[Group, str, str, str | None]]:
        """Groups with their names, their blocks and the removable block that holds all of them."""
        for group, name in zip(groups, _names(groups), strict=True):
            within = next((block for block in blocks if all(_is_inside(layer, block) for layer in group.layers)), None)
            yield group, name, within or _home(group, name), within

    def removable(self, blocks: Sequence[str]) -> list[str]:
        return [
            block
            for block in blocks
            if self._rules.allows(block, f"{block}.keep") and self._rules.at(block, f"{block}.keep").removal
        ]

    def sites(
        self,
        groups: Sequence[Group],
        blocks: Sequence[str],
        resolutions: Sequence[int],
        is_barred: Callable[[str], bool],
    ) -> Sites:
        """One site per group and per block and what else is offered, in order of execution."""
        rows: list[tuple[tuple[int, int], Site, str, int | str | None]] = []
        for number, (group, name, block, within) in enumerate(self.named(groups, blocks)):
            keep = None if within is None else f"{within}.keep"
            at = self._at[group.writers[0]]
            rows.append(((at, 1), Site(name, "width", block, self.widths(group, name, block), keep), "group", number))
            inner = self._inner(group, name, block)
            if len(inner) > 1 and not is_barred(f"{name}.group"):
                rows.append(((at, 2), Site(f"{name}.group", "group", block, inner, keep), "inner", number))
        for block in blocks:
            first = min(index for layer, index in self._at.items() if _is_inside(layer, block))
            rows.append(((first, 0), Site(f"{block}.keep", "removal", block, (0, 1)), "block", block))
        for layer, at in self._at.items():
            for place, site in enumerate(self._of_layer(layer, blocks)):
                if not is_barred(site.name):
                    rows.append(((at, 3 + place), site, site.kind, layer))
        sizes = [size for size in resolutions if size < self._size]
        if sizes and not is_barred(RESOLUTION) and self._rules.allows(RESOLUTION, "input"):
            site = Site(RESOLUTION, "resolution", "input", (*sizes, self._size))
            rows.append(((-1, 0), site, "resolution", None))
        rows.sort(key=lambda row: row[0])
        space = Space(tuple(site for _, site, _, _ in rows))

        def of(what: str, kind: type) -> dict[int, object]:
            return {index: row[3] for index, row in enumerate(rows) if row[2] == what and isinstance(row[3], kind)}

        found: dict[str, dict[int, object]] = {
            "group_of": of("group", int),
            "inner_of": of("inner", int),
            "block_of": of("block", str),
            "kernel_of": of("kernel", str),
            "operator_of": of("operator", str),
        }
        resolution = next((index for index, row in enumerate(rows) if row[2] == "resolution"), None)
        return Sites(space, resolution=resolution, **found)  # type: ignore[arg-type]

    def _inner(self, group: Group, name: str, block: str) -> tuple[int, ...]:
        names = (f"{name}.group", name, block, *group.writers)
        setting = self._rules.at(*names)
        if not setting.groups or not self._rules.allows(*names):
            return (group.unit,)
        least = max(1, setting.min_keep * group.unit)
        quarters = [min(group.inner, key=lambda inner: abs(4 * inner - quarter * group.unit)) for quarter in (1, 2, 3)]
        return (*sorted({inner for inner in quarters if least <= inner < group.unit}), group.unit)

    def _of_layer(self, layer: str, blocks: Sequence[str]) -> Iterator[Site]:
        module = self._modules.get(layer)
        within = next((block for block in blocks if _is_inside(layer, block)), None)
        keep = None if within is None else f"{within}.keep"
        block = within or layer.rpartition(".")[0] or layer
        if module is None:
            return
        names = (f"{layer}.kernel", layer, block)
        kernels = kernels_of(module, self._rules.at(*names).min_kernel)
        if len(kernels) > 1 and self._rules.allows(*names):
            yield Site(f"{layer}.kernel", "kernel", block, kernels, keep)
        names = (f"{layer}.operator", layer, block)
        operators = self._rules.at(*names).operators
        if operators and is_replaceable(module) and self._rules.allows(*names):
            separable = (SEPARABLE,) if "separable" in operators else ()
            ranks = RANKS if "low_rank" in operators else ()
            yield Site(f"{layer}.operator", "operator", block, (*separable, *ranks, DENSE), keep)


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
