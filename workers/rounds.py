"""
The worker's side of the elastic student: local SGD (Stich, "Local SGD Converges Fast and Communicates Little", 2019).

In every round each worker trains the shared weights alone, on a stream of batches and candidates of its own; the driver
takes the mean of what they come to, and the next round begins from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from search.batches import placed
from search.budget import Budget
from search.course import Coursed
from search.distillers.hinton import Hinton
from search.elastic import Draw, Elastic
from search.errors import NonFinite, UserError
from search.latency.model import Timed
from search.plugins import Distiller
from search.surgery import Survey
from search.training import Pupil, Stretch, train
from workers.desk import Desk, desk_of
from workers.timing import read_table
from workers.workload import Workload

_EVERY = 20


@dataclass(frozen=True)
class Focus:
    """On what an elastic student is trained: budgets, loosest first, candidates to stay near, tables of times."""

    levels: tuple[Mapping[str, int], ...]
    centres: tuple[Mapping[str, int], ...]
    """By their choices."""
    tables: Mapping[str, str]
    """Artifacts by measured metric, without which no limit of a time could be kept."""


@dataclass(frozen=True)
class Round:
    """Steps `start` to `stop` of the `end` that the worker of a stream walks in all."""

    stream: int
    start: int
    stop: int
    end: int
    focus: Focus
    read: str | None
    """Key of the weights to begin with; None: the teacher's."""
    write: str
    """Key for what the worker comes to."""


def walk(stint: Round, workload: Workload) -> Iterator[int]:
    """
    Yields the steps walked, now and then and at the end, when the weights are stored.

    Raises:
        UserError: the training diverges.
    """
    desk = desk_of(workload)
    seed = desk.spec.search.seed + stint.stream
    pupil = Pupil(Elastic(desk.survey, _draw(desk, stint.focus, seed, workload)).to(desk.train.normalise.device))
    if stint.read is not None:
        pupil.restore(workload.artifacts.get(stint.read))
    source = placed(replace(desk.train, seed=seed))
    stretch = Stretch(stint.start, stint.stop, (0, stint.end))
    try:
        for step, _ in train(
            pupil, source, _shared(desk.distillers["search"]), desk.spec.search.elastic.training, stretch
        ):
            if step % _EVERY == 0 and step < stint.stop:
                yield step - stint.start
    except NonFinite as error:
        raise UserError(f"the elastic student diverged: {error}", pointer="/search/elastic/training") from None
    workload.artifacts.put(stint.write, pupil.checkpoint())
    yield stint.stop - stint.start


def _shared(distiller: Distiller) -> Distiller:
    """What trains all candidates at once: that of the trials, unless it looks at more than logits."""
    return Hinton(Hinton.Options()) if isinstance(distiller, Coursed) else distiller


def elastic_of(survey: Survey, workload: Workload, key: str) -> Elastic:
    """The elastic student whose weights are that artifact, to graft from."""
    pupil = Pupil(elastic := Elastic(survey))
    pupil.restore(workload.artifacts.get(key))
    return elastic


def _draw(desk: Desk, focus: Focus, seed: int, workload: Workload) -> Draw:
    name = json.dumps([asdict(focus), seed], sort_keys=True)
    if name not in desk.draws:
        tables = {metric: read_table(workload.artifacts, key) for metric, key in focus.tables.items()}
        costs = Timed(desk.survey, tables) if tables else desk.survey
        centres = [desk.survey.space.candidate(choices) for choices in focus.centres]
        share = desk.spec.search.elastic.focus
        desk.draws[name] = Draw(costs, [Budget(limits) for limits in focus.levels], centres, share, seed)
    return desk.draws[name]
