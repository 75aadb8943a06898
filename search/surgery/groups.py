"""
Width groups: channels that are kept or cut as one number.

A *unit* is what can be cut on its own: a channel, or the channels of one group of a grouped convolution together with
all they are coupled to. A *group* is all units of a layer that mixes channels, and of every layer coupled to it. A
*lane* says, for one side of one layer, which of its channels belong to which unit of which group; concatenation and
flattening show in the lane and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.surgery.channels import Channels, connected
from search.surgery.flow import Axis, Indices
from search.surgery.layers import Side


@dataclass(frozen=True)
class Table:
    """
    `addresses [units, columns]` are the channels of one group on one axis. Columns hold the same `strand` of every
    unit (channels of different strands of a unit are different channels), each of its `width` channels `repeat` times.
    """

    addresses: Indices
    strand: int
    width: int

    @property
    def repeat(self) -> int:
        return int(self.addresses.shape[1]) // self.width


@dataclass(frozen=True, slots=True)
class Group:
    """
    `writers` are the layers that produce its channels, in order of execution; `layers` all that take part. `unit` is
    the number of channels of the first writer that stand and fall together. `inner` are the narrower units that can be
    had by cutting within every group of its grouped convolutions, rising, `unit` itself the last.
    """

    writers: tuple[str, ...]
    layers: tuple[str, ...]
    units: int
    unit: int
    inner: tuple[int, ...]

    @property
    def width(self) -> int:
        return self.units * self.unit


@dataclass(frozen=True, slots=True)
class Kept:
    """Of one group: the first `units` of its units, and of every strand of these the share `inner / unit`."""

    units: int
    inner: int
    unit: int

    def width(self, table: Table) -> int:
        """Channels left of one unit on the table's strand."""
        return table.width * self.inner // self.unit


@dataclass(frozen=True)
class Order:
    """Unit `units[i]` becomes unit i; of the new unit i, channel `strands[s][i, j]` of strand s becomes channel j."""

    units: Indices
    strands: Mapping[int, Indices]

    def rows(self, table: Table) -> Indices:
        """The table's addresses in the new order."""
        rows = table.addresses[self.units].reshape(len(self.units), table.width, table.repeat)
        if table.strand in self.strands:
            rows = np.take_along_axis(rows, self.strands[table.strand][:, :, None], axis=1)
        return rows.reshape(table.addresses.shape)


@dataclass(frozen=True)
class Lane:
    """`tables[group]` holds the channels of that group; the others stay for ever."""

    size: int
    tables: Mapping[int, Table]

    def keeps(self, kept: Sequence[Kept]) -> Indices | None:
        """The channels that stay, rising; None: all of them."""
        stays = None
        for group, table in self.tables.items():
            left, columns = kept[group].units, kept[group].width(table) * table.repeat
            units, every = table.addresses.shape
            if left == units and columns == every:
                continue
            stays = np.ones(self.size, dtype=bool) if stays is None else stays
            stays[table.addresses[left:]] = False
            stays[table.addresses[:, columns:]] = False
        return None if stays is None else np.flatnonzero(stays)

    def sorted(self, orders: Sequence[Order]) -> Indices:
        """Which channel comes where."""
        order = np.arange(self.size)
        for group, table in self.tables.items():
            order[table.addresses] = orders[group].rows(table)
        return order


Lanes = Mapping[tuple[str, Side], Lane]


@dataclass(frozen=True)
class Grouping:
    """`frozen` tells of every layer that makes channels, and has none to give, why."""

    groups: tuple[Group, ...]
    lanes: Lanes
    frozen: Mapping[str, str]


def grouping(channels: Channels, barred: Mapping[str, str]) -> Grouping:
    """The width groups of a network; `barred` freezes the groups of further first writers, with reasons."""
    units = _units(channels)
    membership = _membership(channels, units)
    reasons = _label_reasons(channels, membership)
    writers_of: dict[int, list[str]] = {}
    axes_of: dict[int, list[tuple[tuple[str, Side], Axis]]] = {}
    for key, axis in channels.axes.items():
        for member in np.unique(membership[axis.addresses]).tolist():
            axes_of.setdefault(member, []).append((key, axis))
        if axis.side == "out" and channels.layers[axis.layer].mixes:
            writers_of.setdefault(int(membership[axis.start]), []).append(axis.layer)
    groups: list[Group] = []
    tables: dict[tuple[str, Side], dict[int, Table]] = {}
    frozen: dict[str, str] = {}
    for member, writers in writers_of.items():
        reason = reasons.get(member) or barred.get(writers[0])
        if reason is None:
            found = _tables(channels, units, membership, member, channels.axes[writers[0], "out"], axes_of[member])
            if isinstance(found, str):
                reason = found
            else:
                for key, table in found.items():
                    tables.setdefault(key, {})[len(groups)] = table
                first = found[writers[0], "out"].addresses
                layers = tuple(dict.fromkeys(layer for layer, _ in found))
                count, unit = first.shape
                groups.append(Group(tuple(writers), layers, count, unit, _inner(channels, found, unit)))
        if reason is not None:
            frozen |= dict.fromkeys(writers, reason)
    lanes = {key: Lane(channels.axes[key].size, owned) for key, owned in tables.items()}
    return Grouping(tuple(groups), lanes, frozen)


