"""Splitting examples so that nothing is on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from search.errors import DataError
from search.plugins import SplitName


def stratified(
    digests: Sequence[str],
    labels: Sequence[int],
    shares: Mapping[SplitName, float],
    seed: int,
    classes: Sequence[str],
) -> dict[SplitName, list[int]]:
    """
    Indices of each split: those of `shares`, and `train` for the rest.

    Each class gives its share, at least one example, to each split. Examples with equal digests stay together. The
    order is one of hashes: it depends on contents and seed, not on names or on the generator of some library.

    Raises:
        DataError: a class has fewer different examples than there are splits.
    """
    groups: dict[int, dict[str, list[int]]] = {}
    for index, (digest, label) in enumerate(zip(digests, labels, strict=True)):
        groups.setdefault(label, {}).setdefault(digest, []).append(index)
    split: dict[SplitName, list[int]] = {"train": [], **{name: [] for name in shares}}
    for label, of_class in sorted(groups.items()):
        order = sorted(of_class, key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).digest())
        if len(order) <= len(shares):
            raise DataError(
                f"class `{classes[label]}` has {len(order)} different images, too few for {len(shares) + 1} splits; "
                "add images or remove the class"
            )
        counts = {name: max(1, round(share * len(order))) for name, share in shares.items()}
        while sum(counts.values()) >= len(order):
            counts[max(counts, key=lambda name: counts[name])] -= 1
        start = 0
        for name, count in counts.items():
            split[name] += _members(of_class, order[start : start + count])
            start += count
        split["train"] += _members(of_class, order[start:])
    return split


def _members(groups: Mapping[str, list[int]], digests: Iterable[str]) -> list[int]:
    return [index for digest in digests for index in groups[digest]]
