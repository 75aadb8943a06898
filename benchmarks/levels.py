"""
What a ladder's sampler should be told: the best accuracy found at each level of a made-up space, by what TPE hears.

    python -m benchmarks.levels

Ten widths of eight choices; a network costs its widths squared, weighted, and loses accuracy by how far each width is
cut, weighted too, both weights drawn anew for each of twelve spaces. A score has noise of half a point. Three levels,
at 60, 30 and 10 % of the teacher, share the trials.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from search.budget import Budget
from search.costs.polynomial import Polynomials, Term, Variable
from search.plugins import Strategy
from search.projection import Projector
from search.space import Site, Space
from search.strategies.random import Random
from search.strategies.tpe import Tpe
from search.strategies.wrappers import Distinct, Projected
from search.trial import Score, Trial

SITES, CHOICES = 10, 8
SPACES, TRIALS, SHARES = 12, (24, 60, 120), (0.6, 0.3, 0.1)


class Scores(Projected):
    """Tells the sampler the scores themselves."""

    def _relative(self, trial: Trial) -> Trial:
        return trial


class MadeUp:
    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        choices = tuple(range(1, CHOICES + 1))
        self.space = Space(tuple(Site(f"site{at}", "width", f"block{at}", choices) for at in range(SITES)))
        self._weights = rng.integers(5, 100, SITES)
        harms = rng.exponential(1, SITES)
        self._harms = harms / harms.sum()

    def costs_of(self, choices: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
        return {"macs": (choices**2 * self._weights).sum(axis=1)}

    @property
    def polynomials(self) -> Polynomials:
        widths = [site.choices for site in self.space.sites]
        variables = [Variable((at,), choices) for at, choices in enumerate(widths)]
        terms = tuple(Term(int(weight), (at, at)) for at, weight in enumerate(self._weights))
        return Polynomials(widths, variables, {"macs": terms})

    def accuracy(self, choices: NDArray[np.int64]) -> float:
        return 0.98 - 0.6 * float((self._harms * (1 - choices / CHOICES) ** 2).sum())


def search(sampler: Strategy, wrapper: type[Projected], seed: int, trials: int) -> list[float]:
    """The best accuracy, without noise, among the trials that fit each level."""
    model = MadeUp(seed)
    full = int(model.costs_of(model.space.array([model.space.full()]))["macs"][0])
    levels = [Budget({"macs": int(full * share)}) for share in SHARES]
    strategy = Distinct(wrapper(sampler, *(Projector(model, budget) for budget in levels)))
    strategy.open(model.space, seed)
    noise, best = np.random.default_rng(1000 + seed), [0.0] * len(levels)
    for number in range(trials):
        proposal = strategy.ask()
        if proposal is None:
            break
        candidate = proposal.candidate
        row = model.space.array([candidate])
        cost, accuracy = {"macs": int(model.costs_of(row)["macs"][0])}, model.accuracy(row[0])
        for level, budget in enumerate(levels):
            if budget.holds(cost):
                best[level] = max(best[level], accuracy)
        score = Score(0, 10, accuracy + noise.normal(0, 0.005), 0.0, 0.0)
        origin = proposal.origin.as_dict()
        strategy.tell(
            Trial(f"trial{number}", number, candidate.key, candidate.as_dict(), origin, cost, scores=(score,))
        )
    return best


def main() -> None:
    print("| trials | sampler | is told | " + " | ".join(f"at {share:.0%}" for share in SHARES) + " |")
    print("|---:|---|---|" + "---:|" * len(SHARES))
    for trials in TRIALS:
        for name, told, wrapper in (("random", "", Scores), ("tpe", "scores", Scores), ("tpe", "relative", Projected)):
            found = [
                search(Random(Random.Options()) if name == "random" else Tpe(Tpe.Options()), wrapper, seed, trials)
                for seed in range(SPACES)
            ]
            means, errors = np.mean(found, axis=0), np.std(found, axis=0) / SPACES**0.5
            cells = " | ".join(f"{mean:.2%} ± {error:.2%}" for mean, error in zip(means, errors, strict=True))
            print(f"| {trials} | {name} | {told} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
