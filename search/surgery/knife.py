"""Cutting and reordering channels: a student is a prefix slice of the sorted teacher."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.surgery.flow import Indices
from search.surgery.groups import Grouping, Kept, Lane, Order
from search.surgery.layers import Layer, Side, resize
from search.surgery.operators import SEPARABLE, FactorKey, Factors, Resized, crop, cropped, pair, replacement


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
class Donor:
    """
    What the weights of students are cut from: tensors with the names and shapes of the surveyed network's own, its
    channels in the same order, and what stands for its convolutions where another operator is chosen.
    """

    tensors: Mapping[str, Tensor]
    factors: Factors

    @classmethod
    def of(cls, model: nn.Module, known: Mapping[FactorKey, tuple[Tensor, Tensor]] = MappingProxyType({})) -> Donor:
        """A network's own tensors, and its own factors but for those that are `known`."""
        return cls(dict(tensors_of(model)), Factors(model, known))


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

    def orders(
        self, model: nn.Module, importance: Mapping[int, NDArray[np.float64]] = MappingProxyType({})
    ) -> list[Order]:
        """
        For every group its units, and where these can be made narrower their channels, by falling importance.

        The importance of a unit is the sum of squared weights that produce or read it, each tensor's divided by its
        mean over the units, so that every layer has the same say; or what is given for a group, `[units]`.
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
        for group, (score, inside) in enumerate(zip(units, strands, strict=True)):
            score = importance.get(group, score)
            order = np.argsort(-score, kind="stable")
            within = {strand: np.argsort(-each[order], axis=1, kind="stable") for strand, each in inside.items()}
            orders.append(Order(order, within))
        return orders

    def reorder(self, model: nn.Module, orders: Sequence[Order]) -> None:
        """Permutes channels in place. The function stays the same."""
        with torch.no_grad():
            for name, tensor in tensors_of(model):
                for dim, lane in self.lanes_of.get(name, ()):
                    order = torch.from_numpy(lane.sorted(orders))
                    tensor.data = tensor.index_select(dim, order)
            for layer_name, group in self.grouped.items():
                strand = self.grouping.lanes[layer_name, "in"].tables[group].strand
                within = orders[group].strands.get(strand)
                if within is not None:
                    weight = model.get_parameter(f"{layer_name}.weight")
                    weight.data = _within_groups(weight, torch.from_numpy(within))

    def tensors(self, model: nn.Module, cuts: Cuts, donor: Donor) -> dict[str, Tensor]:
        """
        A student's tensors by their names in it: slices of the donor's, through which gradients flow to them. Of a
        donor that lacks tensors of `model`, those there are.
        """
        stays, gone, found = self._stays(cuts), _gone(cuts), {}
        for name, tensor in donor.tensors.items():
            if not (gone and name.startswith(gone)):
                found[name] = self._slice(name, tensor, cuts, stays)
        for name in cuts.operators:
            first, second = self._pair(model, name, cuts, donor.factors, stays)
            found |= {f"{name}.spatial.weight": first, f"{name}.channels.weight": second[:, :, None, None]}
            if f"{name}.bias" in donor.tensors:
                found[f"{name}.channels.bias"] = self._slice(f"{name}.bias", donor.tensors[f"{name}.bias"], cuts, stays)
        if cuts.resolution is not None:
            found = {f"network.{name}": tensor for name, tensor in found.items()}
        return found

    def graft(self, model: nn.Module, cuts: Cuts, donor: Donor) -> nn.Module:
        """
        A new network with the structure of `model`, cut, and with slices of the `donor`'s tensors for its own, copied.

        Removed blocks are replaced by identities. `model` and the donor are untouched.
        """
        stays = self._stays(cuts)
        memo: dict[int, object] = {id(model.get_submodule(name)): nn.Identity() for name in cuts.removed}
        for name in cuts.operators:
            conv, (first, second) = _conv(model, name), self._pair(model, name, cuts, donor.factors, stays)
            bias = (
                None if conv.bias is None else self._slice(f"{name}.bias", donor.tensors[f"{name}.bias"], cuts, stays)
            )
            memo[id(conv)] = replacement(conv, cuts.operators[name], first, second, bias, cuts.kernels.get(name))
        gone = _gone(cuts)
        for name, tensor in tensors_of(model):
            if gone and name.startswith(gone):
                continue
            sliced = self._slice(name, donor.tensors[name].detach(), cuts, stays)
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

    def _stays(self, cuts: Cuts) -> dict[int, Indices | None]:
        """By identity of a lane: the channels left in it."""
        lanes = {id(lane): lane for lane in self.grouping.lanes.values()}
        return {key: lane.keeps(cuts.kept) for key, lane in lanes.items()}

    def _slice(self, name: str, tensor: Tensor, cuts: Cuts, stays: Mapping[int, Indices | None]) -> Tensor:
        for dim, lane in self.lanes_of.get(name, ()):
            indices = stays[id(lane)]
            if indices is not None:
                tensor = _sliced(tensor, dim, indices)
        layer_name, _, part = name.rpartition(".")
        if part != "weight":
            return tensor
        tensor = cropped(tensor, cuts.kernels.get(layer_name))
        return tensor[:, : self._inputs(layer_name, cuts, tensor.shape[1])] if tensor.dim() > 1 else tensor

    def _pair(
        self, model: nn.Module, name: str, cuts: Cuts, factors: Factors, stays: Mapping[int, Indices | None]
    ) -> tuple[Tensor, Tensor]:
        """The weights of the two convolutions that stand for one."""
        choice, size = cuts.operators[name], cuts.kernels.get(name)
        lanes = (self.grouping.lanes.get((name, "in")), self.grouping.lanes.get((name, "out")))
        inputs, outputs = (None if lane is None else stays[id(lane)] for lane in lanes)
        return pair(choice, factors.of(name, size, separable=choice == SEPARABLE), inputs, outputs)


def _conv(model: nn.Module, name: str) -> nn.Conv2d:
    conv = model.get_submodule(name)
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"{name} is no convolution")
    return conv


def _gone(cuts: Cuts) -> tuple[str, ...]:
    """What the names of tensors begin with that a student has not, or not as they are."""
    return tuple(f"{name}." for name in (*cuts.removed, *cuts.operators))


def _within_groups(weight: Tensor, order: Tensor) -> Tensor:
    """Of a grouped convolution's weight `[out, in per group, ...]`, the inputs of group g in the order `order[g]`."""
    groups, inputs = order.shape
    split = weight.reshape(groups, -1, *weight.shape[1:])
    index = order.reshape(groups, 1, inputs, *(1,) * (weight.dim() - 2)).expand(
        -1, split.shape[1], -1, *weight.shape[2:]
    )
    return split.gather(2, index).reshape(weight.shape)


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _sliced(tensor: Tensor, dim: int, indices: Indices) -> Tensor:
    if indices[-1] == len(indices) - 1:
        return tensor.narrow(dim, 0, len(indices))
    return tensor.index_select(dim, torch.from_numpy(indices).to(tensor.device))
