"""
Widths that are learned in one training: "Compact CNN Structure Learning by Knowledge Distillation" (Ahmed, Zunino,
Morerio, Murino: arXiv 2104.09191), as we read it. Only its abstract is known to us, so this is a reconstruction: a
regulariser in the style of MorphNet under distillation, block by block, towards a budget.

The student begins as the sorted teacher. Its loss is that of a distiller plus

    common strength * sum over blocks k: strength_k * sum over sites s of k: price_s * sum of s's channels' strengths

where price_s follows from what a channel of s adds to the cost (`search.costs.relaxed`), worked out anew whenever a
channel has died. The cost of those alive follows a path down to the budget: at every step those die that are weakest
for their price, as few as that takes. The common strength rises while they are stronger than a threshold when their
turn comes, and falls while they are not. What has died is zero from then on: the network that is trained is the one
that will be cut.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from search.batches import Batch, Source
from search.budget import Budget
from search.costs.relaxed import Counts, Relaxed
from search.course import Course, Material, Stage
from search.plugins import CostModel, Distiller
from search.projection import Projector
from search.space import Candidate
from search.sparsity import Alive, Deaths, Strengths, revived
from search.spec import StructureSpec
from search.surgery import Donor, Survey
from search.taps import forward
from search.training import Pupil, Stretch, train

_DOUBLINGS = 6
"""How often the common strength can double, or halve, over a leg."""
_MOST = 8.0
"""How many times larger, or smaller, than at first it can become: beyond that it would drown the lesson."""
_STATE = "structure"

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Leg:
    """
    A part of the way down, steps `start` to `stop`. The cost in each metric falls evenly on a logarithmic scale from
    `begin` to `end` in the first `press` of it, while the sites `pressed` lose channels; the rest is for the network to
    settle.
    """

    level: int
    start: int
    stop: int
    press: float
    begin: Mapping[str, float]
    end: Mapping[str, float]
    pressed: tuple[int, ...]

    def target(self, step: int) -> dict[str, float]:
        """What the channels alive after so many steps may cost, in the unit of each metric's sum."""
        share = min((step - self.start) / max(1.0, self.press * (self.stop - self.start)), 1.0)
        return _between(self.begin, self.end, share)


@dataclass(frozen=True, slots=True)
class Note:
    """
    Where the learning stands: the common strength, what the channels alive cost by metric, and of the `metric` furthest
    above its limit what falls to each block ('' is what depends on no width).
    """

    step: int
    level: int
    strength: float
    cost: Mapping[str, int]
    metric: str
    blocks: Mapping[str, int]


