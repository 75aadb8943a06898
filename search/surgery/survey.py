"""
From a network to the space of its students, their exact costs, and the students themselves.

    found = survey(model, example, SpaceSpec())
    candidate = found.space.sample(rng)
    found.costs([candidate])["macs"]
    student = found.graft(candidate)
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.costs.measure import count
from search.costs.polynomial import Polynomials
from search.errors import Unsupported
from search.space import Candidate, Space
from search.spec import SpaceSpec
from search.surgery.blocks import removable_blocks
from search.surgery.channels import Channels, channels_of
from search.surgery.groups import Grouping, grouping
from search.surgery.knife import Knife
from search.surgery.sites import Sites, sites_of, widths
from search.surgery.terms import polynomials

_TIME_LIMIT = 60.0
"""Seconds of computing, not of waiting for a busy machine, after which a survey is given up."""
_TOLERANCE = 1e-3
"""Largest deviation of logits, relative to the largest, at which two forms of one random network are the same."""
_EXACTNESS = 1e-4
"""The same, for the teacher itself."""

Status = Literal["searchable", "removable", "frozen"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What can be done with a module: `site` names where it is chosen; `reason` says why it stays as it is."""

    module: str
    status: Status
    site: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Anatomy:
    """What is known of a network's structure. It follows from the architecture alone, not from any weight."""

    channels: Channels
    knife: Knife
    sites: Sites
    costs: Polynomials
    report: tuple[Finding, ...]

    @property
    def space(self) -> Space:
        return self.sites.space

    def costs_of(self, choices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """macs, flops and params, each `[n]`, for choices `[n, sites]`."""
        costs = self.costs(choices)
        return {"macs": costs["macs"], "flops": 2 * costs["macs"], "params": costs["params"]}

    def graft(self, model: nn.Module, candidate: Candidate) -> nn.Module:
        row = self.space.array([candidate])[0]
        kept = [group.units for group in self.knife.grouping.groups]
        for site, group in self.sites.group_of.items():
            kept[group] = int(row[site]) // self.knife.grouping.groups[group].unit
        removed = [block for site, block in self.sites.block_of.items() if not row[site]]
        return self.knife.graft(model, kept, removed)


class Survey:
    """A teacher, surveyed. `teacher` computes what the model did, with its channels sorted by importance."""

    def __init__(self, teacher: nn.Module, anatomy: Anatomy) -> None:
        self.teacher = teacher
        self._anatomy = anatomy

    @property
    def space(self) -> Space:
        return self._anatomy.space

    @property
    def report(self) -> tuple[Finding, ...]:
        """Layers that write channels and residual blocks, in order of execution."""
        return self._anatomy.report

    def costs(self, candidates: Sequence[Candidate]) -> dict[str, NDArray[np.int64]]:
        """macs, flops and params of n candidates, each `[n]`, exact."""
        return self.costs_of(self.space.array(candidates))

    def costs_of(self, choices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """The same for choices `[n, sites]` in the order of the space's sites; choices of void sites do not matter."""
        return self._anatomy.costs_of(choices)

    def bounds(self) -> dict[str, tuple[int, int]]:
        """By metric, the costs of the smallest student and of the teacher."""
        costs = self.costs([self.space.least(), self.space.full()])
        return {metric: (int(values[0]), int(values[1])) for metric, values in costs.items()}

    def graft(self, candidate: Candidate) -> nn.Module:
        """
        A new network, in evaluation mode, with the candidate's slices of the teacher's weights; all parameters learn.

        Removed blocks are `nn.Identity`. Nothing is shared with the teacher.
        """
        return self._anatomy.graft(self.teacher, candidate)


def survey(model: nn.Module, example: Tensor, options: SpaceSpec | None = None) -> Survey:
    """
    Surveys `model`, which maps images like `example` `[n, c, h, w]` to logits `[n, classes]`. `model` is left as it is.

    What is not understood is frozen, with a reason in the report. Whatever is offered has been tried on a copy with
    random weights: reordering its channels changes nothing, cutting it gives a network that costs what was computed.

    Raises:
        Unsupported: the network cannot be copied, run on the example, or traced.
    """
    deadline = time.thread_time() + _TIME_LIMIT
    image = example.detach()[:1].to(device="cpu", dtype=torch.float32, copy=True)
    teacher = _copied(model)
    logits = _logits(teacher, image)
    anatomy = _Surveyor(_skeleton(teacher), image, options or SpaceSpec(), deadline).anatomy()
    anatomy.knife.reorder(teacher, anatomy.knife.orders(teacher))
    for changed in (teacher, anatomy.graft(teacher, anatomy.space.full())):
        if not _agree(_logits(changed, image), logits, _EXACTNESS):
            raise Unsupported(
                "sorting the network's channels changed its logits: its numbers are too large for float32"
            )
    return Survey(teacher, anatomy)


def _copied(model: nn.Module) -> nn.Module:
    try:
        copied = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
    except Exception as error:
        raise Unsupported(f"the network cannot be copied ({type(error).__name__}: {error})") from error
    return copied.requires_grad_(True)


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            logits = model(image)
    except Exception as error:
        shape = "x".join(map(str, image.shape[1:]))
        raise Unsupported(f"the network does not run on a {shape} image ({type(error).__name__}: {error})") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise Unsupported("the network must answer a batch of images with one tensor of logits [n, classes]")
    if not bool(torch.isfinite(logits).all()):
        raise Unsupported("the network's logits are not finite; train it again or give other weights")
    return logits


def _agree(logits: Tensor, others: Tensor, tolerance: float) -> bool:
    deviation = (logits - others).abs().max()
    return bool(deviation <= tolerance * others.abs().max().clamp_min(1e-6))


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy with the same random weights on every machine, of a size that keeps every layer's signal alive."""
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        weight = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() >= 2 and parameter[0].numel() > 1:
            weight *= (2 / parameter[0].numel()) ** 0.5
        else:
            weight.mul_(0.25).add_(0.5)
        memo[id(parameter)] = nn.Parameter(weight)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            memo[id(buffer)] = 0.25 * torch.randn(buffer.shape, generator=generator)
        elif name.endswith("running_var"):
            memo[id(buffer)] = 0.75 + 0.5 * torch.rand(buffer.shape, generator=generator)
    return copy.deepcopy(model, memo)


class _Surveyor:
    """Finds the anatomy of a network, and freezes what does not stand the test."""

    def __init__(self, model: nn.Module, image: Tensor, options: SpaceSpec, deadline: float) -> None:
        self._model, self._options, self._deadline = model, options, deadline
        self._image = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
        self._logits = _logits(model, self._image)
        self._macs = count(model, self._image)["macs"]
        self._channels = channels_of(model, self._image, deadline=deadline)
        self._blocks = removable_blocks(model, self._image) if options.removal else []
        self._barred: dict[str, str] = {}

    def anatomy(self) -> Anatomy:
        """Raises `Unsupported` when nothing is left that stands the test."""
        found = self._assembled()
        if self._complaint(found, range(len(found.space.sites))):
            self._bar_each_failing(found)
            found = self._assembled()
            complaint = self._complaint(found, range(len(found.space.sites)))
            if complaint:
                raise Unsupported(f"the network cannot be surveyed: {complaint}")
        if not found.space.sites:
            reasons = "; ".join(dict.fromkeys(finding.reason for finding in found.report if finding.reason))
            raise Unsupported(
                f"nothing in the network can be made smaller: {reasons[:500] or 'it has no convolutions'}"
            )
        return found

    def _assembled(self) -> Anatomy:
        found = grouping(self._channels, self._barred)
        for group in found.groups:
            if len(widths(group.width, group.unit, self._options)) == 1:
                self._barred[group.writers[0]] = (
                    f"no width below its {group.width} channels is a multiple of {self._options.divisor} "
                    f"and at least {self._options.min_keep:.1%} of them"
                )
        found = grouping(self._channels, self._barred)
        blocks = [block for block in self._blocks if block not in self._barred]
        sites = sites_of(found.groups, blocks, list(self._channels.layers), self._options)
        knife = Knife(self._channels.layers, found)
        costs = polynomials(self._model, self._channels, knife, sites, self._macs)
        return Anatomy(self._channels, knife, sites, costs, self._report(found, sites))

    def _report(self, found: Grouping, sites: Sites) -> tuple[Finding, ...]:
        names = {group: sites.space.sites[site].name for site, group in sites.group_of.items()}
        findings = []
        for name, module in self._model.named_modules():
            if name in self._blocks:
                site = f"{name}.keep"
                reason = self._barred.get(name, "")
                findings.append(Finding(name, "frozen", None, reason) if reason else Finding(name, "removable", site))
            layer = self._channels.layers.get(name)
            if layer is None or layer.weighs is None:
                own = [f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False)]
                if layer is None and not self._channels.layers.keys() >= set(own):
                    reason = f"{type(module).__name__} is not understood, or not used in evaluation"
                    findings.append(Finding(name, "frozen", None, reason))
                continue
            lane = found.lanes.get((name, "out"))
            if lane is not None:
                findings.append(Finding(name, "searchable", names[min(lane.tables)]))
            else:
                findings.append(Finding(name, "frozen", None, found.frozen.get(name, "its inputs are frozen")))
        return tuple(findings)

    def _bar_each_failing(self, found: Anatomy) -> None:
        for index, site in enumerate(found.space.sites):
            if time.thread_time() > self._deadline:
                raise Unsupported(
                    f"the network could not be surveyed within {_TIME_LIMIT:.0f} seconds of computing; "
                    "give the dataset a smaller `size`"
                )
            complaint = self._complaint(found, [index])
            if complaint:
                group = found.sites.group_of.get(index)
                first = site.block if group is None else found.knife.grouping.groups[group].writers[0]
                self._barred[first] = complaint

    def _complaint(self, found: Anatomy, at: Collection[int]) -> str:
        """What is wrong with changing the sites `at`, all others left as they are; empty when nothing is."""
        try:
            return self._misordered(found, at) or self._miscounted(found, at)
        except Exception as error:  # whatever a network does when it is cut wrongly
            return f"cutting it breaks the network ({type(error).__name__}: {str(error)[:200]})"

    def _misordered(self, found: Anatomy, at: Collection[int]) -> str:
        rng = np.random.default_rng(0)
        orders = [np.arange(group.units) for group in found.knife.grouping.groups]
        for site, group in found.sites.group_of.items():
            if site in at:
                rng.shuffle(orders[group])
        reordered = found.graft(self._model, found.space.full())
        found.knife.reorder(reordered, orders)
        if _agree(_logits(reordered, self._image), self._logits, _TOLERANCE):
            return ""
        return "its channels are coupled in a way that is not understood: reordering them changes the logits"

    def _miscounted(self, found: Anatomy, at: Collection[int]) -> str:
        rng = np.random.default_rng(0)
        sites = found.space.sites
        for draw in ("narrow", "least", "mixed"):
            choices = {site.name: site.full for site in sites}
            for index in at:
                site = sites[index]
                if draw == "mixed":
                    choices[site.name] = int(rng.choice(site.choices))
                elif draw == "least" or site.kind == "width":
                    choices[site.name] = site.least
            candidate = found.space.candidate(choices)
            counted = count(found.graft(self._model, candidate), self._image)
            computed = found.costs_of(found.space.array([candidate]))
            if counted != {metric: int(values[0]) for metric, values in computed.items()}:
                return "the cost of the network that is left is not the one computed"
        return ""