def _units(channels: Channels) -> Indices:
    """The unit of every address: its label, joined with those of its bundle and those it is bound to."""
    edges = [channels.bonds]
    for layer_name, layer in channels.layers.items():
        if layer.bundle is None:
            continue
        heads = []
        for side, size in layer.bundle.items():
            bundles = channels.labels[channels.axes[layer_name, side].addresses].reshape(-1, size)
            edges += [(bundles[:, 0], bundles[:, column]) for column in range(1, size)]
            heads.append(bundles[:, 0])
        edges += [(heads[0], head) for head in heads[1:]]
    count = int(channels.labels.max(initial=-1)) + 1
    return connected(count, edges)[channels.labels]


def _membership(channels: Channels, units: Indices) -> Indices:
    """The group of every address: units written by one layer that mixes channels belong together."""
    edges = []
    for axis in channels.axes.values():
        if axis.side == "out" and channels.layers[axis.layer].mixes:
            written = units[axis.addresses]
            edges.append((np.full_like(written, written[0]), written))
    return connected(int(units.max(initial=-1)) + 1, edges)[units]


def _label_reasons(channels: Channels, membership: Indices) -> dict[int, str]:
    labels, first = np.unique(channels.labels, return_index=True)
    member_of = dict(zip(labels.tolist(), membership[first].tolist(), strict=True))
    reasons: dict[int, str] = {}
    for label, reason in channels.frozen.items():
        reasons.setdefault(member_of[label], reason)
    return reasons


def _tables(
    channels: Channels,
    units: Indices,
    membership: Indices,
    member: int,
    writer: Axis,
    axes: Iterable[tuple[tuple[str, Side], Axis]],
) -> dict[tuple[str, Side], Table] | str:
    """
    For every axis that holds channels of the group, those channels by unit; or why that cannot be.

    Units are in the order of the first writer. Within a unit channels are ordered by their labels, which are numbered
    by first address, so that column j of one axis corresponds to column j of every axis coupled to it.
    """
    written = units[writer.addresses]
    order = list(dict.fromkeys(written.tolist()))
    rank = np.full(int(units.max()) + 1, -1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    tables: dict[tuple[str, Side], Table] = {}
    for key, axis in axes:
        at = np.flatnonzero(membership[axis.addresses] == member)
        ranks = rank[units[axis.addresses][at]]
        counts = np.bincount(ranks[ranks >= 0], minlength=len(order))
        if (ranks < 0).any() or (counts != counts[0]).any() or not counts[0]:
            return f"only some of its channels are coupled to those of {axis.layer}"
        labels = channels.labels[axis.addresses][at]
        addresses = at[np.lexsort((at, labels, ranks))].reshape(len(order), -1)
        first = np.unique(channels.labels[axis.addresses][addresses[0]])
        width = len(first) if addresses.shape[1] % len(first) == 0 else int(addresses.shape[1])
        tables[key] = Table(addresses, int(first[0]), width)
    return _linked(channels, tables)


def _linked(channels: Channels, tables: dict[tuple[str, Side], Table]) -> dict[tuple[str, Side], Table]:
    """Channel by channel, a depthwise convolution makes one strand of another: they are ordered as one."""
    strand_of = {table.strand: table.strand for table in tables.values()}
    for layer, side in tables:
        bundle = channels.layers[layer].bundle
        if side == "in" and bundle == {"in": 1, "out": 1} and (layer, "out") in tables:
            ends = {strand_of[tables[layer, side].strand], strand_of[tables[layer, "out"].strand]}
            strand_of = {strand: min(ends) if root in ends else root for strand, root in strand_of.items()}
    return {key: replace(table, strand=strand_of[table.strand]) for key, table in tables.items()}


def _inner(channels: Channels, tables: Mapping[tuple[str, Side], Table], unit: int) -> tuple[int, ...]:
    """
    The units that are left when every group of the grouped convolutions is made narrower.

    Only where each of these convolutions has one group per unit and nothing else: their groups are then all alike.
    """
    bundled = {layer for layer, _ in tables if max((channels.layers[layer].bundle or {"out": 1}).values()) > 1}
    widths = {table.width for table in tables.values()}
    strands: dict[int, int] = {}
    for (layer, side), table in tables.items():
        if strands.setdefault(table.strand, table.width) != table.width:
            return (unit,)
        bundle = channels.layers[layer].bundle
        if layer in bundled and bundle is not None:
            whole = table.addresses.size == channels.axes[layer, side].size
            if not whole or table.repeat != 1 or bundle[side] != table.width:
                return (unit,)
    convolutions = [layer for layer in bundled if (layer, "in") in tables]
    if not convolutions or unit == 1:
        return (unit,)
    return tuple(inner for inner in range(1, unit + 1) if all(width * inner % unit == 0 for width in widths))
