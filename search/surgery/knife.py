"""Cutting and reordering channels: a student is a prefix slice of the sorted teacher."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from search.surgery.channels import Indices
from search.surgery.groups import Grouping, Lane
from search.surgery.layers import Layer, Side, resize


@dataclass(frozen=True)
class Knife:
    """What the width groups of a network mean for its tensors. Everything is worked out before the first cut."""

    layers: Mapping[str, Layer]
    grouping: Grouping

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
    def _resized(self) -> Mapping[str, Mapping[Side, Lane]]:
        """By name of a layer: the lanes of its sides. Loose parameters have no number of channels to be told."""
        found: dict[str, dict[Side, Lane]] = {}
        for (layer_name, side), lane in self.grouping.lanes.items():
            if any(cut.tensor for cut in self.layers[layer_name].cuts):
                found.setdefault(layer_name, {})[side] = lane
        return found

    def orders(self, model: nn.Module) -> list[Indices]:
        """
        For every group its units by falling importance.

        The importance of a unit is the sum of squared weights that produce or read it, each tensor's divided by its
        mean over the units, so that every layer has the same say.
        """
        scores = [np.zeros(group.units) for group in self.grouping.groups]
        for layer_name, layer in self.layers.items():
            if layer.weighs is None:
                continue
            weight = model.get_parameter(f"{layer_name}.{layer.weighs}").detach()
            for dim, lane in self.lanes_of.get(f"{layer_name}.{layer.weighs}", ()):
                others = [other for other in range(weight.dim()) if other != dim]
                per_channel = weight.square().sum(others, dtype=torch.float64).numpy()
                for group, table in lane.tables.items():
                    per_unit = per_channel[table].sum(1)
                    scores[group] += per_unit / max(float(per_unit.mean()), 1e-30)
        return [np.argsort(-score, kind="stable") for score in scores]

    def reorder(self, model: nn.Module, orders: Sequence[Indices]) -> None:
        """Permutes channels in place: unit `orders[group][i]` becomes unit i. The function stays the same."""
        with torch.no_grad():
            for name, tensor in _tensors(model):
                for dim, lane in self.lanes_of.get(name, ()):
                    order = torch.from_numpy(lane.sorted(orders))
                    tensor.data = tensor.index_select(dim, order)

    def graft(self, model: nn.Module, kept: Sequence[int], removed: Collection[str]) -> nn.Module:
        """
        A new network with the first `kept[group]` units of every group and `removed` blocks replaced by identities.

        Its tensors are copies of slices of `model`'s; `model` is untouched.
        """
        memo: dict[int, object] = {id(model.get_submodule(name)): nn.Identity() for name in removed}
        inside = tuple(f"{name}." for name in removed)
        stays: dict[int, Indices | None] = {}
        for lane in {id(lane): lane for lane in self.grouping.lanes.values()}.values():
            stays[id(lane)] = lane.keeps(kept)
        for name, tensor in _tensors(model):
            if name.startswith(inside) if inside else False:
                continue
            sliced = tensor.detach()
            for dim, lane in self.lanes_of.get(name, ()):
                indices = stays[id(lane)]
                if indices is not None:
                    sliced = _sliced(sliced, dim, indices)
            owned = sliced.clone(memory_format=torch.contiguous_format)
            memo[id(tensor)] = (
                nn.Parameter(owned, requires_grad=owned.is_floating_point())
                if isinstance(tensor, nn.Parameter)
                else owned
            )
        student = copy.deepcopy(model, memo)
        modules = dict(student.named_modules())
        for layer_name, lanes in self._resized.items():
            if (inside and layer_name.startswith(inside)) or layer_name in removed:
                continue
            channels = dict(self.layers[layer_name].channels)
            for side, lane in lanes.items():
                indices = stays[id(lane)]
                channels[side] = lane.size if indices is None else len(indices)
            resize(modules[layer_name], channels)
        return student


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _sliced(tensor: Tensor, dim: int, indices: Indices) -> Tensor:
    if indices[-1] == len(indices) - 1:
        return tensor.narrow(dim, 0, len(indices))
    return tensor.index_select(dim, torch.from_numpy(indices))
