"""
The block library: every choice of every site, distilled alone, with the harm it does.

A choice that changes the inside of one block is trained against the teacher's own block, on that block's inputs and
outputs (as in DNA, Li et al., 2020, and LANA, Molchanov et al., 2022). A choice that reaches further, such as the width
of a stage or a block that is gone, is followed by some steps of distillation of the whole network: without them it
would look far more harmful than it is.

*Harm* is the mean KL(teacher || network) with that one choice put in, on held-out images, after batch-norm statistics
were worked out anew. Harms add up well enough to propose with, not to score with.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from search.batches import Cached
from search.costs.reduced import Table
from search.distillers.hinton import Hinton
from search.quality import quality
from search.space import Candidate, Site, Space
from search.spec import LibrarySpec, Schedule
from search.surgery import Donor, FactorKey, Factors, Survey
from search.training import Pupil, Stretch, recalibrate, train

_ACTIVATION_BYTES = 2**28
"""Of a block's inputs and outputs that are kept at once."""
_MOST_PARAMS = 0.75
"""A module with more than this share of the network's parameters is no block, but most of the network."""
_RECALIBRATION_IMAGES = 256
_COUPLED = Schedule(learning_rate=0.02)
_COUPLED_SHARE = 4
"""A step of the whole network costs as much as many of a block: it is given a fourth of the batch."""
_WIDTHS = ("width", "group")


@dataclass(frozen=True, slots=True, order=True)
class Lot:
    """One choice of one site, to be distilled alone."""

    site: str
    choice: int


@dataclass(frozen=True, slots=True)
class Entry:
    """
    What is known of a lot: its harm in nats and, where it lies within one block, `home`, the tensors of the student's
    block by their names in the student.
    """

    lot: Lot
    harm: float
    home: str | None
    tensors: Mapping[str, Tensor]
    seconds: float

    def pack(self) -> bytes:
        """As safetensors."""
        told = {"site": self.lot.site, "choice": self.lot.choice, "harm": self.harm, "home": self.home}
        return save(dict(self.tensors), {"entry": json.dumps({**told, "seconds": self.seconds})})

    @classmethod
    def unpack(cls, packed: bytes) -> Entry:
        size = int.from_bytes(packed[:8], "little")
        told = json.loads(json.loads(packed[8 : 8 + size])["__metadata__"]["entry"])
        return cls(Lot(told["site"], told["choice"]), told["harm"], told["home"], load(packed), told["seconds"])


def lots(space: Space, spec: LibrarySpec) -> list[Lot]:
    """The choices that are measured, by site: of widths some, the narrowest among them, else all but the full one."""
    return [Lot(site.name, choice) for site in space.sites for choice in _measured(site, spec.choices)]


def _measured(site: Site, count: int) -> list[int]:
    narrower = site.choices[:-1]
    if site.kind not in _WIDTHS or len(narrower) <= count:
        return list(narrower)
    return [narrower[round(at)] for at in np.linspace(0, len(narrower), count, endpoint=False)]


def lot_key(lot: Lot, teacher: str, data: str, spec: LibrarySpec) -> str:
    """
    Names an entry by all that decides it: the teacher's weights, the data, and how it is trained. How many others are
    measured does not.
    """
    decides = [teacher, data, lot.site, lot.choice, spec.model_dump(mode="json", exclude={"choices"})]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]


def harm_table(space: Space, harms: Mapping[Lot, float]) -> Table:
    """
    For the planner: by site and position of the choice, its harm; of the full choice 0.

    Harm falls with the width about as the square of what is missing, so between the widths that were measured its root
    is taken to be a straight line. A choice that could not be measured counts as the worst that could.
    """
    worst = max(harms.values(), default=0.0)
    table = []
    for site in space.sites:
        known = {choice: harms[Lot(site.name, choice)] for choice in site.choices if Lot(site.name, choice) in harms}
        known[site.full] = 0.0
        if site.kind in _WIDTHS and len(known) > 1:
            roots = np.sqrt([known[choice] for choice in sorted(known)])
            table.append([float(root) ** 2 for root in np.interp(site.choices, sorted(known), roots)])
        else:
            table.append([known.get(choice, worst) for choice in site.choices])
    return table


