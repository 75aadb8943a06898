"""Looks at a network, offers what it understands, and keeps what stands the test on a copy."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from search.costs.measure import count
from search.errors import FieldError, InvalidSpec, Unsupported
from search.spec import SpaceSpec
from search.surgery.anatomy import Anatomy, Finding, Status, Survey
from search.surgery.blocks import removable_blocks
from search.surgery.channels import channels_of
from search.surgery.checks import Checks, agree, outputs_of
from search.surgery.flow import Flow, check, flow_of
from search.surgery.groups import Grouping, Kept, grouping
from search.surgery.knife import Knife
from search.surgery.layers import layer_of
from search.surgery.memory import Memory
from search.surgery.operators import Resized
from search.surgery.rules import Rules
from search.surgery.sites import RESOLUTION, Finder, Sites
from search.surgery.terms import Counting, is_plain

_TIME_LIMIT = 60.0
"""Seconds of computing, not of waiting for a busy machine, after which a survey is given up."""
_EXACTNESS = 1e-4
"""The same, for the teacher itself."""
_ROUNDS = 4


def survey(model: nn.Module, example: Tensor, options: SpaceSpec | None = None) -> Survey:
    """
    Surveys `model`, which maps images like `example` `[n, c, h, w]` to tensors, in any nesting: logits, or a backbone's
    feature maps. `model` is left as it is.

    What is not understood is frozen, with a reason in the report. Whatever is offered has been tried on a copy with
    random weights: reordering its channels changes nothing, cutting it gives a network that costs what was computed.

    Raises:
        Unsupported: the network cannot be copied or run on the example, or nothing in it can be changed.
        InvalidSpec: a pattern of `options` fits nothing in this network, or a resolution is not below the example's.
    """
    deadline = time.thread_time() + _TIME_LIMIT
    image = example.detach()[:1].to(device="cpu", dtype=torch.float32, copy=True)
    teacher = _copied(model)
    outputs = outputs_of(teacher, image)
    anatomy = _Surveyor(_skeleton(teacher), image, options or SpaceSpec(), deadline).anatomy()
    anatomy.knife.reorder(teacher, anatomy.knife.orders(teacher))
    for changed in (teacher, anatomy.copy(teacher)):
        if not agree(outputs_of(changed, image), outputs, _EXACTNESS):
            raise Unsupported(
                "sorting the network's channels changed its answers: its numbers are too large for float32"
            )
    return Survey(teacher, anatomy, [tuple(output.shape) for output in outputs])


def _copied(model: nn.Module) -> nn.Module:
    try:
        copied = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
    except Exception as error:
        raise Unsupported(f"the network cannot be copied ({type(error).__name__}: {error})") from error
    return copied.requires_grad_(True)


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
        self._rules = Rules(options)
        _check_sizes(options, image.shape[-1])
        self._image = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
        outputs = outputs_of(model, self._image)
        self._cost = count(model, self._image)
        self._barred: dict[str, str] = {}
        self._flows = self._watched()
        self._channels = channels_of(self._flows[-1])
        self._checks = Checks(model, self._image, outputs, self._flows[-1], self._channels)
        self._modules = dict(model.named_modules())
        self._finder = Finder(self._modules, list(self._channels.layers), self._rules, image.shape[-1])
        self._blocks = self._finder.removable(removable_blocks(model, self._image))

    def anatomy(self) -> Anatomy:
        """Raises `Unsupported` when nothing is left that stands the test."""
        found = self._assembled()
        self._rules.check(self._modules)
        for _ in range(_ROUNDS):
            sites = list(range(len(found.space.sites)))
            if not sites or not self._checks.complaint(found, sites):
                break
            if not self._bar_where_it_breaks(found):
                self._bar_failing(found, sites)
            found = self._assembled()
        else:
            raise Unsupported("the network cannot be surveyed: what stands alone does not stand together")
        if not found.space.sites:
            reasons = "; ".join(dict.fromkeys(finding.reason for finding in found.report if finding.reason))
            raise Unsupported(
                f"nothing in the network can be made smaller: {reasons[:500] or 'it has no convolutions'}"
            )
        return found

    def _watched(self) -> list[Flow]:
        """One flow for every size of image that can be chosen, the network's own the last."""
        own = flow_of(self._model, self._image, deadline=self._deadline)
        flows = []
        for size in self._options.resolutions:
            resized = Resized(nn.Identity(), size)(self._image)
            try:
                flow = flow_of(self._model, resized, deadline=self._deadline)
            except Unsupported:
                raise
            except Exception as error:
                self._barred[RESOLUTION] = f"the network does not run on {size} x {size} pixels ({error})"
                return [own]
            if [step.module for step in flow.steps] != [step.module for step in own.steps]:
                self._barred[RESOLUTION] = f"the network takes other steps on {size} x {size} pixels"
                return [own]
            flows.append(flow)
        return [*flows, own]

    def _assembled(self) -> Anatomy:
        found = grouping(self._channels, self._barred)
        for group, name, block, _ in self._finder.named(found.groups, self._blocks):
            if self._finder.widths(group, name, block) == (group.width,):
                self._barred[group.writers[0]] = self._finder.why_whole(group, name, block)
        found = grouping(self._channels, self._barred)
        blocks = [block for block in self._blocks if block not in self._barred]
        resolutions = self._options.resolutions if len(self._flows) > 1 else ()
        sites = self._finder.sites(found.groups, blocks, resolutions, self._barred.__contains__)
        awkward = [
            layer
            for layer in sites.operator_of.values()
            if not is_plain(found.lanes.get((layer, "out")), sites.inner_of.values())
        ]
        if awkward:
            why = "the channels it writes are of several widths"
            self._barred.update({f"{layer}.operator": why for layer in awkward})
            sites = self._finder.sites(found.groups, blocks, resolutions, self._barred.__contains__)
        knife = Knife(self._channels.layers, found, frozenset(sites.inner_of.values()))
        memory = Memory(
            self._flows if sites.resolution is not None else self._flows[-1:], self._channels, found, blocks
        )
        flows = [run.flow for run in memory.runs]
        counting = Counting(self._model, flows, self._channels, knife, sites, memory)
        homes = {site.block for site in sites.space.sites}
        costs = counting.blocks(homes)
        return Anatomy(
            self._channels, knife, sites, counting.polynomials(), costs, self._cost, self._report(found, sites)
        )

    def _report(self, found: Grouping, sites: Sites) -> tuple[Finding, ...]:
        names = {group: sites.space.sites[site].name for site, group in sites.group_of.items()}
        findings = self._input(sites)
        for name, module in self._model.named_modules():
            if name in self._blocks:
                reason = self._barred.get(name, "")
                site = None if reason else f"{name}.keep"
                findings.append(self._finding(name, _status(reason) if reason else "removable", site, reason))
            layer = self._channels.layers.get(name)
            if layer is None or layer.weighs is None:
                own = [f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False)]
                if layer is None and not self._channels.layers.keys() >= set(own):
                    kind = type(module).__name__
                    reason = (
                        f"{kind} is not understood" if layer_of(module) is None else "it is never called as a layer"
                    )
                    findings.append(self._finding(name, _status(reason), None, reason))
                continue
            lane = found.lanes.get((name, "out"))
            if lane is not None:
                findings.append(self._finding(name, "searchable", names[min(lane.tables)]))
                continue
            own_sites = [site.name for site in sites.space.sites if site.name.startswith(f"{name}.")]
            if own_sites:
                findings.append(self._finding(name, "searchable", own_sites[0]))
            else:
                reason = found.frozen.get(name, "its inputs are frozen")
                findings.append(self._finding(name, _status(reason), None, reason))
        return tuple(findings)

    def _input(self, sites: Sites) -> list[Finding]:
        """What became of the resolutions that were asked for."""
        if not self._options.resolutions:
            return []
        if sites.resolution is not None:
            return [Finding("input", "searchable", RESOLUTION)]
        reason = self._barred.get(RESOLUTION, "the space leaves it out")
        return [Finding("input", _status(reason), None, reason)]

    def _finding(self, name: str, status: Status, site: str | None, reason: str = "") -> Finding:
        """With the line of the innermost module above, not torch's own, in whose forward the module is used."""
        above = name
        while above:
            above = above.rpartition(".")[0]
            if not type(self._modules[above]).__module__.startswith("torch.nn"):
                break
        return Finding(name, status, site, reason, _line_of(type(self._modules[above])))

    def _bar_where_it_breaks(self, found: Anatomy) -> bool:
        """
        Bars groups at which the narrowest network breaks, because its code counts on a number of channels: of those
        that go into the module where it does, the ones that break it alone. True when any was barred.
        """
        groups, whole = found.knife.grouping.groups, list(found.knife.whole)
        narrow = list(whole)
        for site, group in found.sites.group_of.items():
            unit = groups[group].unit
            narrow[group] = Kept(found.space.sites[site].least // unit, unit, unit)
        kept, barred = list(narrow), False
        while (broken := self._checks.broken(found, kept)) is not None:
            check(self._deadline)
            entering = [
                group for group in sorted(self._checks.entering(found, broken[0])) if kept[group] != whole[group]
            ]
            alone = {group: [*whole[:group], narrow[group], *whole[group + 1 :]] for group in entering}
            guilty = {group: why for group in entering if (why := self._checks.broken(found, alone[group])) is not None}
            if not guilty:
                return barred
            for group, (_, error) in guilty.items():
                kept[group] = whole[group]
                self._barred[groups[group].writers[0]] = f"cutting it breaks the network ({error})"
            barred = True
        return barred

    def _bar_failing(self, found: Anatomy, at: Sequence[int]) -> None:
        """Bars the sites among `at` that do not stand the test, found by halving."""
        check(self._deadline)
        complaint = self._checks.complaint(found, at)
        if not complaint:
            return
        if len(at) > 1:
            middle = len(at) // 2
            before = len(self._barred)
            self._bar_failing(found, at[:middle])
            self._bar_failing(found, at[middle:])
            if len(self._barred) > before:
                return
        site = found.space.sites[at[-1]]
        group = found.sites.group_of.get(at[-1])
        if site.kind == "removal":
            self._barred[site.block] = complaint
        else:
            self._barred[site.name if group is None else found.knife.grouping.groups[group].writers[0]] = complaint


def _check_sizes(options: SpaceSpec, size: int) -> None:
    mistakes = [
        FieldError(
            f"/space/resolutions/{at}",
            "INVALID_VALUE",
            f"must be below the {size} pixels of the dataset's images, which are always among the choices",
        )
        for at, resolution in enumerate(options.resolutions)
        if resolution >= size
    ]
    if mistakes:
        raise InvalidSpec(mistakes)


def _line_of(kind: type[nn.Module]) -> str:
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return kind.__module__ if code is None else f"{kind.__module__}:{code.co_firstlineno}"


def _status(reason: str) -> Status:
    return "unsupported" if "not understood" in reason or "breaks the network" in reason else "frozen"
