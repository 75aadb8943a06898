"""
Accuracy against costs, when no budget says which is worth what: the front of those that nothing beats in everything.

All of it is about losses `[n, 1 + costs]`: first the share of what lies between chance and perfection that is missed,
then each cost as a share of the teacher's. Smaller is better; 1 everywhere is the reference point, a network that
guesses and costs as much as the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.trial import State, Trial

Losses = NDArray[np.float64]


def fronts(losses: Losses) -> NDArray[np.int64]:
    """
    For each of n points how many fronts lie before it, `[n]`: 0 for those that no other is at least as good as in
    everything and better in something, 1 for those that only these beat, and so on (Deb et al., 2002, section III.A).
    """
    no_worse: NDArray[np.bool_] = np.all(losses[:, None] <= losses[None], axis=2)
    beats = no_worse & ~no_worse.T
    found = np.full(len(losses), -1, dtype=np.int64)
    front = 0
    while (found < 0).any():
        left = found < 0
        found[left & ~beats[left].any(axis=0)] = front
        front += 1
    return found


def hypervolume(losses: Losses) -> float:
    """
    The volume between the points and the reference point, 0..1: the share of all wishes that some point grants.

    By slices along the last loss, each the hypervolume of the points before it in one dimension less; exact, and meant
    for two to four losses (While et al., 2006, doi.org/10.1109/TEVC.2005.851275).
    """
    inside = losses[(losses < 1).all(axis=1)]
    if not len(inside):
        return 0.0
    if inside.shape[1] == 1:
        return float(1 - inside.min())
    ordered = inside[np.argsort(inside[:, -1], kind="stable")]
    ends = np.append(ordered[1:, -1], 1.0)
    volume = 0.0
    for place, thickness in enumerate(ends - ordered[:, -1]):
        if thickness > 0:
            volume += float(thickness) * hypervolume(ordered[: place + 1, :-1])
    return volume


def chosen(losses: Losses, count: int) -> list[int]:
    """
    Up to `count` points of the first front that together have much hypervolume, the one that adds most first.

    Greedy, which is never worse than 63 % of the best choice: hypervolume is submodular (Nemhauser et al., 1978).
    """
    first = {tuple(losses[at].tolist()): int(at) for at in np.flatnonzero(fronts(losses) == 0)[::-1]}
    left = sorted(first.values())
    picked: list[int] = []
    while left and len(picked) < count:
        best = max(left, key=lambda at: hypervolume(losses[[*picked, at]]))
        picked.append(best)
        left.remove(best)
    return picked


@dataclass(frozen=True)
class Front:
    """What a front is of: `costs` to be made small, what the teacher has of each, and what `chance` would reach."""

    costs: tuple[str, ...]
    teacher: Mapping[str, int]
    chance: float

    def losses(self, accuracies: Sequence[float], costs: Sequence[Mapping[str, int]]) -> Losses:
        """Of n networks; accuracies are 0..1."""
        missed = [[(1 - accuracy) / (1 - self.chance)] for accuracy in accuracies]
        shares = [[cost[metric] / max(self.teacher[metric], 1) for metric in self.costs] for cost in costs]
        return np.hstack([np.array(missed).reshape(-1, 1), np.array(shares).reshape(-1, len(self.costs))])

    def best(self, trials: Sequence[Trial], count: int) -> list[Trial]:
        """
        Up to `count` trials to be trained long. Those of the last rung first, for scores of different rungs cannot be
        compared; of each rung the front.
        """
        found: list[Trial] = []
        able = [trial for trial in trials if trial.state is not State.FAILED]
        for rung in sorted({trial.rung for trial in able if trial.scores}, reverse=True):
            here = [trial for trial in able if trial.rung == rung]
            losses = self.losses([trial.scores[-1].accuracy for trial in here], [trial.cost for trial in here])
            found += [here[at] for at in chosen(losses, count - len(found))]
        return found

    def course(self, trials: Sequence[Trial]) -> list[float]:
        """The hypervolume after each trial, in order of number, by the last score of each; 0 before the first."""
        scored = [trial for trial in sorted(trials, key=lambda trial: trial.number) if trial.scores]
        losses = self.losses([trial.scores[-1].accuracy for trial in scored], [trial.cost for trial in scored])
        volumes: list[float] = []
        kept = losses[:0]
        for point in losses:
            kept = np.vstack([kept, point])
            kept = kept[fronts(kept) == 0]
            volumes.append(hypervolume(kept))
        return volumes
