"""The costs of every student of a network as polynomials in its sites."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from search.costs.polynomial import Polynomials, Term, Terms, Variable, product, total
from search.surgery.channels import Channels
from search.surgery.groups import Lane
from search.surgery.knife import Knife
from search.surgery.sites import Sites


def polynomials(model: nn.Module, channels: Channels, knife: Knife, sites: Sites, macs: int) -> Polynomials:
    """
    macs and params of students of `model`, whose own count is `macs`.

    The choices are in the order of the sites. Multiplications of `model` that no
    layer accounts for, in functions called directly, are taken for constant; the survey checks that they are.
    """
    return _Terms(model, channels, knife, sites).polynomials(macs)


class _Terms:
    def __init__(self, model: nn.Module, channels: Channels, knife: Knife, sites: Sites) -> None:
        self._model, self._channels, self._knife = model, channels, knife
        self._sites = sites.space.sites
        self._site_of = {group: site for site, group in sites.group_of.items()}
        self._units = {site: knife.grouping.groups[group].unit for site, group in sites.group_of.items()}
        self._keep_of: Mapping[str, int] = {block: site for site, block in sites.block_of.items()}

    def polynomials(self, macs: int) -> Polynomials:
        counted = total(*(self._macs(layer) for layer, positions in self._channels.positions.items() if positions))
        layers = sum(self._full_macs(layer) for layer in self._channels.positions)
        macs_terms = total(counted, (Term(macs - layers),))
        params = total(*(self._params(name, parameter) for name, parameter in self._model.named_parameters()))
        variables = [
            Variable((at,), tuple(choice // self._units.get(at, 1) for choice in site.choices))
            for at, site in enumerate(self._sites)
        ]
        return Polynomials([site.choices for site in self._sites], variables, {"macs": macs_terms, "params": params})

    def _macs(self, layer_name: str) -> Terms:
        """positions x outputs x inputs of one bundle, which cutting whole bundles leaves as they are."""
        layer = self._channels.layers[layer_name]
        positions = (Term(self._channels.positions[layer_name]),)
        inputs = (Term(layer.bundle["in"]),) if layer.bundle is not None else self._channels_left(layer_name, "in")
        return product(positions, self._channels_left(layer_name, "out"), inputs, self._flag(layer_name))

    def _full_macs(self, layer_name: str) -> int:
        layer = self._channels.layers[layer_name]
        positions = self._channels.positions[layer_name]
        if not positions:
            return 0
        inputs = layer.bundle["in"] if layer.bundle is not None else layer.channels["in"]
        return positions * layer.channels["out"] * inputs

    def _params(self, name: str, parameter: nn.Parameter) -> Terms:
        lanes = dict(self._knife.lanes_of.get(name, ()))
        sizes = (self._left(lanes.get(dim), size) for dim, size in enumerate(parameter.shape))
        return product(*sizes, self._flag(name))

    def _channels_left(self, layer_name: str, side: str) -> Terms:
        lanes = self._knife.grouping.lanes
        lane = lanes.get((layer_name, "in")) if side == "in" else lanes.get((layer_name, "out"))
        size = self._channels.layers[layer_name].channels["in" if side == "in" else "out"]
        return self._left(lane, size)

    def _left(self, lane: Lane | None, size: int) -> Terms:
        """How many channels of a lane are left; of no lane, all."""
        if lane is None:
            return (Term(size),)
        moving = [(self._site_of[group], table) for group, table in lane.tables.items()]
        fixed = size - sum(table.size for _, table in moving)
        return total((Term(fixed),), (Term(table.shape[1], (site,)) for site, table in moving))

    def _flag(self, name: str) -> Terms:
        """The variable of the removable block that holds a layer or parameter; 1 when none does."""
        keeps = (site for block, site in self._keep_of.items() if name.startswith(f"{block}."))
        return tuple(Term(1, (site,)) for site in keeps) or (Term(1),)
