"""
The elastic student: one set of weights for all candidates, each of which is a slice of it.

It starts as the sorted teacher, and every step trains the slice of another candidate (Yu et al., "Slimmable Neural
Networks", 2019; Cai et al., "Once-for-All", 2020). Afterwards a candidate can be compared with others, and trained on,
from weights that have learned to be cut.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.func import functional_call

from search.budget import Budget
from search.plugins import CostModel
from search.projection import Projector
from search.space import Candidate
from search.strategies.breeding import mutant
from search.surgery import Donor, FactorKey, Survey

_LEVELS = 8
"""Budgets between the loosest and the tightest to which candidates are drawn."""
_POOL = 128
"""Candidates that are drawn at all: projecting one takes as long as a step of training a small one."""


class Elastic(nn.Module):
    """
    The shared weights, which are trained as any network is (`search.training`): images `[n, ...]` to logits
    `[n, classes]` of the candidate whose turn it is, another at every call in training.

    Its batch-norm statistics are the teacher's: those of a candidate are worked out when it is scored.
    """

    def __init__(self, survey: Survey, draw: Callable[[int], Candidate] | None = None) -> None:
        """`draw` gives the candidate of a step; who only grafts needs none."""
        super().__init__()
        self._survey, self._draw = survey, draw
        self.network = copy.deepcopy(survey.teacher)
        self._keys = factor_keys(survey)
        pairs = [survey.donor.factors.of(layer, size, separable=separable) for layer, size, separable in self._keys]
        self.pairs = nn.ParameterList([nn.Parameter(tensor.clone()) for pair in pairs for tensor in pair])
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        if self._draw is None:
            raise RuntimeError("nothing says which candidate is to be trained")
        candidate = self._draw(int(self.step))
        self.step += 1
        student = self._survey.graft(candidate).to(images.device).train(self.training)
        parameters = {name for name, _ in student.named_parameters()}
        shared = self._survey.tensors(candidate, self.donor)
        logits: Tensor = functional_call(student, {name: shared[name] for name in parameters}, (images,))
        return logits

    @property
    def donor(self) -> Donor:
        """The weights as they are; gradients flow to them."""
        pairs = list(self.pairs)
        known = {key: (pairs[2 * at], pairs[2 * at + 1]) for at, key in enumerate(self._keys)}
        return Donor.of(self.network, known)

    def graft(self, candidate: Candidate) -> nn.Module:
        """The candidate's network with its slice of these weights, on the device they are on."""
        return self._survey.graft(candidate, self.donor)


def factor_keys(survey: Survey) -> tuple[FactorKey, ...]:
    """All factors that the operators of a space can ask for."""
    found: dict[FactorKey, None] = {}
    full = survey.space.full().as_dict()
    operators = [site for site in survey.space.sites if site.kind == "operator"]
    kernels = {site.name: site for site in survey.space.sites if site.kind == "kernel"}
    for site in operators:
        kernel = kernels.get(f"{site.name.removesuffix('.operator')}.kernel")
        for choice in site.choices[:-1]:
            for size in (None,) if kernel is None else kernel.choices:
                cropped = {} if kernel is None or size is None else {kernel.name: size}
                candidate = survey.space.candidate({**full, site.name: choice, **cropped})
                found |= dict.fromkeys(survey.factor_keys(candidate))
    return tuple(found)


def average(checkpoints: Sequence[bytes]) -> bytes:
    """
    The mean of checkpoints of `Pupil`s that trained the same weights side by side, momentum included (local SGD;
    Stich, "Local SGD Converges Fast and Communicates Little", 2019).
    """
    loaded = [load(checkpoint) for checkpoint in checkpoints]
    mean = {}
    for name in sorted({name for one in loaded for name in one}):
        some = next(one[name] for one in loaded if name in one)
        # Weights that no candidate of a worker has met have no momentum there.
        parts = [one.get(name, torch.zeros_like(some)) for one in loaded]
        mean[name] = torch.stack(parts).mean(dim=0) if some.is_floating_point() else some
    return save(mean)


class Draw:
    """
    The candidates that an elastic student is trained on: a function of a seed and a step, out of a pool.

    Budgets are drawn log-uniformly between the loosest of `levels` and the tightest. A share `focus` of the steps goes
    to mutants of `centres`, the others to candidates drawn at random; both are projected to the budget.
    """

    def __init__(
        self, costs: CostModel, levels: Sequence[Budget], centres: Sequence[Candidate], focus: float, seed: int
    ) -> None:
        self._space, self._centres, self._focus, self._seed = costs.space, centres, focus, seed
        self._projectors = [Projector(costs, budget) for budget in between(levels)]
        self._pool: dict[int, Candidate] = {}

    def __call__(self, step: int) -> Candidate:
        number = int(np.random.default_rng([self._seed, 0, step]).integers(_POOL))
        if number not in self._pool:
            self._pool[number] = self._drawn(np.random.default_rng([self._seed, 1, number]))
        return self._pool[number]

    def _drawn(self, rng: np.random.Generator) -> Candidate:
        near = len(self._centres) > 0 and rng.random() < self._focus
        if near:
            candidate = mutant(self._space, self._centres[int(rng.integers(len(self._centres)))], rng)
        else:
            candidate = self._space.sample(rng)
        return self._projectors[int(rng.integers(len(self._projectors)))].project(candidate)


def between(levels: Sequence[Budget], count: int = _LEVELS) -> list[Budget]:
    """Budgets from the loosest level to the tightest, evenly on a logarithmic scale; one where there is but one."""
    loosest, tightest = levels[0].limits, levels[-1].limits
    if len(levels) == 1:
        return [levels[0]]
    found = []
    for share in np.linspace(0, 1, count):
        limits = {
            metric: round(limit ** (1 - share) * tightest.get(metric, limit) ** share)
            for metric, limit in loosest.items()
        }
        found.append(Budget({**limits, **{metric: tightest[metric] for metric in tightest.keys() - limits.keys()}}))
    return found
