"""
What each kind of plugin must have. Structural: a plugin inherits nothing.

The class of a plugin has a nested `Options`, a `search.part.Part`; the protocols below say what its instances do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from search.space import Candidate, Space
from search.spec import Task
from search.trial import Trial

if TYPE_CHECKING:  # torch is not imported by those who only read names and options
    from torch import Tensor, nn

    from search.costs.polynomial import Polynomials

SplitName = Literal["train", "validation", "test"]
Labels = NDArray[Any]
"""By image: a class each, `[n]` int64; of detection the rows of `search.boxes`, `[n, most, 7]` float32."""


@dataclass(frozen=True, slots=True)
class Split:
    """Images `[n, channels, size, size]` as uint8, and their labels. Read-only by convention."""

    images: NDArray[np.uint8]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """
    What is known of a dataset without opening its images.

    `key` names the content: equal keys, equal splits, less what a `Screened` dataset leaves out of them. `mean` and
    `std` are per channel on the 0..1 scale. `mirror` says whether what is seen in a mirrored image keeps its class,
    `pad` how many pixels a random crop may shift, `task` what the labels are, `least_height` how many pixels an object
    must be high to count for the miss rate.
    """

    key: str
    classes: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool
    pad: int
    task: Task = "classification"
    least_height: float = 50

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.size, self.size)


class Dataset(Protocol):
    """
    Made as `Plugin(options, files=Files)`. Splits never overlap; the search opens train and validation only.

    All methods raise `DataError`, naming the file, when something is missing or corrupt.
    """

    def info(self) -> DatasetInfo: ...

    def sizes(self) -> Mapping[SplitName, int]:
        """
        How many images each split has, none of them decoded; a few too many where repeats, or images that cannot be
        used, are only found then.
        """
        ...

    def split(self, name: SplitName) -> Split: ...


@runtime_checkable
class Counted(Dataset, Protocol):
    """A dataset that knows its classes without its images; of others the training images are opened to be counted."""

    def counts(self) -> NDArray[np.int64]:
        """
        Training images of each class, `[classes]`; a few too many where `sizes` are.

        Of detection: training objects of each class, those to be ignored left out.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a file of a dataset; `file` is relative to the dataset's folder."""

    file: str
    message: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """
    The images that the splits of a dataset go without, for they cannot be used: `count` of `images`, and the first of
    them by name. `key` names them all. Where there are none, nothing is said of `images`.
    """

    count: int = 0
    images: int = 0
    key: str = ""
    faults: tuple[Fault, ...] = ()


@runtime_checkable
class Screened(Dataset, Protocol):
    """A dataset whose splits go without images that cannot be used. What cannot be used, the bytes alone decide."""

    def skipped(self) -> Skipped:
        """
        Opens every image, unless that was done on this machine before.

        Raises:
            DatasetCorrupt: they are more than its options allow. `split` raises it as well.
        """
        ...


@dataclass(frozen=True, slots=True)
class Inspection:
    """
    What was found when the files of a dataset were looked at. `images` belong to it, of which `opened` were decoded;
    `others` lie below its folder and were not opened. `faults` has the first of the `corrupt`, which cannot be used,
    and of the `suspicious`, which can. `refusal` is why a job with it would fail, as far as was opened; empty if it
    would not.
    """

    images: int
    opened: int
    others: int
    corrupt: int
    suspicious: int
    faults: tuple[Fault, ...]
    refusal: str


@runtime_checkable
class Inspected(Dataset, Protocol):
    """A dataset that users made of files, some of which may be broken."""

    def inspect(self, seconds: float) -> Inspection:
        """Looks at its files, in an order that has nothing to do with their names, for about so long at most."""
        ...


class Teacher(Protocol):
    """Made as `Plugin(options)`. The same options and seed give the same weights on every machine."""

    def build(self, shape: tuple[int, int, int], classes: int, seed: int = 0) -> nn.Module:
        """An untrained network from images `[n, *shape]` to logits `[n, classes]`, in training mode."""
        ...


class Distiller(Protocol):
    """Made as `Plugin(options)`. `needs_teacher` says whether teacher logits are read."""

    needs_teacher: ClassVar[bool]

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """Mean loss of a batch, a scalar; `logits` and `teacher_logits` are `[n, classes]`, `labels` `[n]`."""
        ...


def tasks_of(plugin: object) -> tuple[Task, ...]:
    """What a teacher or a distiller is for, as its class says by `tasks`; classification, of one that says nothing."""
    return getattr(plugin, "tasks", ("classification",))


@dataclass(frozen=True, slots=True)
class Proposal:
    """`candidate` is what shall be trained, `origin` what the sampler itself proposed, `extra` its own notes (JSON)."""

    candidate: Candidate
    origin: Candidate
    extra: Mapping[str, object] | None = None
    level: int | None = None
    """The level whose budget it shall keep; None: whichever has its turn."""


@dataclass(frozen=True, slots=True)
class Start:
    """A candidate known before the search to keep the budget of a level, and to be worth a trial."""

    candidate: Candidate
    level: int
    kind: Literal["optimum", "uniform", "learned"]
    """Of little harm by the planner, with even widths, or with widths that were learned."""


class Strategy(Protocol):
    """
    Made as `Plugin(options)`. Decides, and never trains, stores or sleeps.

    `tell` is called for every trial whenever it got a further score or ended; a strategy is rebuilt in another process
    by `open` followed by `tell` for all trials on record, in order of number.
    """

    @property
    def needs_plan(self) -> bool:
        """Whether its starts must have the planner's optima among them, for which a library has to be made."""
        ...

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None: ...

    def ask(self) -> Proposal | None:
        """The next proposal, or None when there is nothing left to propose."""
        ...

    def tell(self, trial: Trial) -> None: ...


@runtime_checkable
class Learning(Strategy, Protocol):
    """A strategy that begins with widths that were learned in a training (`search.structure`)."""

    @property
    def needs_structure(self) -> bool:
        """Whether its starts must have them among them."""
        ...


@runtime_checkable
class Aiming(Strategy, Protocol):
    """A strategy that can look for a front by itself; others are led along it by budgets."""

    def aim(self, costs: Sequence[str]) -> None:
        """Before `open`: beside the score, these costs of a trial shall be small."""
        ...


class CostModel(Protocol):
    """Exact costs of candidates without building them. `polynomials` are over the sites of `space`, in its order."""

    @property
    def space(self) -> Space: ...

    @property
    def polynomials(self) -> Polynomials: ...

    def costs_of(self, choices: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
        """`{metric: [n]}` for choices `[n, sites]` in the order of the space's sites."""
        ...
