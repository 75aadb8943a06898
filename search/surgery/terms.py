"""The costs of every student of a network as polynomials in what its sites choose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from search.costs.polynomial import Polynomials, Term, Terms, Variable, product, total
from search.surgery.channels import Channels
from search.surgery.flow import Flow
from search.surgery.groups import Lane, Table
from search.surgery.knife import Knife
from search.surgery.memory import Memory, Moment
from search.surgery.operators import DENSE, SEPARABLE, rank_of
from search.surgery.sites import Sites


class Counting:
    """
    Turns what is known of a network into cost polynomials.

    `flows` are runs at every image size that can be chosen, rising; the last one at the network's own.
    """

    def __init__(
        self, model: nn.Module, flows: Sequence[Flow], channels: Channels, knife: Knife, sites: Sites, memory: Memory
    ) -> None:
        self._model, self._flows, self._channels, self._knife, self._sites = model, flows, channels, knife, sites
        self._memory = memory
        self._choices = [site.choices for site in sites.space.sites]
        self._variables: dict[Variable, int] = {}
        self._site_of = {group: site for site, group in sites.group_of.items()}
        self._inner_of = {group: site for site, group in sites.inner_of.items()}
        self._keep_of: Mapping[str, int] = {block: site for site, block in sites.block_of.items()}
        self._kernel_of = {layer: site for site, layer in sites.kernel_of.items()}
        self._operator_of = {layer: site for site, layer in sites.operator_of.items()}

    def polynomials(self) -> Polynomials:
        macs = total(*self._macs().values())
        params = total(*(self._elements(name, parameter) for name, parameter in self._model.named_parameters()))
        size = total(
            *(
                product(self._elements(name, tensor), (Term(tensor.element_size()),))
                for name, tensor in self._model.state_dict(keep_vars=True).items()
            )
        )
        peaks = _largest(tuple(dict.fromkeys(self._activations())))
        sums = {"macs": macs, "flops": product(macs, (Term(2),)), "params": params, "weight_bytes": size}
        return Polynomials(self._choices, tuple(self._variables), sums, {"activation_bytes": peaks})

    def blocks(self, names: Iterable[str]) -> dict[str, tuple[Terms, Terms]]:
        """
        By block the macs of its layers and the bytes of the activations that its operations write; '' gathers what
        lies in no block. The variables are those of `polynomials`.
        """
        longest = sorted(names, key=len, reverse=True)
        macs: dict[str, list[Terms]] = {}
        written: dict[str, list[Terms]] = {}
        for module, terms in self._macs().items():
            macs.setdefault(_block_of(module, longest), []).append(terms)
        for module, value in self._memory.written():
            terms = product(self._value(value), self._flag(module))
            written.setdefault(_block_of(module, longest), []).append(terms)
        return {block: (total(*macs.get(block, ())), total(*written.get(block, ()))) for block in {**macs, **written}}

    # Multiplications

    def _macs(self) -> dict[str, Terms]:
        """By layer, and by module for what is multiplied outside of layers."""
        found = {layer: self._of_layer(layer) for layer, positions in self._flows[-1].positions.items() if positions}
        for module in self._flows[-1].macs:
            terms = product(self._by_size([flow.macs[module] for flow in self._flows]), self._flag(f"{module}."))
            found[module] = total(found.get(module, ()), terms)
        return found

    def _of_layer(self, name: str) -> Terms:
        """positions x kernel x outputs x inputs of one group, and the same for the operators that can stand for it."""
        outputs, inputs = self._left(name, "out"), self._inputs(name)
        positions = [flow.positions[name] for flow in self._flows]
        kernel: Terms = (Term(1),)
        if name in self._kernel_of or name in self._operator_of:
            area = self._area(name)
            positions = [position // area for position in positions]
            kernel = self._kernel(name)
        weights = product(kernel, outputs, inputs)
        if name in self._operator_of:
            weights = self._operated(name, kernel, outputs, inputs)
        return product(self._by_size(positions), weights, self._flag(name))

    def _operated(self, name: str, kernel: Terms, outputs: Terms, inputs: Terms) -> Terms:
        """The weights of a convolution, or of the two that stand for it, whichever its operator is."""
        return total(
            product(self._chooses(name, DENSE), kernel, outputs, inputs),
            product(self._rank(name), total(product(kernel, inputs), outputs)),
            product(self._chooses(name, SEPARABLE), inputs, total(kernel, outputs)),
        )

    def _inputs(self, name: str) -> Terms:
        """Inputs of one output: those of its group, where there are groups."""
        bundle = self._channels.layers[name].bundle
        if bundle is None:
            return self._left(name, "in")
        group = self._knife.grouped.get(name)
        if group is None or group not in self._inner_of:
            return (Term(bundle["in"]),)
        unit = self._knife.grouping.groups[group].unit
        site = self._inner_of[group]
        return self._variable((site,), [bundle["in"] * inner // unit for inner in self._choices[site]])

    # Elements of tensors

    def _elements(self, name: str, tensor: Tensor) -> Terms:
        layer, _, part = name.rpartition(".")
        if layer in self._operator_of and part == "weight":
            kernel, outputs, inputs = self._kernel(layer), self._left(layer, "out"), self._left(layer, "in")
            return product(self._operated(layer, kernel, outputs, inputs), self._flag(name))
        lanes = dict(self._knife.lanes_of.get(name, ()))
        sizes: list[Terms] = [self._of_lane(lanes.get(dim), size) for dim, size in enumerate(tensor.shape)]
        if part == "weight" and self._bundle(layer):
            sizes[1] = self._inputs(layer)
        if part == "weight" and layer in self._kernel_of:
            sizes[2:] = [self._kernel(layer)]
        return product(*sizes, self._flag(name))

    def _bundle(self, name: str) -> bool:
        layer = self._channels.layers.get(name)
        return layer is not None and layer.bundle is not None and "in" in layer.bundle

    def _left(self, name: str, side: str) -> Terms:
        lanes = self._knife.grouping.lanes
        lane = lanes.get((name, "in")) if side == "in" else lanes.get((name, "out"))
        return self._of_lane(lane, self._channels.layers[name].channels["in" if side == "in" else "out"])

    def _of_lane(self, lane: Lane | None, size: int) -> Terms:
        """How many channels of a lane are left; of no lane, all."""
        if lane is None:
            return (Term(size),)
        fixed = size - sum(table.addresses.size for table in lane.tables.values())
        return total((Term(fixed),), *(self._of_table(group, table) for group, table in lane.tables.items()))

    def _of_table(self, group: int, table: Table) -> Terms:
        return product((Term(table.repeat),), self._of_strand(group, table.width))

    def _of_strand(self, group: int, width: int) -> Terms:
        """Channels left on a strand that has `width` of each unit."""
        found = self._knife.grouping.groups[group]
        site = self._site_of[group]
        units = self._variable((site,), [choice // found.unit for choice in self._choices[site]])
        if group not in self._inner_of:
            return product(units, (Term(width),))
        site = self._inner_of[group]
        return product(units, self._variable((site,), [width * inner // found.unit for inner in self._choices[site]]))

    # Activations

    def _activations(self) -> Iterator[Terms]:
        """The bytes alive at every step; what does not happen when a block is removed costs nothing then."""
        if self._sites.resolution is not None:
            sizes = self._memory.parts(0)[None]
            yield self._by_size([*(sizes[-1] + size for size in sizes[:-1]), 0])
        for moment in self._memory.moments():
            flag = self._flag(moment.module)
            alive = {value: product(self._as_it_stands(value, moment), flag) for value in moment.alive}
            if moment.module not in self._operator_of or moment.output is None:
                yield total(*alive.values())
                continue
            written = alive.pop(moment.output)
            middle = product(self._middle(moment.module, moment.output), flag)
            yield total(*alive.values(), product(self._chooses(moment.module, DENSE), written), middle)
            kept = (terms for value, terms in alive.items() if value not in moment.last)
            yield total(*kept, written, middle)

    def _as_it_stands(self, value: int, moment: Moment) -> Terms:
        """A value's bytes at a moment; none when the blocks that made it are removed and what they got is there."""
        blocks = self._memory.blocks_to_stand(value, moment)
        stands = self._any_of([self._keep_of[block] for block in blocks]) if blocks else (Term(1),)
        return product(self._value(value), stands)

    def _middle(self, layer: str, output: int) -> Terms:
        """What lies between the two convolutions that stand for one."""
        channels = self._channels.layers[layer].channels["out"]
        positions = self._by_size([run.bytes(output) // channels for run in self._memory.runs])
        between = total(self._rank(layer), product(self._chooses(layer, SEPARABLE), self._left(layer, "in")))
        return product(positions, between)

    def _value(self, value: int) -> Terms:
        """The bytes of a value."""
        found: list[Terms] = []
        for strand, sizes in self._memory.parts(value).items():
            if strand is None:
                found.append(self._by_size(sizes))
            else:
                group, width = strand
                whole = self._knife.grouping.groups[group].units * width
                found.append(product(self._by_size([size // whole for size in sizes]), self._of_strand(group, width)))
        return total(*found)

    # Variables

    def _variable(self, sites: tuple[int, ...], values: Sequence[int]) -> Terms:
        """A variable, less what all its values have in common."""
        common = math.gcd(*values)
        if not common:
            return ()
        if len(set(values)) == 1:
            return (Term(values[0]),)
        variable = Variable(sites, tuple(value // common for value in values))
        return (Term(common, (self._variables.setdefault(variable, len(self._variables)),)),)

    def _by_size(self, values: Sequence[int]) -> Terms:
        """What follows from the image's size, rising."""
        if self._sites.resolution is None:
            return (Term(values[-1]),)
        return self._variable((self._sites.resolution,), values)

    def _flag(self, name: str) -> Terms:
        """1 while the removable block stands that holds a layer, parameter or module; 1 when none does."""
        keeps = (site for block, site in self._keep_of.items() if name.startswith(f"{block}.") or name == block)
        return product(*(self._variable((site,), (0, 1)) for site in keeps))

    def _any_of(self, sites: Sequence[int]) -> Terms:
        """1 while any of up to two blocks stands."""
        if len(sites) == 1:
            return self._variable((sites[0],), (0, 1))
        return self._variable((sites[0], sites[1]), (0, 1, 1, 1)) if len(sites) == 2 else (Term(1),)

    def _area(self, name: str) -> int:
        size: tuple[int, ...] = self._model.get_submodule(name).kernel_size  # type: ignore[assignment]
        return math.prod(size)

    def _kernel(self, name: str) -> Terms:
        if name not in self._kernel_of:
            return (Term(self._area(name)),)
        site = self._kernel_of[name]
        return self._variable((site,), [size * size for size in self._choices[site]])

    def _chooses(self, name: str, choice: int) -> Terms:
        site = self._operator_of[name]
        return self._variable((site,), [int(other == choice) for other in self._choices[site]])

    def _rank(self, name: str) -> Terms:
        site = self._operator_of[name]
        lane = self._knife.grouping.lanes.get((name, "out"))
        if lane is None:
            channels = self._channels.layers[name].channels["out"]
            return self._variable((site,), [rank_of(choice, channels) for choice in self._choices[site]])
        ((group, table),) = lane.tables.items()
        width, unit = self._site_of[group], self._knife.grouping.groups[group].unit
        written = [left // unit * table.width for left in self._choices[width]]
        ranks = [rank_of(choice, channels) for channels in written for choice in self._choices[site]]
        return self._variable((width, site), ranks)


def is_plain(lane: Lane | None, inner: Iterable[int]) -> bool:
    """Whether the channels of a lane are those of one group, whose units are whole."""
    if lane is None:
        return True
    if len(lane.tables) != 1:
        return False
    ((group, table),) = lane.tables.items()
    return table.addresses.size == lane.size and table.repeat == 1 and group not in inner


def _block_of(module: str, longest: Sequence[str]) -> str:
    return next((name for name in longest if module == name or module.startswith(f"{name}.")), "")


def _largest(sums: Sequence[Terms]) -> tuple[Terms, ...]:
    """Without the sums that are never the largest, because another has no smaller coefficient anywhere."""
    products = sorted({term.variables for terms in sums for term in terms})
    column = {variables: at for at, variables in enumerate(products)}
    rows = np.zeros((len(sums), len(products)), dtype=np.int64)
    for row, terms in zip(rows, sums, strict=True):
        for term in terms:
            row[column[term.variables]] = term.coefficient
    order = np.argsort(-rows.sum(1), kind="stable")
    kept: list[int] = []
    for at in order:
        if not kept or not (rows[kept] >= rows[at]).all(1).any():
            kept.append(int(at))
    return tuple(sums[at] for at in sorted(kept))
