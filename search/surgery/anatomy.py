"""What is known of a surveyed network: the space of its students, their exact costs, and the students themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from search.costs.polynomial import Polynomials, Terms
from search.planner import Planner
from search.space import Candidate, Space
from search.surgery.channels import Channels
from search.surgery.groups import Kept
from search.surgery.knife import Cuts, Donor, Knife
from search.surgery.operators import DENSE, SEPARABLE, FactorKey
from search.surgery.places import Width, widths_of
from search.surgery.sites import Sites

Status = Literal["searchable", "removable", "frozen", "unsupported"]


@dataclass(frozen=True, slots=True)
class Finding:
    """
    What can be done with a module: `site` names where it is chosen; `reason` says why it stays as it is: because it
    must (`frozen`) or because it is not understood (`unsupported`). `where` is the code that uses it, as
    `package.module:line`.
    """

    module: str
    status: Status
    site: str | None = None
    reason: str = ""
    where: str = ""


@dataclass(frozen=True)
class Anatomy:
    """What is known of a network's structure. It follows from the architecture alone, not from any weight."""

    channels: Channels
    knife: Knife
    sites: Sites
    polynomials: Polynomials
    blocks: Mapping[str, tuple[Terms, Terms]]
    cost: Mapping[str, int]
    report: tuple[Finding, ...]

    @property
    def space(self) -> Space:
        return self.sites.space

    def cuts(self, candidate: Candidate) -> Cuts:
        row = self.space.array([candidate])[0].tolist()
        kept = list(self.knife.whole)
        inner = {group: row[site] for site, group in self.sites.inner_of.items()}
        for site, group in self.sites.group_of.items():
            unit = kept[group].unit
            kept[group] = Kept(row[site] // unit, inner.get(group, unit), unit)
        removed = [block for site, block in self.sites.block_of.items() if not row[site]]
        gone = tuple(f"{block}." for block in removed)
        sites = self.space.sites

        def chosen(of: Mapping[int, str], whole: Mapping[int, int]) -> dict[str, int]:
            return {
                layer: row[site]
                for site, layer in of.items()
                if row[site] != whole[site] and not layer.startswith(gone)
            }

        own = {site: sites[site].full for site in self.sites.kernel_of}
        resolution = self.sites.resolution
        size = None if resolution is None or row[resolution] == sites[resolution].full else row[resolution]
        return Cuts(
            kept,
            removed,
            chosen(self.sites.kernel_of, own),
            chosen(self.sites.operator_of, dict.fromkeys(self.sites.operator_of, DENSE)),
            size,
        )

    def graft(self, model: nn.Module, candidate: Candidate, donor: Donor) -> nn.Module:
        return self.knife.graft(model, self.cuts(candidate), donor)

    def copy(self, model: nn.Module) -> nn.Module:
        """`model` by way of the knife, nothing cut."""
        return self.knife.graft(model, Cuts(self.knife.whole), Donor.of(model))


class Survey:
    """A teacher, surveyed. `teacher` computes what the model did, with its channels sorted by importance."""

    def __init__(self, teacher: nn.Module, anatomy: Anatomy, outputs: Sequence[tuple[int, ...]]) -> None:
        self.teacher = teacher
        self.outputs = tuple(outputs)
        """The shapes of what the network answers to one image."""
        self._anatomy = anatomy
        self.donor = Donor.of(teacher)
        """The teacher's own weights."""

    @property
    def space(self) -> Space:
        return self._anatomy.space

    @property
    def report(self) -> tuple[Finding, ...]:
        """Layers that write channels and residual blocks, in order of execution."""
        return self._anatomy.report

    @property
    def polynomials(self) -> Polynomials:
        """The costs in closed form, over the space's sites."""
        return self._anatomy.polynomials

    @property
    def block_costs(self) -> Mapping[str, tuple[Terms, Terms]]:
        """
        By block: macs, and bytes of the activations its operations write; over the variables of `polynomials`. What
        lies in no block is under ''.
        """
        return self._anatomy.blocks

    @property
    def cost(self) -> Mapping[str, int]:
        """The teacher's own."""
        return self._anatomy.cost

    def costs(self, candidates: Sequence[Candidate]) -> dict[str, NDArray[np.int64]]:
        """
        macs, flops, params, weight_bytes and activation_bytes of n candidates, each `[n]`, exact: what
        `search.costs.measure.count` finds on the built student.
        """
        return self.costs_of(self.space.array(candidates))

    def costs_of(self, choices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """The same for choices `[n, sites]` in the order of the space's sites; choices of void sites do not matter."""
        return self.polynomials(choices)

    def bounds(self) -> dict[str, tuple[int, int]]:
        """By metric, the least and the largest cost of any student, proved."""
        return dict(self._bounds)

    @cached_property
    def _bounds(self) -> dict[str, tuple[int, int]]:
        return Planner(self.polynomials).bounds()

    def graft(self, candidate: Candidate, donor: Donor | None = None) -> nn.Module:
        """
        A new network, in evaluation mode, with the candidate's slices of the teacher's weights, or of a donor's; all
        parameters learn.

        Removed blocks are `nn.Identity`, convolutions with another operator are `nn.Sequential`. Nothing is shared
        with the teacher or the donor.
        """
        return self._anatomy.graft(self.teacher, candidate, donor or self.donor)

    def tensors(self, candidate: Candidate, donor: Donor) -> dict[str, Tensor]:
        """
        By name, the tensors that `graft` would copy: slices of the donor's, through which gradients flow. The donor
        may have only some of the teacher's tensors.
        """
        return self._anatomy.knife.tensors(self.teacher, self._anatomy.cuts(candidate), donor)

    @cached_property
    def widths(self) -> Mapping[int, Width]:
        """By the index of each width site, where its channels lie in the teacher's tensors."""
        return widths_of(self._anatomy.knife, self._anatomy.sites)

    def sort(self, model: nn.Module, importance: Mapping[int, NDArray[np.float64]]) -> None:
        """
        Permutes the channels of a network with the teacher's structure, in place: those of each width site by falling
        `importance`, `[units]`. Its function stays the same.
        """
        knife, group_of = self._anatomy.knife, self._anatomy.sites.group_of
        given = {group_of[site]: values for site, values in importance.items()}
        knife.reorder(model, knife.orders(model, given))

    def factor_keys(self, candidate: Candidate) -> tuple[FactorKey, ...]:
        """The factors that a candidate's operators ask a donor for."""
        cuts = self._anatomy.cuts(candidate)
        return tuple((layer, cuts.kernels.get(layer), choice == SEPARABLE) for layer, choice in cuts.operators.items())
