"""Where the channels of a width site lie in the tensors of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from search.surgery.flow import Indices
from search.surgery.knife import Knife
from search.surgery.layers import Side
from search.surgery.sites import Sites


@dataclass(frozen=True)
class Place:
    """
    A tensor of a layer that has entries for the channels of a site: unit u has those at `addresses[u]` of dimension
    `dim`. On the `out` side they make the channel, on the `in` side they read it.
    """

    layer: str
    tensor: str
    """Its full name."""
    dim: int
    side: Side
    addresses: Indices
    """`[units, columns]`."""


@dataclass(frozen=True)
class Width:
    """A width site: so many units of so many channels, each of which can be cut alone, and all their places."""

    units: int
    unit: int
    places: tuple[Place, ...]


def widths_of(knife: Knife, sites: Sites) -> Mapping[int, Width]:
    """By the index of each width site."""
    found: dict[int, list[Place]] = {site: [] for site in sites.group_of}
    for layer_name, layer in knife.layers.items():
        for cut in layer.cuts:
            lane = knife.grouping.lanes.get((layer_name, cut.side))
            for site, group in sites.group_of.items():
                if lane is not None and group in lane.tables:
                    name = f"{layer_name}.{cut.tensor}".rstrip(".")
                    found[site].append(Place(layer_name, name, cut.dim, cut.side, lane.tables[group].addresses))
    groups = {site: knife.grouping.groups[group] for site, group in sites.group_of.items()}
    return {site: Width(groups[site].units, groups[site].unit, tuple(places)) for site, places in found.items()}
