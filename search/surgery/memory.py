"""Which activations are alive at which step of a run, and what of them follows from which width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from search.surgery.channels import Channels
from search.surgery.flow import Flow, Indices
from search.surgery.groups import Grouping

Strand = tuple[int, int]
"""A group, and how many channels of each of its units."""


@dataclass(frozen=True, slots=True)
class Moment:
    """
    One operation. `alive` are the values it needs or leaves, and those kept for later; `output` is the one it writes
    afresh, `last` those it is the last to read.
    """

    module: str
    alive: tuple[int, ...]
    output: int | None
    last: tuple[int, ...]


class Memory:
    """
    A value is alive from the operation that writes it to the last that reads it; what nothing reads is not counted.

    Values are named by their order of birth, which is the same at every size of image. `blocks` are removable.
    """

    def __init__(self, flows: Sequence[Flow], channels: Channels, grouping: Grouping, blocks: Sequence[str]) -> None:
        self.runs = [Run(flow) for flow in flows]
        self._run = self.runs[-1]
        self._channels, self._grouping, self._blocks = channels, grouping, blocks
        self._parts: dict[int, dict[Strand | None, list[int]]] = {}

    def moments(self) -> Iterator[Moment]:
        run = self._run
        alive: set[int] = set()
        for at, step in enumerate(run.flow.steps):
            born = [value for value in (run.name[memory] for memory in step.writes) if run.born[value] == at]
            counted = [value for value in born if run.dies[value] >= at]
            alive.update(counted, (value for value in run.begins if at == 0))
            last = tuple(value for value in alive if run.dies[value] == at)
            yield Moment(step.module, tuple(sorted(alive)), counted[0] if counted else None, last)
            alive.difference_update(last)

    def written(self) -> Iterator[tuple[str, int]]:
        """Modules and the values that they write."""
        for moment in self.moments():
            if moment.output is not None:
                yield moment.module, moment.output

    def parts(self, value: int) -> dict[Strand | None, list[int]]:
        """The bytes of a value at every size of image, by the strand they follow from; None: they always stay."""
        if value not in self._parts:
            found: dict[Strand | None, list[int]] = {}
            for at, run in enumerate(self.runs):
                for strand, size in self._split(run, value).items():
                    found.setdefault(strand, [0] * len(self.runs))[at] = size
            self._parts[value] = found
        return self._parts[value]

    def blocks_to_stand(self, value: int, moment: Moment) -> list[str]:
        """
        What a removed block gives back is what it got. Where that is alive anyway, the value takes memory of its own
        only while one of these blocks stands; no blocks: it always does.
        """
        blocks: list[str] = []
        current = value
        while current in self._given:
            block, source = self._given[current]
            blocks.append(block)
            if source in moment.alive or _is_of(moment.module, block):
                return blocks
            current = source
        return []

    @cached_property
    def _given(self) -> dict[int, tuple[str, int]]:
        """For values that removable blocks leave: the block, and the value that it got."""
        run = self._run
        found: dict[int, tuple[str, int]] = {}
        for block in self._blocks:
            inside = [at for at, step in enumerate(run.flow.steps) if _is_of(step.module, block)]
            if not inside:
                continue
            first, last = inside[0], inside[-1]
            read = {run.name[memory] for at in inside for memory in run.flow.steps[at].reads}
            source = next((value for value in sorted(read) if run.born[value] < first), None)
            for value in range(len(run.born)):
                if source is not None and first <= run.born[value] <= last < run.dies[value]:
                    found[value] = (block, source)
        return found

    def _split(self, run: Run, value: int) -> dict[Strand | None, int]:
        found = run.flow.values[run.memory[value]]
        if found.labels is None:
            return {None: found.bytes}
        small = found.labels
        for dim in range(small.dim()):
            if small.stride(dim) == 0:
                small = small.narrow(dim, 0, 1)
        labels = small.reshape(-1).numpy()
        each = found.bytes // max(labels.size, 1)
        strands = self._strand_of[self._channels.labels[labels - 1]]
        strands[labels == 0] = -1
        numbers, counts = np.unique(strands, return_counts=True)
        parts: dict[Strand | None, int] = {}
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            parts[None if number < 0 else self._strands[number]] = count * each
        return parts

    @cached_property
    def _strands(self) -> list[Strand]:
        return sorted(
            {(group, table.width) for lane in self._grouping.lanes.values() for group, table in lane.tables.items()}
        )

    @cached_property
    def _strand_of(self) -> Indices:
        """By label, the number of its strand; -1 for what always stays."""
        found = np.full(int(self._channels.labels.max(initial=0)) + 1, -1, dtype=np.int64)
        for key, lane in self._grouping.lanes.items():
            axis = self._channels.axes[key]
            for group, table in lane.tables.items():
                labels = self._channels.labels[axis.start + table.addresses]
                found[labels] = self._strands.index((group, table.width))
        return found


class Run:
    """
    One flow, its values named by their order of birth: the steps at which they are written first and read last, and
    which are there from the beginning.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.memory = list(flow.values)
        self.name = {memory: value for value, memory in enumerate(self.memory)}
        self.born = [-1] * len(self.memory)
        self.dies = [-2] * len(self.memory)
        seen: set[int] = set()
        for at, step in enumerate(flow.steps):
            for memory in step.reads:
                self.dies[self.name[memory]] = at
                seen.add(memory)
            for memory in step.writes:
                if memory not in seen:
                    self.born[self.name[memory]] = at
                    seen.add(memory)
        for memory in flow.outputs & self.name.keys():
            self.dies[self.name[memory]] = len(flow.steps)
        self.begins = [value for value in range(len(self.memory)) if self.born[value] < 0 <= self.dies[value]]

    def bytes(self, value: int) -> int:
        return self.flow.values[self.memory[value]].bytes


def _is_of(module: str, block: str) -> bool:
    return module == block or module.startswith(f"{block}.")