class Learning:
    """
    What is to be learned: the widths of one surveyed teacher, on the way down through `levels`.

    It is a distiller, for `search.training.train`: `teach`, which looks at logits only, with the regulariser beside it.
    """

    needs_teacher: ClassVar[bool] = True

    def __init__(
        self, survey: Survey, costs: CostModel, levels: Sequence[Budget], teach: Distiller, spec: StructureSpec
    ) -> None:
        self.survey, self.spec = survey, spec
        self._costs, self._levels, self._teach = costs, levels, teach
        self._space = survey.space
        self.sites = tuple(sorted(survey.widths))
        self._site_of = np.repeat(np.arange(len(self.sites)), [survey.widths[site].units for site in self.sites])
        metrics = dict.fromkeys(metric for level in levels for metric in level.limits)
        self._relaxed = {metric: Relaxed(costs.polynomials, metric) for metric in metrics}
        self._full: Counts = np.array([site.full for site in self._space.sites], dtype=np.float64)
        self._whole = self.values(self._full)
        self._blocks = {self._space.sites[site].block: list[int]() for site in self.sites}
        for site in self.sites:
            self._blocks[self._space.sites[site].block].append(site)
        self._strengths = {site: self._strength(site) for site in self.sites}
        self.legs = self._legs()

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        return self._teach.loss(logits, labels, teacher_logits)

    def course(self, student: nn.Module, material: Material) -> Structuring:
        return Structuring(self, student)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One a level, each of which walks the whole schedule."""
        ends = self.ends
        lengths = np.diff([0, *ends]).tolist()
        return tuple(Stage(f"level {level + 1}", share=length) for level, length in enumerate(lengths))

    @property
    def ends(self) -> list[int]:
        """The step at which each level is over."""
        return [max(leg.stop for leg in self.legs if leg.level == level) for level in range(len(self._levels))]

    def begin(self) -> Pupil:
        """The sorted teacher."""
        return Pupil(copy.deepcopy(self.survey.teacher).requires_grad_(True))

    def walk(self, pupil: Pupil, source: Source, stop: int, material: Material) -> Iterator[tuple[int, float]]:
        """
        Trains in place from where the pupil is to `stop`, yielding `(step, loss)`. `material.steps` is `spec.steps`.

        Raises:
            NonFinite: the training diverges.
            OutOfMemory: the device could not hold a step.
        """
        stretch = Stretch(pupil.step, stop, (0, self.spec.steps))
        return train(pupil, source, self, self.spec.training, stretch, material)

    def leg(self, step: int) -> Leg:
        """The one that the step after `step` steps belongs to."""
        return next((leg for leg in self.legs if step < leg.stop), self.legs[-1])

    def all_alive(self) -> Alive:
        """Those that the largest choices keep."""
        return self._first({site: self._space.sites[site].full for site in self.sites})

    def alive(self, pupil: Pupil) -> Alive:
        found = pupil.extras.get(f"{_STATE}.alive")
        return self.all_alive() if found is None else found.cpu().numpy()

    def of_sites(self, values: NDArray[T]) -> dict[int, NDArray[T]]:
        """Values of all units, `[units of all]`, by the index of their site."""
        ends = np.flatnonzero(np.diff(self._site_of)) + 1
        return dict(zip(self.sites, np.split(values, ends), strict=True))

    def counts(self, alive: Alive) -> Counts:
        """Channels alive at every site of the space, `[sites]`; what is no width at its full choice."""
        counts = self._full.copy()
        for site, part in self.of_sites(alive).items():
            counts[site] = part.sum() * self.survey.widths[site].unit
        return counts

    def values(self, counts: Counts) -> dict[str, float]:
        """What such a network costs, in the unit of each metric's sum."""
        return {metric: relaxed.value(counts) for metric, relaxed in self._relaxed.items()}

    def prices(self, alive: Alive, metrics: Sequence[str], leg: Leg) -> NDArray[np.float64]:
        """
        How hard each unit is pressed, `[units of all]`: what it adds to the cost, as a share of what those alive cost,
        summed over `metrics`; raised to `weighting` and times the strength of its block. 0 where none can die.
        """
        counts, adds = self.counts(alive), np.zeros(len(self.sites))
        values = self.values(counts)
        for metric in metrics:
            marginal = self._relaxed[metric].marginal(counts)
            for at, site in enumerate(self.sites):
                if site in leg.pressed and counts[site] > self._space.sites[site].least:
                    adds[at] += self.survey.widths[site].unit * marginal[site] / values[metric]
        found = adds[self._site_of] * alive
        usual = found[found > 0].mean() if found.any() else 1.0
        weighted = usual * (found / usual) ** self.spec.weighting
        strengths = np.array([self._strengths[site] for site in self.sites])
        return np.where(found > 0, weighted * strengths[self._site_of], 0.0)

    def dying(
        self, alive: Alive, values: NDArray[np.float64], prices: NDArray[np.float64], step: int
    ) -> NDArray[np.int64]:
        """
        The units that die after a step, at strengths `values` and `prices`, both `[units of all]`: of the pressed
        sites, but for as many of the strongest as their least choices keep, those with the least strength for their
        price; so many that the cost keeps to its path.
        """
        able, target = alive & (prices > 0), self.leg(step).target(step + 1)
        for at, site in enumerate(self.sites):
            units = np.flatnonzero((self._site_of == at) & alive)
            least = self._space.sites[site].least // self.survey.widths[site].unit
            able[units[np.argsort(-values[units], kind="stable")[:least]]] = False
        found = np.flatnonzero(able)
        found = found[np.argsort(values[found] / prices[found], kind="stable")]

        def fits(count: int) -> bool:
            rest = alive.copy()
            rest[found[:count]] = False
            costs = self.values(self.counts(rest))
            return all(costs[metric] <= most for metric, most in target.items())

        return found[: bisect_left(range(len(found)), True, key=fits)]

    def note(self, pupil: Pupil) -> Note:
        leg = self.leg(max(pupil.step - 1, 0))
        counts, polynomials = self.counts(self.alive(pupil)), self._costs.polynomials
        values, limits = self.values(counts), self._ceilings(self._levels[leg.level])
        metric = max(limits, key=lambda one: values[one] / limits[one])
        shares = self._relaxed[metric].shares(counts, self.sites)
        blocks = {block: sum(float(shares[site]) for site in sites) for block, sites in self._blocks.items()}
        blocks[""] = values[metric] - sum(blocks.values())
        strength = pupil.extras.get(f"{_STATE}.strength")
        return Note(
            step=pupil.step,
            level=leg.level,
            strength=self.spec.strength if strength is None else float(strength),
            cost={one: polynomials.cost(one, value) for one, value in values.items()},
            metric=metric,
            blocks={block: round(value / polynomials.fractions.get(metric, 1)) for block, value in blocks.items()},
        )

    def candidate(self, pupil: Pupil, level: int) -> Candidate:
        """The widths alive, each at the choice next to it, brought within the level's budget."""
        counts = self.counts(self.alive(pupil))
        choices = {
            site.name: min(site.choices, key=lambda choice: (abs(choice - count), -choice))
            for site, count in zip(self._space.sites, counts, strict=True)
        }
        return Projector(self._costs, self._levels[level]).project(self._space.candidate(choices))

    def widths(self, pupil: Pupil) -> dict[str, int]:
        """Channels alive, by width site."""
        counts = self.counts(self.alive(pupil))
        return {self._space.sites[site].name: int(counts[site]) for site in self.sites}

    def snapshot(self, pupil: Pupil) -> bytes:
        """
        The network as it is, to graft from: the strongest channels of each site first, the dead last and ready to be
        used again. Safetensors, for `Learned`.
        """
        network, alive = copy.deepcopy(pupil.model).cpu(), self.of_sites(self.alive(pupil))
        with torch.no_grad():
            strengths = self.of_sites(Strengths(self.survey, network)().double().numpy())
        revived(self.survey, network, alive)
        self.survey.sort(network, {site: np.where(alive[site], 1 + strengths[site], 0) for site in self.sites})
        tensors = {f"model.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
        counts = torch.from_numpy(self.counts(self.alive(pupil)).astype(np.int64))
        return save({**tensors, "counts": counts})

    def _first(self, channels: Mapping[int, int]) -> Alive:
        """The first so many channels of each site."""
        parts = []
        for site in self.sites:
            width = self.survey.widths[site]
            parts.append(np.arange(width.units) < channels[site] // width.unit)
        return np.concatenate(parts)

    def _strength(self, at: int) -> float:
        """The last rule that fits the site counts."""
        site, found = self._space.sites[at], 1.0
        for rule in self.spec.blocks:
            if fnmatchcase(site.name, rule.match) or fnmatchcase(site.block, rule.match):
                found = rule.strength
        return found

    def _ceilings(self, level: Budget) -> dict[str, float]:
        polynomials = self._costs.polynomials
        return {metric: float(polynomials.ceiling(metric, limit)) for metric, limit in level.limits.items()}

    def _legs(self) -> tuple[Leg, ...]:
        """One a level, or one a block of each level; a level takes as long as it leads down, and a tenth at least."""
        begin, ways = dict(self._whole), []
        for level in self._levels:
            ceilings = self._ceilings(level)
            end = {metric: min(value, ceilings.get(metric, value)) for metric, value in begin.items()}
            ways.append((begin, end))
            begin = end
        depths = np.array([max(np.log(one[metric] / end[metric]) for metric in one) for one, end in ways])
        depths = np.maximum(depths, 0.1 * depths.max()) if depths.max() > 0 else np.ones(len(ways))
        ends = np.rint(self.spec.steps * np.cumsum(depths) / depths.sum()).astype(int).tolist()
        legs = []
        for number, ((begin, end), start, stop) in enumerate(zip(ways, [0, *ends[:-1]], ends, strict=True)):
            for sites, first, last in self._turns():
                steps = [start + round((stop - start) * share) for share in (first, last)]
                costs = [_between(begin, end, share) for share in (first, last)]
                legs.append(Leg(number, steps[0], steps[1], self.spec.press, costs[0], costs[1], sites))
        return tuple(legs)

    def _turns(self) -> Iterator[tuple[tuple[int, ...], float, float]]:
        """
        The sites that are pressed together, and from where to where on the way, 0..1: all of them or, in turn, those of
        each block, which has as much of the way as it has of what the blocks could save.
        """
        pressed = {
            block: tuple(site for site in sites if self._strengths[site]) for block, sites in self._blocks.items()
        }
        if not self.spec.sequential:
            yield tuple(site for sites in pressed.values() for site in sites), 0.0, 1.0
            return
        saved = []
        for sites in pressed.values():
            counts = self._full.copy()
            counts[list(sites)] = [self._space.sites[site].least for site in sites]
            left = self.values(counts)
            saved.append(max(1 - left[metric] / whole for metric, whole in self._whole.items()))
        bounds = np.cumsum([0.0, *saved]) / (sum(saved) or 1.0)
        for sites, first, last in zip(pressed.values(), bounds[:-1], bounds[1:], strict=True):
            if last > first:
                yield sites, float(first), float(last)


class Structuring(Course):
    """A network whose channels die. Who is alive, and the common strength, are carried beside it."""

    def __init__(self, learning: Learning, student: nn.Module) -> None:
        super().__init__(student)
        self.stages = learning.stages
        self._learning = learning
        self._strengths = Strengths(learning.survey, student)
        self._deaths = Deaths(learning.survey, student)
        state = nn.Module()
        state.register_buffer("alive", torch.from_numpy(learning.all_alive()))
        state.register_buffer("strength", torch.tensor(learning.spec.strength, dtype=torch.float64))
        self.extras[_STATE] = state
        self._known: Alive | None = None
        self._costs: Mapping[str, float] = {}
        self._prices: dict[object, NDArray[np.float64]] = {}
        self._price: NDArray[np.float64] | None = None

    def before(self, step: int) -> None:
        alive, leg = self._alive(), self._learning.leg(step)
        end = leg.target(leg.stop)
        over = tuple(metric for metric, most in end.items() if self._costs[metric] > most)
        key = (leg.start, over)
        if key not in self._prices:
            self._prices[key] = self._learning.prices(alive, over, leg)
        self._price = self._prices[key] if over else None

    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        loss = self._learning.loss(forward(self.student, batch.images), batch.labels, batch.teacher_logits)
        return loss if self._price is None else loss + self._penalty(self._price)

    def _penalty(self, prices: NDArray[np.float64]) -> Tensor:
        strengths = self._strengths()
        weights = torch.from_numpy(prices).to(strengths)
        return self._state("strength").float() * (strengths * weights).sum()

    def after(self, step: int) -> None:
        if self._price is not None:
            self._press(step, self._price)
        self._deaths.apply()

    def _press(self, step: int, prices: NDArray[np.float64]) -> None:
        learning, alive = self._learning, self._alive()
        with torch.no_grad():
            values = self._strengths().double().cpu().numpy()
        self._strengths.give_back(alive, values, learning.leg(step).pressed)
        values = self._strengths.relative(values)
        if len(dying := learning.dying(alive, values, prices, step)):
            rest = alive.copy()
            rest[dying] = False
            self._know(rest)
            self._adapt(learning.leg(step), float(values[dying].max()))

    def _adapt(self, leg: Leg, last: float) -> None:
        """`last` is the strength of the strongest that just died, as a multiple of what is usual in the teacher."""
        strength, first = self._state("strength"), self._learning.spec.strength
        factor = 2 ** (_DOUBLINGS / (leg.stop - leg.start))
        strength.mul_(factor if last > self._learning.spec.threshold else 1 / factor)
        strength.clamp_(first / _MOST, first * _MOST)

    def _alive(self) -> Alive:
        if self._known is None:
            self._know(self._state("alive").cpu().numpy())
        assert self._known is not None  # noqa: S101 - it was just told
        return self._known

    def _know(self, alive: Alive) -> None:
        self._known, self._prices = alive, {}
        self._costs = self._learning.values(self._learning.counts(alive))
        self._deaths.tell(alive)
        self._state("alive").copy_(torch.from_numpy(alive))

    def _state(self, name: str) -> Tensor:
        return self.extras[_STATE].get_buffer(name)


class Learned:
    """
    Networks whose widths were learned, one a level, to graft from. A candidate gets its slice of that one whose widths
    are nearest to its own, by their ratios.
    """

    def __init__(self, survey: Survey, snapshots: Sequence[bytes]) -> None:
        self._survey, self._networks = survey, list[tuple[NDArray[np.float64], Donor]]()
        for snapshot in snapshots:
            tensors = load(snapshot)
            counts = tensors.pop("counts").double().numpy()
            network = copy.deepcopy(survey.teacher)
            network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
            self._networks.append((counts, Donor.of(network)))

    def graft(self, candidate: Candidate) -> nn.Module:
        widths = sorted(self._survey.widths)
        own = self._survey.space.array([candidate])[0][widths]

        def distance(counts: NDArray[np.float64]) -> float:
            return float(np.abs(np.log(own / counts[widths])).sum())

        return self._survey.graft(candidate, min(self._networks, key=lambda one: distance(one[0]))[1])


def _between(begin: Mapping[str, float], end: Mapping[str, float], share: float) -> dict[str, float]:
    return {metric: value ** (1 - share) * end[metric] ** share for metric, value in begin.items()}