class Librarian:
    """Makes entries, one lot at a time; quickest when lots of one block follow each other."""

    def __init__(self, survey: Survey, train_set: Cached, validation: Cached, spec: LibrarySpec) -> None:
        self._survey, self._train, self._spec = survey, train_set, spec
        self._teacher = copy.deepcopy(survey.teacher).to(train_set.normalise.device)
        count = min(spec.images, len(validation))
        self._held_out = replace(
            validation,
            images=validation.images[:count],
            labels=validation.labels[:count],
            logits=validation.logits[:count],
        )
        self._watched: tuple[str, _Lessons | None] = ("", None)

    def learn(self, lot: Lot) -> Entry:
        """
        Raises:
            TrialError: the network with that choice cannot be trained.
        """
        began = time.monotonic()
        space, device = self._survey.space, self._train.normalise.device
        candidate = space.candidate({**space.full().as_dict(), lot.site: lot.choice})
        student = self._survey.graft(candidate).to(device)
        home = self._home(candidate, student)
        lessons = None if home is None else self._lessons(home)
        if home is None or lessons is None:
            home = None
            self._distil_whole(student)
        else:
            self._distil(student.get_submodule(home), lessons)
        size = min(self._spec.batch_size, len(self._train))
        recalibrate(student, self._train, batches=max(1, _RECALIBRATION_IMAGES // size), batch_size=size)
        harm = quality(student, self._held_out).kl
        tensors: dict[str, Tensor] = {}
        if home is not None:
            state = student.get_submodule(home).state_dict(prefix=f"{home}.")
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        return Entry(lot, harm, home, tensors, time.monotonic() - began)

    def _distil_whole(self, student: nn.Module) -> None:
        steps = self._spec.coupled_steps
        schedule = _COUPLED.model_copy(update={"batch_size": self._spec.batch_size // 2 or 1})
        if steps:
            for _ in train(
                Pupil(student), self._train, Hinton(Hinton.Options()), schedule, Stretch(0, steps, (0, steps))
            ):
                pass

    def _distil(self, block: nn.Module, lessons: _Lessons) -> None:
        """Adam on the mean squared error of the block's output, relative to the output's variance."""
        steps, size = self._spec.steps, min(self._spec.batch_size, len(lessons.outputs))
        parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
        if not steps or not parameters:
            return
        optimiser = torch.optim.Adam(parameters, lr=self._spec.learning_rate)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        scale = lessons.outputs.var().clamp_min(1e-12)
        generator = torch.Generator().manual_seed(0)
        block.train()
        for _ in range(steps):
            at = torch.randperm(len(lessons.outputs), generator=generator)[:size]
            answer = block(*(given[at] for given in lessons.inputs))
            loss = (answer - lessons.outputs[at]).square().mean() / scale
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            cosine.step()

    def _home(self, candidate: Candidate, student: nn.Module) -> str | None:
        """The innermost module, or the block of the site, that holds all that the choice changes."""
        whole, cut = _shapes(self._survey.teacher), _shapes(student)
        changed = {name.rpartition(".")[0] for name in whole.keys() | cut.keys() if whole.get(name) != cut.get(name)}
        if not changed or cut.keys() < whole.keys():
            return None  # nothing to train: a block that is gone, or images of another size
        modules = dict(self._survey.teacher.named_modules())
        blocks = {site.block for site in self._survey.space.sites if site.block in modules}
        innermost = sorted(blocks, key=len, reverse=True)
        home = next((block for block in innermost if all(_within(layer, block) for layer in changed)), _common(changed))
        params = sum(parameter.numel() for parameter in self._survey.teacher.parameters())
        if not home or sum(p.numel() for p in modules[home].parameters()) > _MOST_PARAMS * params:
            return None
        return home if _fits(self._teacher, student, home, self._example()) else None

    def _example(self) -> Tensor:
        return self._train.batch(0, 2).images

    def _lessons(self, home: str) -> _Lessons | None:
        if self._watched[0] != home:
            self._watched = (home, _lessons(self._teacher, home, self._batches()))
        return self._watched[1]

    def _batches(self) -> Iterator[Tensor]:
        size = min(self._spec.batch_size, len(self._train))
        for step in range(max(1, min(self._spec.steps, len(self._train) // size))):
            yield self._train.batch(step, size).images


@dataclass(frozen=True, slots=True)
class _Lessons:
    """What a block of the teacher is given and what it makes of it: tensors `[n, ...]`."""

    inputs: tuple[Tensor, ...]
    outputs: Tensor


class _Seen(Exception):
    """The block has answered; what comes after it need not be worked out."""


def _lessons(teacher: nn.Module, home: str, batches: Iterator[Tensor]) -> _Lessons | None:
    """As many as fit; None when the block takes or gives anything but tensors."""
    given: list[tuple[Tensor, ...]] = []
    answered: list[Tensor] = []
    size = 0

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if not kwargs and isinstance(output, Tensor) and all(isinstance(one, Tensor) for one in args):
            given.append(args)
            answered.append(output)
        raise _Seen

    handle = teacher.get_submodule(home).register_forward_hook(watch, with_kwargs=True)
    try:
        with torch.no_grad():
            for images in batches:
                with suppress(_Seen):
                    teacher.eval()(images)
                if not answered:
                    return None
                size += sum(one.nbytes for one in (*given[-1], answered[-1]))
                if size > _ACTIVATION_BYTES:
                    break
    finally:
        handle.remove()
    return _Lessons(tuple(torch.cat(one) for one in zip(*given, strict=True)), torch.cat(answered))


def _fits(teacher: nn.Module, student: nn.Module, home: str, images: Tensor) -> bool:
    """Whether the student's block is called once, as the teacher's is, with tensors of the same shapes."""
    seen = []
    for network in (teacher, student):
        calls: list[tuple[Any, ...]] = []

        def watch(module: nn.Module, args: tuple[Any, ...], output: Any, calls: list[tuple[Any, ...]] = calls) -> None:
            calls.append(tuple(getattr(one, "shape", None) for one in (*args, output)))

        handle = network.get_submodule(home).register_forward_hook(watch)
        try:
            with torch.no_grad():
                network.eval()(images)
        finally:
            handle.remove()
        seen.append(calls)
    return len(seen[0]) == 1 and seen[0] == seen[1] and None not in seen[0][0]


class Library:
    """
    The entries of one teacher, as what candidates are grafted from: blocks that were distilled alone, cut to the
    candidate's other widths, and the teacher's own weights everywhere else.

    A width that was not measured is cut from the next wider one that was. Of several choices within one block the most
    harmful one's entry is taken, and the others cut from it.
    """

    def __init__(self, survey: Survey, harms: Mapping[Lot, float], load: Callable[[Lot], Entry]) -> None:
        self._survey, self._harms, self._load = survey, harms, load
        self._known: dict[Lot, _Placed] = {}

    def graft(self, candidate: Candidate) -> nn.Module:
        """The candidate's network, its blocks from the library."""
        return self._survey.graft(candidate, self.donor(candidate))

    def donor(self, candidate: Candidate) -> Donor:
        """What its weights are cut from."""
        chosen = [lot for site, choice in candidate if (lot := self._nearest(site, choice)) is not None]
        tensors, factors, taken = dict(self._survey.donor.tensors), dict[FactorKey, Pair](), set[str]()
        for lot in sorted(chosen, key=lambda lot: (-self._harms[lot], lot)):
            placed = self._placed(lot)
            if placed.home and placed.home not in taken:
                taken.add(placed.home)
                tensors |= placed.tensors
                factors |= placed.factors
        return Donor(tensors, Factors(self._survey.teacher, factors))

    def _nearest(self, name: str, choice: int) -> Lot | None:
        """The lot of a choice, or of the next wider width; None when the teacher's own is next."""
        site = self._survey.space.by_name[name]
        wider = (one for one in site.choices if one >= choice) if site.kind in _WIDTHS else (choice,)
        return next((lot for one in wider if (lot := Lot(name, one)) in self._harms), None)

    def _placed(self, lot: Lot) -> _Placed:
        if lot not in self._known:
            entry = self._load(lot)
            self._known[lot] = _Placed() if entry.home is None else self._put_back(entry, entry.home)
        return self._known[lot]

    def _put_back(self, entry: Entry, home: str) -> _Placed:
        space, own, teacher = self._survey.space, self._survey.donor, self._survey.teacher
        candidate = space.candidate({**space.full().as_dict(), entry.lot.site: entry.lot.choice})
        tensors = {name: _own(tensor) for name, tensor in own.tensors.items() if name.startswith(f"{home}.")}
        factors = {}
        for layer, size, separable in self._survey.factor_keys(candidate):
            first, second = own.factors.of(layer, size, separable=separable)
            factors[layer, size, separable] = (_own(first), _own(second))
        # The same cuts through tensors of positions tell where each number came from.
        positions = Donor(
            {name: _positions(tensor) for name, tensor in tensors.items()},
            Factors(teacher, {key: (_positions(one), _positions(two)) for key, (one, two) in factors.items()}),
        )
        holders = dict(tensors)
        for (layer, _, _), (first, second) in factors.items():
            holders |= {f"{layer}.spatial.weight": first, f"{layer}.channels.weight": second}
            if f"{layer}.bias" in tensors:
                holders[f"{layer}.channels.bias"] = tensors[f"{layer}.bias"]
        for name, at in self._survey.tensors(candidate, positions).items():
            holders[name].view(-1)[at.reshape(-1)] = entry.tensors[name].reshape(-1)
        return _Placed(home, tensors, factors)


Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class _Placed:
    """An entry's tensors put back where they were cut out of the teacher's; no `home`, nothing to put back."""

    home: str = ""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    factors: Mapping[FactorKey, Pair] = field(default_factory=dict)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _positions(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel()).view(tensor.shape)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _within(layer: str, block: str) -> bool:
    return layer == block or layer.startswith(f"{block}.")


def _common(layers: Sequence[str] | set[str]) -> str:
    """The innermost module that holds all of the layers; empty when only the whole network does."""
    paths = [layer.split(".") for layer in layers]
    depth = next(
        (at for at, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), min(map(len, paths))
    )
    return ".".join(paths[0][:depth])
