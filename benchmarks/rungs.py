"""
Who should be trained further, on made-up learning curves and a virtual clock.

    python -m benchmarks.rungs

A trial's accuracy after t steps is q - a exp(-t / tau) and noise of 0.4 points; q varies by a point. One in seven is a
slow starter: tau is three times as long, so that it lies behind after 40 steps, and its q is as good as any other's.
Trials take 0.5 to 1.5 units a step. Rungs at 40, 120 and 360 steps, one in three goes on, several workers. `former` is
the rule of asynchronous halving: the best third of those scored so far, promotions before proposals. `all` stops
nobody; `full rungs` waits for every rung.

Told for each: how many come to the second and the last rung; steps trained; how far the true quality of the best on the
last rung (by its score) lies below that of the best trial of all; the share of the workers' time in which they stand
idle; and, of those exempt from stopping, how many then beat every regular one at the next rung, with the share that
would: of all trials that a rung stopped, as many would have been its best at the next one.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.evidence import exempt_wins
from search.rungs import Rungs, ranked
from search.trial import Score, State, Trial

STEPS, REDUCTION, SEARCHES = (40, 120, 360), 3, 300
SIZES = ((24, 2), (24, 8), (100, 8))


class Former(Rungs):
    """Nobody waits for anybody."""

    def promotable(self, trials: Sequence[Trial], to_come: int = 0) -> Trial | None:
        for rung in reversed(range(len(self.steps) - 1)):
            scored = ranked(trials, rung)
            for trial in scored[: len(scored) // self.reduction]:
                if trial.rung == rung + 1 and trial.state is State.PENDING:
                    return trial
        if to_come or ranked(trials, len(self.steps) - 1) or any(trial.state is State.RUNNING for trial in trials):
            return None
        waiting = (trial for rung in (1, 0) for trial in ranked(trials, rung) if trial.state is State.PENDING)
        return next(waiting, None)


class Full(Rungs):
    """Successive halving in step."""

    def promotable(self, trials: Sequence[Trial], to_come: int = 0) -> Trial | None:
        found = super().promotable(trials, to_come)
        if found is None or any(trial.state is State.RUNNING and trial.rung < found.rung for trial in trials):
            return None
        return found


class All(Rungs):
    def going_on(self, count: int) -> int:
        return count


@dataclass
class Curves:
    """Of `count` trials, made up."""

    seed: int
    count: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.quality = rng.normal(0.9, 0.01, self.count)
        self.slow = rng.random(self.count) < 1 / 7
        self._amplitude = rng.uniform(0.1, 0.3, self.count)
        self._tau = rng.uniform(25, 45, self.count) * np.where(self.slow, 3, 1)
        self.pace = rng.uniform(0.5, 1.5, self.count)
        self._noise = rng.normal(0, 0.004, (len(STEPS), self.count))

    def accuracy(self, number: int, rung: int) -> float:
        curve = self.quality[number] - self._amplitude[number] * np.exp(-STEPS[rung] / self._tau[number])
        return float(curve + self._noise[rung, number])


@dataclass
class Searched:
    trials: list[Trial]
    steps: int
    idle: float


def search(rungs: Rungs, curves: Curves, workers: int, *, early: bool) -> Searched:
    """Plays one search through; `early`: promotions go before proposals."""
    trials: list[Trial] = []
    busy: list[tuple[float, int, int]] = []
    ticket, now, worked, steps = itertools.count(), 0.0, 0.0, 0

    def next_one() -> Trial | None:
        to_come = curves.count - len(trials)
        promoted = rungs.promotable(trials, to_come) if early or not to_come else None
        if promoted is None and to_come:
            trials.append(Trial("", len(trials), str(len(trials)), {}, {}, {}))
            return trials[-1]
        return promoted

    while True:
        while len(busy) < workers and (trial := next_one()) is not None:
            done = trial.scores[-1].step if trial.scores else 0
            length = STEPS[trial.rung] - done
            steps += length
            worked += length * curves.pace[trial.number]
            trials[trial.number] = replace(trial, state=State.RUNNING, attempt=1)
            heapq.heappush(busy, (now + length * curves.pace[trial.number], next(ticket), trial.number))
        if not busy:
            return Searched(trials, steps, 1 - worked / (now * workers))
        now, _, number = heapq.heappop(busy)
        trial = trials[number]
        score = Score(trial.rung, STEPS[trial.rung], curves.accuracy(number, trial.rung), 0.0, 0.0)
        last = trial.rung + 1 == len(STEPS)
        state = State.COMPLETED if last else State.PENDING
        trials[number] = replace(trial, state=state, attempt=0, scores=(*trial.scores, score))


def main() -> None:
    print("| trials | workers | rule | second rung | last rung | steps | regret, points | idle | exempt that won |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|---:|")
    for count, workers in SIZES:
        rules = {
            "all": (All(STEPS, REDUCTION), False),
            "former": (Former(STEPS, REDUCTION), True),
            "full rungs": (Full(STEPS, REDUCTION), False),
            "ours": (Rungs(STEPS, REDUCTION), False),
            "ours, a tenth exempt": (Rungs(STEPS, REDUCTION, exempt=0.1), False),
            "ours, a quarter exempt": (Rungs(STEPS, REDUCTION, exempt=0.25), False),
        }
        for name, (rungs, early) in rules.items():
            regrets, reached, steps, idle, wins, drawn = [], [], [], [], 0, 0
            for seed in range(SEARCHES):
                curves = Curves(seed, count)
                found = search(rungs, curves, workers, early=early)
                [best] = rungs.best(found.trials, 1)
                regrets.append(100 * (curves.quality.max() - curves.quality[best.number]))
                reached.append([sum(trial.rung > rung for trial in found.trials) for rung in (1, 2)])
                steps.append(found.steps)
                idle.append(found.idle)
                won, of = exempt_wins(found.trials, rungs)
                wins, drawn = wins + won, drawn + of
            second, last = np.mean(reached, axis=0)
            error = np.std(regrets) / SEARCHES**0.5
            print(
                f"| {count} | {workers} | {name} | {second:.1f} | {last:.1f} | {np.mean(steps):,.0f} "
                f"| {np.mean(regrets):.2f} ± {error:.2f} | {np.mean(idle):.0%} "
                f"| {f'{wins} of {drawn}' if drawn else ''} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
