"""Times, measured where the compute is: the table of a space, and students against their teacher."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.files import Files
from search.latency.machine import environment
from search.latency.measure import Network, compare
from search.latency.reading import Comparison
from search.latency.table import Table, tabulate
from search.limits import Measurement
from search.plugins import DatasetInfo
from search.recipe import Recipe, prepare
from search.spec import read_spec
from search.surgery import Survey
from workers.ports import Artifacts

_VERSION = 1
"""Of what a table holds and how it is measured; part of its key."""


@dataclass(frozen=True)
class Place:
    """What a worker needs to have the job's teacher at hand; picklable."""

    spec: Mapping[str, Any]
    info: DatasetInfo
    files: Files
    artifacts: Artifacts

    def survey(self) -> tuple[Recipe, Survey]:
        """Of an untrained teacher: no time depends on a weight's value."""
        recipe = prepare(read_spec(self.spec), self.files, info=self.info)
        teacher = recipe.teacher.build(self.info.shape, len(self.info.classes), seed=recipe.spec.search.seed)
        return recipe, recipe.survey(teacher)


@dataclass(frozen=True)
class Tabling:
    """A table to be made."""

    place: Place
    measurement: Measurement


@dataclass(frozen=True, slots=True)
class Tabled:
    """A table that is there, under a key of all that decides it: space, measurement and machine."""

    key: str


@dataclass(frozen=True)
class Race:
    """A student to be timed against its teacher: the candidate of these choices or, in `file`, its exported form."""

    place: Place
    measurement: Measurement
    choices: Mapping[str, int]
    file: str | None = None
    """Key of the artifact."""


def tabulated(tabling: Tabling) -> Iterator[int | Tabled]:
    """Yields how many networks are measured, after each, and at the end the table; at once when it is kept already."""
    place = tabling.place
    recipe, found = place.survey()
    key = _key(recipe, found, tabling.measurement)
    if not place.artifacts.has(key):
        blocks = sorted(block for block in found.block_costs if block)
        for word in tabulate(found, blocks, place.info.shape, tabling.measurement):
            if isinstance(word, Table):
                place.artifacts.put(key, word.model_dump_json().encode())
            else:
                yield word
    yield Tabled(key)


def raced(race: Race) -> Iterator[Comparison]:
    """Yields the student's times (`first`) beside the teacher's (`second`), measured in turns."""
    _, found = race.place.survey()
    with tempfile.TemporaryDirectory(prefix="sth-race-") as folder:
        student: Network = Path(folder) / "student.onnx"
        if race.file is not None and race.measurement.runtime.startswith("onnxruntime"):
            Path(folder, "student.onnx").write_bytes(race.place.artifacts.get(race.file))
        else:
            student = found.graft(found.space.candidate(race.choices))
        yield compare(student, found.teacher, race.place.info.shape, race.measurement)


def read_table(artifacts: Artifacts, key: str) -> Table:
    return Table.model_validate_json(artifacts.get(key))


def _key(recipe: Recipe, found: Survey, measurement: Measurement) -> str:
    teacher = recipe.spec.teacher
    decides = [
        _VERSION,
        [teacher.name, teacher.options, recipe.info.shape, len(recipe.info.classes)],
        found.space.key,
        measurement.model_dump(mode="json"),
        environment(measurement),
    ]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]
    return f"latency/{digest}.json"
