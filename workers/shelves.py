"""
The library as it is kept, and the worker's side of making it.

An entry's key names all that decides it, and each is on its shelf before the next lot is begun: what was interrupted
goes on, and other budgets, jobs and sweeps find what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import ValidationError

from search.errors import NotFound, TrialError
from search.library import Entry, Librarian, Library, Lot, lot_key
from search.spec import LibrarySpec, read_spec
from search.surgery import Survey
from workers.assignment import Message
from workers.desk import desk_of
from workers.ports import Artifacts
from workers.workload import Workload

_READERS = 16
"""Shelves that are looked at side by side: a bucket answers late, but many at once."""


class Shelved(Message):
    """What is known of a lot without its weights."""

    site: str
    choice: int
    harm: float | None
    """In nats; None when a network with that choice alone cannot be trained."""
    seconds: float
    """Of learning it, whoever did."""

    @property
    def lot(self) -> Lot:
        return Lot(self.site, self.choice)


class Index(Message):
    """What is known of all lots of a job."""

    shelved: tuple[Shelved, ...]

    @property
    def harms(self) -> dict[Lot, float]:
        """By lot, of those that could be trained."""
        return {one.lot: one.harm for one in self.shelved if one.harm is not None}


@dataclass(frozen=True)
class Shelves:
    """The shelves of one teacher and the data that its blocks are distilled on."""

    artifacts: Artifacts
    teacher: str
    data: str
    spec: LibrarySpec

    @classmethod
    def of(cls, workload: Workload) -> Shelves:
        spec = read_spec(workload.spec)
        search = spec.search
        # What of the space decides how channels are ordered and how wide the full choices are; the choices do not.
        space = spec.space.model_dump_json(include={"groups", "include", "exclude", "blocks"})
        data = f"{workload.info.key}/{search.views}/{search.seed}/{workload.device()}/{space}"
        return cls(workload.artifacts, workload.teacher, data, search.library)

    def find(self, lots: Sequence[Lot]) -> dict[Lot, Shelved]:
        """What is there, and whole; the rest is left out."""
        with ThreadPoolExecutor(_READERS) as readers:
            return {one.lot: one for one in readers.map(self._find, lots) if one is not None}

    def entry(self, lot: Lot) -> Entry:
        """Raises `NotFound` when it is not there."""
        return Entry.unpack(self.artifacts.get(f"{self._key(lot)}.safetensors"))

    def put(self, shelved: Shelved, entry: Entry | None) -> None:
        """The entry first: what is told of a lot is what makes it known."""
        if entry is not None:
            self.artifacts.put(f"{self._key(shelved.lot)}.safetensors", entry.pack())
        self.artifacts.put(f"{self._key(shelved.lot)}.json", shelved.model_dump_json().encode())

    def _find(self, lot: Lot) -> Shelved | None:
        key = self._key(lot)
        try:
            found = Shelved.model_validate_json(self.artifacts.get(f"{key}.json"))
        except (NotFound, ValidationError):
            return None
        return found if found.harm is None or self.artifacts.has(f"{key}.safetensors") else None

    def _key(self, lot: Lot) -> str:
        return f"library/{lot_key(lot, self.teacher, self.data, self.spec)}"


def learn_lots(lots: Iterable[Lot], workload: Workload) -> Iterator[Shelved]:
    """Yields what is known of each lot once it is on its shelf."""
    desk, shelves = desk_of(workload), Shelves.of(workload)
    librarian = Librarian(desk.survey, desk.train, desk.validation, desk.spec.search.library)
    for lot in lots:
        entry: Entry | None = None
        try:
            entry = librarian.learn(lot)
        except TrialError:
            shelved = Shelved(site=lot.site, choice=lot.choice, harm=None, seconds=0.0)
        else:
            shelved = Shelved(site=lot.site, choice=lot.choice, harm=entry.harm, seconds=entry.seconds)
        shelves.put(shelved, entry)
        yield shelved


def library_of(survey: Survey, workload: Workload, index: str) -> Library:
    """The library whose index is that artifact."""
    known = Index.model_validate_json(workload.artifacts.get(index))
    return Library(survey, known.harms, Shelves.of(workload).entry)
