"""Cutting and reordering channels: a student is a prefix slice of the sorted teacher."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.surgery.flow import Indices
from search.surgery.groups import Grouping, Kept, Lane, Order
from search.surgery.layers import Layer, Side, resize
from search.surgery.operators import Factors, Resized, crop, cropped, replacement


@dataclass(frozen=True)
class Cuts:
    """
    What is done to a network: how much of every group is kept, which blocks are removed, which kernels are cropped to
    which size, which convolutions get which operator (see `operators`), and the size of the images it looks at.
    """

    kept: Sequence[Kept]
    removed: Collection[str] = ()
    kernels: Mapping[str, int] = field(default_factory=dict)
    operators: Mapping[str, int] = field(default_factory=dict)
    resolution: int | None = None


@dataclass(frozen=True)
class Knife:
    """
    What the width groups of a network mean for its tensors. Everything is worked out before the first cut.

    `narrowed` are the groups whose units may be made narrower, and so are sorted within.
    """

    layers: Mapping[str, Layer]
    grouping: Grouping
    narrowed: Collection[int] = ()

    @cached_property
    def whole(self) -> Sequence[Kept]:
        return [Kept(group.units, group.unit, group.unit) for group in self.grouping.groups]

    @cached_property
    def lanes_of(self) -> Mapping[str, Sequence[tuple[int, Lane]]]:
        """By tensor name: dimensions and their lanes."""
        found: dict[str, list[tuple[int, Lane]]] = {}
        for layer_name, layer in self.layers.items():
            for cut in layer.cuts:
                lane = self.grouping.lanes.get((layer_name, cut.side))
                if lane is not None:
                    found.setdefault(f"{layer_name}.{cut.tensor}".rstrip("."), []).append((cut.dim, lane))
        return found

    @cached_property
    def grouped(self) -> Mapping[str, int]:
        """Grouped convolutions whose groups can be made narrower, by name, and the width group they belong to."""
        found = {}
        for (layer_name, side), lane in self.grouping.lanes.items():
            bundle = self.layers[layer_name].bundle
            for group in lane.tables:
                if side == "in" and bundle and bundle["in"] > 1 and group in self.narrowed:
                    found[layer_name] = group
        return found

    @cached_property
    def _resized(self) -> Mapping[str, Mapping[Side, Lane]]:
        """By name of a layer: the lanes of its sides. Loose parameters have no number of channels to be told."""
        found: dict[str, dict[Side, Lane]] = {}
        for (layer_name, side), lane in self.grouping.lanes.items():
            if any(cut.tensor for cut in self.layers[layer_name].cuts):
                found.setdefault(layer_name, {})[side] = lane
        return found

    def orders(self, model: nn.Module) -> list[Order]:
        """
        For every group its units, and where these can be made narrower their channels, by falling importance.

        The importance of a unit is the sum of squared weights that produce or read it, each tensor's divided by its
        mean over the units, so that every layer has the same say.
        """
        groups = self.grouping.groups
        units = [np.zeros(group.units) for group in groups]
        strands: list[dict[int, NDArray[np.float64]]] = [{} for _ in groups]
        for layer_name, layer in self.layers.items():
            if layer.weighs is None:
                continue
            weight = model.get_parameter(f"{layer_name}.{layer.weighs}").detach()
            for dim, lane in self.lanes_of.get(f"{layer_name}.{layer.weighs}", ()):
                others = [other for other in range(weight.dim()) if other != dim]
                per_channel = weight.square().sum(others, dtype=torch.float64).numpy()
                for group, table in lane.tables.items():
                    shape = (groups[group].units, table.width, table.repeat)
                    each = per_channel[table.addresses].reshape(shape).sum(2)
                    each = each / max(float(each.mean()), 1e-30)
                    units[group] += each.mean(1)
                    if group in self.narrowed:
                        known = strands[group].setdefault(table.strand, np.zeros(each.shape))
                        known += each
        orders = []
        for score, inside in zip(units, strands, strict=True):
            order = np.argsort(-score, kind="stable")
            within = {strand: np.argsort(-each[order], axis=1, kind="stable") for strand, each in inside.items()}
            orders.append(Order(order, within))
        return orders

    def reorder(self, model: nn.Module, orders: Sequence[Order]) -> None:
        """Permutes channels in place. The function stays the same."""
        with torch.no_grad():
            for name, tensor in _tensors(model):
                for dim, lane in self.lanes_of.get(name, ()):
                    order = torch.from_numpy(lane.sorted(orders))
                    tensor.data = tensor.index_select(dim, order)
            for layer_name, group in self.grouped.items():
                strand = self.grouping.lanes[layer_name, "in"].tables[group].strand
                within = orders[group].strands.get(strand)
                if within is not None:
                    weight = model.get_parameter(f"{layer_name}.weight")
                    weight.data = _within_groups(weight, torch.from_numpy(within))

    def graft(self, model: nn.Module, cuts: Cuts, factors: Factors) -> nn.Module:
        """
        A new network, cut from `model`, whose `factors` are those of other operators' weights.

        Removed blocks are replaced by identities. Its tensors are copies of slices of `model`'s; `model` is untouched.
        """
        stays: dict[int, Indices | None] = {}
        for lane in {id(lane): lane for lane in self.grouping.lanes.values()}.values():
            stays[id(lane)] = lane.keeps(cuts.kept)
        memo: dict[int, object] = {id(model.get_submodule(name)): nn.Identity() for name in cuts.removed}
        for name in cuts.operators:
            memo[id(model.get_submodule(name))] = self._replaced(model, name, cuts, factors, stays)
        gone = tuple(f"{name}." for name in (*cuts.removed, *cuts.operators))
        for name, tensor in _tensors(model):
            if gone and name.startswith(gone):
                continue
            sliced = tensor.detach()
            for dim, lane in self.lanes_of.get(name, ()):
                indices = stays[id(lane)]
                if indices is not None:
                    sliced = _sliced(sliced, dim, indices)
            layer_name, _, part = name.rpartition(".")
            if part == "weight":
                sliced = cropped(sliced, cuts.kernels.get(layer_name))
                sliced = sliced[:, : self._inputs(layer_name, cuts, sliced.shape[1])] if sliced.dim() > 1 else sliced
            owned = sliced.clone(memory_format=torch.contiguous_format)
            memo[id(tensor)] = (
                nn.Parameter(owned, requires_grad=owned.is_floating_point())
                if isinstance(tensor, nn.Parameter)
                else owned
            )
        student = copy.deepcopy(model, memo)
        modules = dict(student.named_modules())
        told = {name for name in (*self._resized, *cuts.kernels) if not f"{name}.".startswith(gone or " ")}
        for layer_name in told:
            module = modules[layer_name]
            if layer_name in cuts.kernels and isinstance(module, nn.Conv2d):
                crop(module, cuts.kernels[layer_name])
            self._tell(layer_name, module, cuts, stays)
        return student if cuts.resolution is None else Resized(student, cuts.resolution).train(student.training)

    def _tell(self, layer_name: str, module: nn.Module, cuts: Cuts, stays: Mapping[int, Indices | None]) -> None:
        layer = self.layers[layer_name]
        channels, groups = dict(layer.channels), 1
        if layer.bundle is not None:
            groups = channels["out"] // layer.bundle["out"]
        for side, lane in self._resized.get(layer_name, {}).items():
            indices = stays[id(lane)]
            channels[side] = lane.size if indices is None else len(indices)
            if layer.bundle is not None and indices is not None:
                groups = len(np.unique(indices // layer.bundle[side]))
        resize(module, channels, groups)

    def _inputs(self, layer_name: str, cuts: Cuts, inputs: int) -> int:
        """Inputs left of one group of a grouped convolution."""
        if layer_name not in self.grouped:
            return inputs
        kept = cuts.kept[self.grouped[layer_name]]
        return inputs * kept.inner // kept.unit

    def _replaced(
        self, model: nn.Module, name: str, cuts: Cuts, factors: Factors, stays: Mapping[int, Indices | None]
    ) -> nn.Module:
        conv = model.get_submodule(name)
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"{name} is no convolution")
        choice, size = cuts.operators[name], cuts.kernels.get(name)
        lanes = (self.grouping.lanes.get((name, "in")), self.grouping.lanes.get((name, "out")))
        inputs, outputs = (None if lane is None else stays[id(lane)] for lane in lanes)
        return replacement(conv, choice, factors.of(name, size, separable=choice == 0), inputs, outputs, size)


def _within_groups(weight: Tensor, order: Tensor) -> Tensor:
    """Of a grouped convolution's weight `[out, in per group, ...]`, the inputs of group g in the order `order[g]`."""
    groups, inputs = order.shape
    split = weight.reshape(groups, -1, *weight.shape[1:])
    index = order.reshape(groups, 1, inputs, *(1,) * (weight.dim() - 2)).expand(
        -1, split.shape[1], -1, *weight.shape[2:]
    )
    return split.gather(2, index).reshape(weight.shape)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _sliced(tensor: Tensor, dim: int, indices: Indices) -> Tensor:
    if indices[-1] == len(indices) - 1:
        return tensor.narrow(dim, 0, len(indices))
    return tensor.index_select(dim, torch.from_numpy(indices))
