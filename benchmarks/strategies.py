"""
Which strategy finds the best network with how many trials, on made-up spaces.

    python -m benchmarks.strategies

Twelve widths of eight choices; a network costs its widths squared, weighted, and loses accuracy by how far each width
is cut, weighted, and by how unevenly neighbours are cut: that part no table of single choices knows. A score has noise
of half a point. The budget is 20 % of the teacher. Eight starts for `planned`, from harms that are wrong by a factor of
two either way; the even widths for the others. What is told: points of accuracy that the best trial by score lies below
the best network that was found by anybody in that space, without noise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from search.budget import Budget
from search.catalog import Catalog
from search.costs.polynomial import Polynomials, Term, Variable
from search.projection import Projector
from search.space import Site, Space
from search.spec import Pick
from search.starts import starts
from search.strategies.wrappers import Distinct, Projected, Started
from search.trial import Score, Trial

SITES, CHOICES, SHARE = 12, 8, 0.2
SPACES, TRIALS = 8, (12, 24)
STRATEGIES = ("uniform", "random", "evolution", "nsga2", "tpe", "gp", "planned")


class MadeUp:
    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._choices = tuple(range(1, CHOICES + 1))
        self.space = Space(tuple(Site(f"site{at}", "width", f"block{at}", self._choices) for at in range(SITES)))
        self._weights = rng.integers(5, 100, SITES)
        harms = rng.exponential(1, SITES)
        self._harms = harms / harms.sum()
        self._known = self._harms * np.exp(rng.uniform(-np.log(2), np.log(2), SITES))

    def costs_of(self, choices: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
        return {"macs": (choices**2 * self._weights).sum(axis=1)}

    @property
    def polynomials(self) -> Polynomials:
        variables = [Variable((at,), self._choices) for at in range(SITES)]
        terms = tuple(Term(int(weight), (at, at)) for at, weight in enumerate(self._weights))
        return Polynomials([self._choices] * SITES, variables, {"macs": terms})

    def accuracy(self, choices: NDArray[np.int64]) -> float:
        kept = choices / CHOICES
        return 0.98 - 0.5 * float((self._harms * (1 - kept) ** 2).sum()) - 0.2 * float(np.diff(kept).var())

    def table(self) -> list[list[float]]:
        return [[float(harm * (1 - choice / CHOICES) ** 2) for choice in self._choices] for harm in self._known]


def search(name: str, seed: int) -> tuple[list[float], float]:
    """The true accuracy of the best by score after so many trials, and the seconds that deciding took."""
    model = MadeUp(seed)
    full = int(model.costs_of(model.space.array([model.space.full()]))["macs"][0])
    budget = Budget({"macs": int(full * SHARE)})
    began = time.perf_counter()
    made = Catalog().make("strategies", Pick(name=name))
    known = starts(model, [budget], model.table() if made.needs_plan else None, 8)
    planned = time.perf_counter() - began
    strategy = Distinct(Started(Projected(made, Projector(model, budget))))
    strategy.open(model.space, seed, known)
    noise, best, reached, spent = np.random.default_rng(1000 + seed), (0.0, 0.0), list[float](), planned
    for number in range(max(TRIALS)):
        began = time.perf_counter()
        proposal = strategy.ask()
        spent += time.perf_counter() - began
        if proposal is not None:
            row = model.space.array([proposal.candidate])
            accuracy = model.accuracy(row[0])
            score = Score(0, 10, accuracy + noise.normal(0, 0.005), 0.0, 0.0)
            best = max(best, (score.accuracy, accuracy))
            cost = {"macs": int(model.costs_of(row)["macs"][0])}
            candidate, origin = proposal.candidate, proposal.origin.as_dict()
            strategy.tell(
                Trial(
                    f"trial{number}", number, candidate.key, candidate.as_dict(), origin, cost,
                    scores=(score,), extra=proposal.extra,
                )
            )  # fmt: skip
        if number + 1 in TRIALS:
            reached.append(best[1])
    return reached, spent


def main(names: Sequence[str] = STRATEGIES) -> None:
    found: dict[str, NDArray[np.float64]] = {}
    seconds: dict[str, float] = {}
    for name in names:
        results = [search(name, seed) for seed in range(SPACES)]
        found[name] = np.array([reached for reached, _ in results])
        seconds[name] = float(np.mean([spent for _, spent in results]))
    best = np.max([reached.max(axis=1) for reached in found.values()], axis=0)
    print("| strategy | " + " | ".join(f"{trials} trials" for trials in TRIALS) + " | seconds deciding |")
    print("|---|" + "---:|" * (len(TRIALS) + 1))
    for name, reached in found.items():
        regret = 100 * (best[:, None] - reached)
        means, errors = regret.mean(axis=0), regret.std(axis=0) / SPACES**0.5
        cells = " | ".join(f"{mean:.2f} ± {error:.2f}" for mean, error in zip(means, errors, strict=True))
        print(f"| {name} | {cells} | {seconds[name]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
