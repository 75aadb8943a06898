"""
The tests that what is offered must stand, on a copy of the network with random weights: reordering changes nothing,
cutting gives a network that costs what was computed and computes what silencing would.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from search.costs.measure import count
from search.errors import Unsupported
from search.surgery.anatomy import Anatomy
from search.surgery.channels import Channels
from search.surgery.flow import Flow, Indices, break_of
from search.surgery.groups import Kept, Order
from search.surgery.knife import Cuts, Donor

_TOLERANCE = 1e-3
"""Largest deviation of outputs, relative to the largest, at which two forms of one random network are the same."""


@dataclass(frozen=True)
class Checks:
    """What is tried on `model`, which answers `image` with `outputs`; `flow` and `channels` are what is known of it."""

    model: nn.Module
    image: Tensor
    outputs: Sequence[Tensor]
    flow: Flow
    channels: Channels

    def complaint(self, found: Anatomy, at: Collection[int]) -> str:
        """What is wrong with changing the sites `at`, all others left as they are; empty when nothing is."""
        trials: tuple[Callable[[Anatomy, Collection[int]], str], ...] = (
            self._misordered,
            self._miscounted,
            self._misplaced,
        )
        try:
            return next((complaint for trial in trials if (complaint := trial(found, at))), "")
        except Unsupported as error:
            return f"cutting it breaks the network ({error.message[:200]})"
        except Exception as error:  # whatever a network does when it is cut wrongly
            return f"cutting it breaks the network ({type(error).__name__}: {str(error)[:200]})"

    def _misordered(self, found: Anatomy, at: Collection[int]) -> str:
        rng = np.random.default_rng(0)
        orders = [Order(np.arange(group.units), {}) for group in found.knife.grouping.groups]
        for site, group in found.sites.group_of.items():
            if site in at:
                orders[group] = Order(rng.permutation(orders[group].units), {})
        for site, group in found.sites.inner_of.items():
            if site in at:
                units = found.knife.grouping.groups[group].units
                strands = {
                    table.strand: np.stack([rng.permutation(table.width) for _ in range(units)])
                    for lane in found.knife.grouping.lanes.values()
                    for other, table in lane.tables.items()
                    if other == group
                }
                orders[group] = Order(orders[group].units, strands)
        reordered = found.copy(self.model)
        found.knife.reorder(reordered, orders)
        if agree(outputs_of(reordered, self.image), self.outputs, _TOLERANCE):
            return ""
        return "its channels are coupled in a way that is not understood: reordering them changes the answers"

    def _miscounted(self, found: Anatomy, at: Collection[int]) -> str:
        rng = np.random.default_rng(0)
        sites, donor = found.space.sites, Donor.of(self.model)
        for draw in ("narrow", "least", "mixed"):
            choices = {site.name: site.full for site in sites}
            for index in at:
                site = sites[index]
                if draw == "mixed":
                    choices[site.name] = int(rng.choice(site.choices))
                elif draw == "least" or site.kind != "removal":
                    choices[site.name] = site.least
            candidate = found.space.candidate(choices)
            counted = count(found.graft(self.model, candidate, donor), self.image)
            computed = found.polynomials(found.space.array([candidate]))
            wrong = [metric for metric, value in counted.items() if value != int(computed[metric][0])]
            if wrong:
                return f"the {wrong[0]} of the network that is left are not understood"
        return ""

    def _misplaced(self, found: Anatomy, at: Collection[int]) -> str:
        """
        Where channels are laid out anew, sizes may fit and yet a channel come to lie where another is meant: cutting
        must do what silencing the cut channels in the whole network does.
        """
        groups = {index: group for index, group in found.sites.group_of.items() if index in at}
        laid_out = {index: group for index, group in groups.items() if self._is_laid_out(found, group)}
        if not laid_out:
            return ""
        choices = {site.name: site.full for site in found.space.sites}
        silenced = found.copy(self.model)
        for index, group in laid_out.items():
            site = found.space.sites[index]
            choices[site.name] = site.least
            kept = site.least // found.knife.grouping.groups[group].unit
            for (layer, side), lane in found.knife.grouping.lanes.items():
                if group in lane.tables and side == "in" and self.channels.layers[layer].mixes:
                    weight = silenced.get_parameter(f"{layer}.weight")
                    weight.data[:, torch.from_numpy(lane.tables[group].addresses[kept:].ravel())] = 0
        student = found.graft(self.model, found.space.candidate(choices), Donor.of(self.model))
        if agree(outputs_of(student, self.image), outputs_of(silenced, self.image), _TOLERANCE):
            return ""
        return "its channels are laid out in a way that is not understood"

    def _is_laid_out(self, found: Anatomy, group: int) -> bool:
        """Whether channels of the group are bound to others by their place, and no layer reads them all at once."""
        if not self._bound & self._labels_of(found, group):
            return False
        layers = found.knife.grouping.groups[group].layers
        modules = dict(self.model.named_modules())
        return not any(isinstance(modules.get(layer), (nn.LayerNorm, nn.GroupNorm)) for layer in layers)

    @cached_property
    def _bound(self) -> set[int]:
        return {label for bond in self.flow.bonds for side in bond for label in self.channels.labels[side].tolist()}

    def _labels_of(self, found: Anatomy, group: int) -> set[int]:
        return {
            label
            for key, lane in found.knife.grouping.lanes.items()
            if group in lane.tables
            for label in self.channels.labels[self.channels.axes[key].start + lane.tables[group].addresses]
            .ravel()
            .tolist()
        }

    def broken(self, found: Anatomy, kept: Sequence[Kept]) -> tuple[int, str] | None:
        """Where, and at what, the network breaks when that much of every group is kept; see `flow.break_of`."""
        return break_of(found.knife.graft(self.model, Cuts(kept), Donor.of(self.model)), self.image)

    def entering(self, found: Anatomy, number: int) -> set[int]:
        """The groups whose channels are read in the module that takes a step of the uncut network, or inside it."""
        flow = self.flow
        module = flow.steps[min(number, len(flow.steps) - 1)].module
        steps = (step for step in flow.steps if step.module == module or step.module.startswith(f"{module}."))
        read = {value for step in steps for value in step.reads}
        labels = [flow.values[value].labels for value in read]
        return {group for each in labels if each is not None for group in self._groups_of(found, each)}

    def _groups_of(self, found: Anatomy, labels: Tensor) -> set[int]:
        channels: Indices = torch.unique(labels).numpy()
        wanted = self.channels.labels[channels[channels > 0] - 1]
        return {
            group
            for key, lane in found.knife.grouping.lanes.items()
            for group, table in lane.tables.items()
            if np.isin(self.channels.labels[self.channels.axes[key].start + table.addresses[0]], wanted).any()
        }


def outputs_of(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Every floating-point tensor that the network answers; raises `Unsupported` when it does not, or not finitely."""
    try:
        with torch.no_grad():
            answer = model(image.clone())
    except Exception as error:
        shape = "x".join(map(str, image.shape[1:]))
        raise Unsupported(f"the network does not run on a {shape} image ({type(error).__name__}: {error})") from error
    outputs = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not outputs:
        raise Unsupported("the network must answer a batch of images with tensors, such as logits [n, classes]")
    if not all(bool(torch.isfinite(output).all()) for output in outputs):
        raise Unsupported("the network's answers are not finite; train it again or give other weights")
    return outputs


def agree(outputs: Sequence[Tensor], others: Sequence[Tensor], tolerance: float) -> bool:
    """Whether answers differ by no more than that share of the largest number of `others`."""
    return len(outputs) == len(others) and all(
        output.shape == other.shape
        and bool((output - other).abs().max() <= tolerance * other.abs().max().clamp_min(1e-6))
        for output, other in zip(outputs, others, strict=True)
    )
