"""Where a worker works: the teacher built and surveyed, the data at hand. Set up once in a process, for a whole job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from search.batches import Cached, Normalise
from search.catalog import Catalog
from search.elastic import Draw
from search.plugins import Distiller
from search.recipe import survey_for
from search.spec import PARTS, JobSpec, Trained, read_spec
from search.surgery import Survey
from search.teachers.weights import load_weights
from workers.workload import Arrays, Workload


@dataclass(frozen=True)
class Desk:
    """All that a trial, an entry of the library or a round of the elastic student is made from."""

    spec: JobSpec
    survey: Survey
    distillers: Mapping[Trained, Distiller]
    """Of trials and of finalists."""
    train: Cached
    validation: Cached
    draws: dict[str, Draw] = field(default_factory=dict)
    """Pools of candidates take seconds to draw, and serve every round."""

    @classmethod
    def of(cls, workload: Workload, device: str) -> Desk:
        # Not `prepare`: a worker has no use for the dataset's and the strategy's libraries, which take seconds to load.
        spec, catalog, info = read_spec(workload.spec), Catalog(), workload.info
        teacher = catalog.make("teachers", spec.teacher).build(info.shape, len(info.classes))
        load_weights(teacher, workload.artifacts.get(workload.teacher))
        normalise = Normalise(info, device)
        return cls(
            spec,
            survey_for(info, teacher, spec.space),
            {part: catalog.make("distillers", spec.distiller(part)) for part in PARTS},
            _cached(workload.arrays, "train", normalise, spec.search.seed),
            _cached(workload.arrays, "validation", normalise, spec.search.seed),
        )


def desk_of(workload: Workload) -> Desk:
    """The process's desk for this work; the one of the job before it is cleared."""
    name = json.dumps([dict(workload.spec), workload.teacher, workload.info.key], sort_keys=True)
    if name not in _desks:
        _desks.clear()
        _desks[name] = Desk.of(workload, workload.device())
    return _desks[name]


_desks: dict[str, Desk] = {}


def _cached(arrays: Arrays, split: str, normalise: Normalise, seed: int) -> Cached:
    images, labels, logits = (np.asarray(arrays[f"{split}_{part}"]) for part in ("images", "labels", "logits"))
    return Cached(images, labels, logits, normalise, seed)
