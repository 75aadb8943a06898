"""
Width groups: channels that are kept or cut as one number.

A *unit* is what can be cut on its own: a channel, or the channels of one group of a grouped convolution together with
all they are coupled to. A *group* is all units of a layer that mixes channels, and of every layer coupled to it. A
*lane* says, for one side of one layer, which of its channels belong to which unit of which group; concatenation and
flattening show in the lane and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.surgery.channels import Axis, Channels, Indices, connected
from search.surgery.layers import Side


@dataclass(frozen=True, slots=True)
class Group:
    """
    `writers` are the layers that produce its channels, in order of execution; `layers` all that take part. `unit` is
    the number of channels of the first writer that stand and fall together.
    """

    writers: tuple[str, ...]
    layers: tuple[str, ...]
    units: int
    unit: int

    @property
    def width(self) -> int:
        return self.units * self.unit


@dataclass(frozen=True)
class Lane:
    """`tables[group] [units, channels per unit]` holds the channels of that group; the others stay for ever."""

    size: int
    tables: Mapping[int, Indices]

    def keeps(self, kept: Sequence[int]) -> Indices | None:
        """The channels that stay, rising, when the first `kept[group]` units of every group do; None: all stay."""
        if all(kept[group] == len(table) for group, table in self.tables.items()):
            return None
        stays = np.ones(self.size, dtype=bool)
        for group, table in self.tables.items():
            stays[table[kept[group] :]] = False
        return np.flatnonzero(stays)

    def sorted(self, orders: Sequence[Indices]) -> Indices:
        """Which channel comes where, when unit `orders[group][i]` becomes unit i."""
        order = np.arange(self.size)
        for group, table in self.tables.items():
            order[table] = table[orders[group]]
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
    reasons = _label_reasons(channels, units, membership)
    groups: list[Group] = []
    tables: dict[tuple[str, Side], dict[int, Indices]] = {}
    frozen: dict[str, str] = {}
    for member in range(int(membership.max(initial=-1)) + 1):
        writers = tuple(
            axis.layer
            for axis in channels.axes.values()
            if axis.side == "out" and channels.layers[axis.layer].mixes and membership[axis.start] == member
        )
        if not writers:
            continue
        reason = reasons.get(member) or barred.get(writers[0])
        if reason is None:
            found = _tables(channels, units, membership, member, channels.axes[writers[0], "out"])
            if isinstance(found, str):
                reason = found
            else:
                for key, table in found.items():
                    tables.setdefault(key, {})[len(groups)] = table
                first = found[writers[0], "out"]
                layers = tuple(dict.fromkeys(layer for layer, _ in found))
                groups.append(Group(writers, layers, *first.shape))
        if reason is not None:
            frozen |= dict.fromkeys(writers, reason)
    lanes = {key: Lane(channels.axes[key].size, owned) for key, owned in tables.items()}
    return Grouping(tuple(groups), lanes, frozen)


def _units(channels: Channels) -> Indices:
    """The unit of every address: its label, joined with those of its bundle."""
    edges = []
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


def _label_reasons(channels: Channels, units: Indices, membership: Indices) -> dict[int, str]:
    labels, first = np.unique(channels.labels, return_index=True)
    member_of = dict(zip(labels.tolist(), membership[first].tolist(), strict=True))
    reasons: dict[int, str] = {}
    for label, reason in channels.frozen.items():
        reasons.setdefault(member_of[label], reason)
    return reasons


def _tables(
    channels: Channels, units: Indices, membership: Indices, member: int, writer: Axis
) -> dict[tuple[str, Side], Indices] | str:
    """
    For every axis that holds channels of the group, those channels `[units, channels per unit]`; or why that cannot be.

    Units are in the order of the first writer. Within a unit channels are ordered by their labels, which are numbered
    by first address, so that column j of one axis corresponds to column j of every axis coupled to it.
    """
    written = units[writer.addresses]
    order = list(dict.fromkeys(written.tolist()))
    rank = np.full(int(units.max()) + 1, -1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    tables: dict[tuple[str, Side], Indices] = {}
    for key, axis in channels.axes.items():
        at = np.flatnonzero(membership[axis.addresses] == member)
        if not len(at):
            continue
        ranks = rank[units[axis.addresses][at]]
        counts = np.bincount(ranks[ranks >= 0], minlength=len(order))
        if (ranks < 0).any() or (counts != counts[0]).any() or not counts[0]:
            return f"only some of its channels are coupled to those of {axis.layer}"
        labels = channels.labels[axis.addresses][at]
        tables[key] = at[np.lexsort((at, labels, ranks))].reshape(len(order), -1)
    return tables
