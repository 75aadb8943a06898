"""
What is made ready before a search, by a job that asks for it: library, plan, elastic student, learned widths.

Each is kept by a key of all that decides it. What another job has made is taken over; what a dead driver has begun is
gone on with.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from search.budget import Budget
from search.elastic import average
from search.library import Lot, harm_table, lots
from search.recipe import Costs
from search.spec import JobSpec, read_spec
from search.starts import starts
from search.training import step_of
from workers.backends.base import Backend
from workers.narrowing import Descent, narrow
from workers.ports import Artifacts, Claim
from workers.results import (
    ElasticResult,
    LearnedResult,
    LibraryResult,
    PlanResult,
    StartResult,
    StructureResult,
    WayResult,
)
from workers.rounds import Focus, Round, walk
from workers.sessions import Pace, Watch
from workers.shelves import Index, Shelved, Shelves, learn_lots
from workers.workload import Workload

_VERSION = 1
"""Of how elastic students are trained and widths learned; part of their keys."""
_STARTS = 4
"""Of every level. Four take half a second to find on a small network, eight take three."""
_CHUNKS = 4
"""Pieces of the library for each worker: enough that none waits long for the last."""


class Preparing:
    """
    The phases between survey and search, on the workers of a job.

    `note` writes an event and raises when the job shall stop; `ended_early` is what to raise when workers ended without
    an answer.
    """

    def __init__(
        self,
        claim: Claim,
        workload: Workload,
        costs: Costs,
        levels: Sequence[Budget],
        backend: Backend,
        watch: Watch,
        note: Callable[..., None],
        ended_early: Callable[[], Exception],
    ) -> None:
        self._claim, self._workload, self._costs, self._levels = claim, workload, costs, levels
        self._backend, self._watch, self._note, self._ended_early = backend, watch, note, ended_early
        self._spec: JobSpec = read_spec(claim.spec)

    def library(self) -> LibraryResult:
        """Learns the lots that are on no shelf yet, side by side."""
        wanted, pace = lots(self._costs.space, self._spec.search.library), Pace()
        shelves = Shelves.of(self._workload)
        known = shelves.find(wanted)
        missing = [lot for lot in wanted if lot not in known]
        for _, word in self._map(learn_lots, self._chunks(missing)):
            shelved: Shelved = word
            known[shelved.lot] = shelved
            if pace.due():
                self._note("PROGRESS", phase="library", done=len(known), total=len(wanted))
        if len(known) < len(wanted):
            raise self._ended_early()
        index = Index(shelved=tuple(known[lot] for lot in wanted))
        told = index.model_dump_json().encode()
        key = f"library/{hashlib.sha256(told).hexdigest()[:24]}.json"
        self._artifacts.put(key, told)
        return LibraryResult(
            index=key,
            entries=len(wanted),
            reused=len(wanted) - len(missing),
            trained=len(missing),
            failed=sum(one.harm is None for one in index.shelved),
            seconds=sum(known[lot].seconds for lot in missing),
        )

    def plan(self, library: LibraryResult) -> PlanResult:
        """At every level the candidates of least harm by the library, and that of even widths."""
        began, space = time.monotonic(), self._costs.space
        table = harm_table(space, Index.model_validate_json(self._artifacts.get(library.index)).harms)
        found = starts(self._costs, self._levels, table, _STARTS)
        return PlanResult(
            starts=tuple(
                StartResult(
                    level=start.level,
                    kind=start.kind,
                    choices=start.candidate.as_dict(),
                    harm=sum(
                        harms[site.choices.index(start.candidate[site.name])]
                        for site, harms in zip(space.sites, table, strict=True)
                    ),
                )
                for start in found
            ),
            seconds=time.monotonic() - began,
        )

    def elastic(self, plan: PlanResult | None, tables: Mapping[str, str]) -> ElasticResult:
        """Trains the shared weights in rounds, with a meeting of the workers after each."""
        began, settings = time.monotonic(), self._spec.search.elastic
        focus, streams, pace = self._focus(plan, tables), self._streams(), Pace()
        key = self._elastic_key(focus, streams)
        if self._artifacts.has(key):
            return ElasticResult(key=key, steps=settings.steps, reused=True, seconds=0.0)
        folder, end = f"jobs/{self._claim.job_id}/elastic", math.ceil(settings.steps / streams)
        met = f"{folder}/weights.safetensors"
        reached = step_of(self._artifacts.get(met)) if self._artifacts.has(met) else 0
        while reached < end:
            stop = min(reached + settings.every, end)
            rounds = [
                Round(
                    stream=stream,
                    start=reached,
                    stop=stop,
                    end=end,
                    focus=focus,
                    read=met if reached else None,
                    write=f"{folder}/stream-{stream}.safetensors",
                )
                for stream in range(streams)
            ]
            walked = [0] * streams
            for stream, steps in self._map(walk, rounds):
                walked[stream] = steps
                if pace.due():
                    done = min(reached * streams + sum(walked), settings.steps)
                    self._note("PROGRESS", phase="elastic", done=done, total=settings.steps)
            if min(walked) < stop - reached:
                raise self._ended_early()
            self._artifacts.put(met, average([self._artifacts.get(one.write) for one in rounds]))
            reached = stop
        self._artifacts.put(key, self._artifacts.get(met))
        return ElasticResult(key=key, steps=settings.steps, reused=False, seconds=time.monotonic() - began)

    def structure(self, tables: Mapping[str, str]) -> StructureResult:
        """Learns widths in one training, on one worker."""
        began, steps = time.monotonic(), self._spec.search.structure.steps
        levels = tuple(dict(level.limits) for level in self._levels)
        key = self._structure_key(levels, tables)
        kept = f"structure/{key}.json"
        if self._artifacts.has(kept):
            known = StructureResult.model_validate_json(self._artifacts.get(kept))
            return known.model_copy(update={"reused": True, "seconds": 0.0})
        descent = Descent(levels, tables, f"jobs/{self._claim.job_id}/structure", f"structure/{key}")
        found, way, pace = list[LearnedResult](), list[WayResult](), Pace()
        for _, word in self._map(narrow, [descent]):
            if isinstance(word, LearnedResult):
                found.append(word)
            elif isinstance(word, WayResult):
                way.append(word)
                self._note("PROGRESS", phase="structure", done=word.step, total=steps, **word.model_dump())
            elif pace.due():
                self._note("PROGRESS", phase="structure", done=word, total=steps)
        if len(found) < len(levels):
            raise self._ended_early()
        result = StructureResult(
            levels=tuple(found), way=tuple(way), steps=steps, reused=False, seconds=time.monotonic() - began
        )
        self._artifacts.put(kept, result.model_dump_json().encode())
        return result

    @property
    def _artifacts(self) -> Artifacts:
        return self._workload.artifacts

    def _map(self, function: Callable[..., Iterator[Any]], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        resources = self._spec.resources
        for answer in self._backend.map(
            function,
            items,
            cpus=resources.cpus_per_trial,
            gpus=resources.gpus_per_trial,
            stopping=self._watch.stopping,
            shared=self._workload,
        ):
            self._watch.alive()
            yield answer

    def _chunks(self, missing: Sequence[Lot]) -> list[tuple[Lot, ...]]:
        """Neighbours stay together: they share the lessons of their block."""
        size = max(1, math.ceil(len(missing) / (_CHUNKS * self._spec.resources.concurrent_trials)))
        return [tuple(missing[at : at + size]) for at in range(0, len(missing), size)]

    def _streams(self) -> int:
        """Workers side by side; what they come to depends on their number."""
        search = self._spec.search
        return 1 if search.deterministic else min(self._spec.resources.concurrent_trials, search.elastic.steps)

    def _focus(self, plan: PlanResult | None, tables: Mapping[str, str]) -> Focus:
        levels = tuple(dict(level.limits) for level in self._levels)
        if not self._spec.search.elastic.focus:
            return Focus(levels, (), tables)
        known = starts(self._costs, self._levels) if plan is None else plan.known(self._costs.space)
        return Focus(levels, tuple(start.candidate.as_dict() for start in known), tables)

    def _structure_key(self, levels: Sequence[Mapping[str, int]], tables: Mapping[str, str]) -> str:
        search = self._spec.search
        decides = {
            "version": _VERSION,
            "teacher": self._workload.teacher,
            "data": [self._workload.info.key, search.views, search.seed],
            "space": self._costs.space.key,
            "structure": search.structure.model_dump(mode="json", exclude={"every"}),
            "distill": self._spec.distiller("search").model_dump(mode="json"),
            "levels": list(levels),
            "tables": dict(tables),
            "device": self._workload.device(),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]

    def _elastic_key(self, focus: Focus, streams: int) -> str:
        search, space = self._spec.search, self._costs.space
        decides = {
            "version": _VERSION,
            "teacher": self._workload.teacher,
            "data": [self._workload.info.key, search.views, search.seed],
            "space": space.key,
            "elastic": search.elastic.model_dump(mode="json"),
            "distill": self._spec.distiller("search").model_dump(mode="json"),
            "focus": asdict(focus),
            "streams": streams,
            "device": self._workload.device(),
        }
        return f"elastic/{hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]}.safetensors"
