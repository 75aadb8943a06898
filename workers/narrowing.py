"""The worker's side of widths that are learned: one training with checkpoints, which can be gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from search.batches import placed
from search.budget import Budget
from search.course import Coursed, Material
from search.distillers.hinton import Hinton
from search.errors import NonFinite, UserError
from search.latency.model import Timed
from search.structure import Learned, Learning
from search.surgery import Survey
from search.training import Pupil
from workers.desk import Desk, desk_of
from workers.results import LearnedResult, WayResult
from workers.timing import read_table
from workers.workload import Workload

_STEPS = 10
"""Steps between two signs of life."""


@dataclass(frozen=True)
class Descent:
    """`levels` are their limits, loosest first; `tables` those of times by metric; `folder` is where to keep things."""

    levels: tuple[Mapping[str, int], ...]
    tables: Mapping[str, str]
    folder: str
    weights: str
    """What keys of the networks to graft from begin with."""


def narrow(descent: Descent, workload: Workload) -> Iterator[int | WayResult | LearnedResult]:
    """
    Yields the steps walked, now and then; where the learning stands after every checkpoint; and what was learned for a
    level when it is over. What a former worker has come to is said again.

    Raises:
        UserError: the training diverges.
    """
    desk, artifacts = desk_of(workload), workload.artifacts
    spec, device = desk.spec.search.structure, workload.device()
    learning = _learning(desk, descent, workload)
    pupil = learning.begin()
    pupil.model.to(device)
    kept, told = f"{descent.folder}/pupil.safetensors", f"{descent.folder}/way.json"
    words: list[WayResult | LearnedResult] = []
    if artifacts.has(kept):
        pupil.restore(artifacts.get(kept))
        words = _until(_read(artifacts.get(told)), pupil.step, learning.ends)
        yield from _said(words)
    source = placed(desk.train)
    material = Material.of(desk.survey, source, desk.spec.search.views, spec.steps, device, desk.spec.search.seed)
    stops = sorted({*range(spec.every, spec.steps, spec.every), *learning.ends})
    for stop in (stop for stop in stops if stop > pupil.step):
        try:
            for step, _ in learning.walk(pupil, source, stop, material):
                if step % _STEPS == 0 and step < stop:
                    yield step
        except NonFinite as error:
            raise UserError(f"the widths cannot be learned: {error}", pointer="/search/structure/training") from None
        fresh: list[WayResult | LearnedResult] = [_way(learning, pupil)]
        for level in (level for level, end in enumerate(learning.ends) if end == stop):
            key = f"{descent.weights}-{level}.safetensors"
            artifacts.put(key, learning.snapshot(pupil))
            fresh.append(
                LearnedResult(
                    alive=learning.widths(pupil),
                    cost=learning.note(pupil).cost,
                    choices=learning.candidate(pupil, level).as_dict(),
                    weights=key,
                )
            )
        words += fresh
        artifacts.put(told, json.dumps([word.model_dump(mode="json") for word in words]).encode())
        artifacts.put(kept, pupil.checkpoint())
        yield from _said(fresh)


def learned_of(survey: Survey, workload: Workload, keys: Sequence[str]) -> Learned:
    """The networks of these artifacts, to graft from."""
    return Learned(survey, [workload.artifacts.get(key) for key in keys])


def _learning(desk: Desk, descent: Descent, workload: Workload) -> Learning:
    tables = {metric: read_table(workload.artifacts, key) for metric, key in descent.tables.items()}
    costs = Timed(desk.survey, tables) if tables else desk.survey
    teach = desk.distillers["search"]
    if isinstance(teach, Coursed):  # it looks at more than logits
        teach = Hinton(Hinton.Options())
    levels = [Budget(limits) for limits in descent.levels]
    return Learning(desk.survey, costs, levels, teach, desk.spec.search.structure)


def _way(learning: Learning, pupil: Pupil) -> WayResult:
    note = learning.note(pupil)
    return WayResult(step=note.step, strength=note.strength, metric=note.metric, blocks=note.blocks)


def _read(told: bytes) -> list[WayResult | LearnedResult]:
    kinds: Mapping[bool, type[WayResult | LearnedResult]] = {True: WayResult, False: LearnedResult}
    return [kinds["step" in word].model_validate(word) for word in json.loads(told)]


def _said(words: Sequence[WayResult | LearnedResult]) -> Iterator[WayResult | LearnedResult]:
    """One after the other. Ray sends to the generators that it walks, and a list's iterator takes nothing."""
    for word in words:  # noqa: UP028
        yield word


def _until(
    words: Sequence[WayResult | LearnedResult], step: int, ends: Sequence[int]
) -> list[WayResult | LearnedResult]:
    """What was said up to the step of a checkpoint: it may be older than the last word."""
    over = iter(ends)
    return [word for word in words if (word.step if isinstance(word, WayResult) else next(over)) <= step]
