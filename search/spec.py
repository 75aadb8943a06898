"""
What a user writes: `JobSpec` and its parts.

The same frozen model is the REST body, the file given to the command line, the argument of the SDK, the stored row and
the worker's input. It knows the shape of a job, not the plugins: their options are checked by `search.recipe`.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints, field_validator, model_validator

from search.limits import BudgetSpec
from search.part import Name, Part, read_part

Trained = Literal["search", "finalists"]
"""What is trained by distillation: the trials of the search, and the finalists."""
PARTS: tuple[Trained, ...] = ("search", "finalists")
Task = Literal["classification", "detection"]
"""What a network is asked about an image: its class, or where the objects in it are and of which classes."""
Label = Annotated[str, StringConstraints(max_length=256)]
Location = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class Pick(Part):
    """The name of a plugin and its options; the plugin's own `Options` model checks them."""

    name: Name
    options: dict[Name, JsonValue] = Field(default_factory=dict, max_length=64)


class Schedule(Part):
    """How a network is trained: SGD with Nesterov momentum 0.9, one cosine or steps down, gradients clipped."""

    batch_size: int = Field(64, ge=1, le=4096)
    learning_rate: float = Field(0.05, gt=0, le=10)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    """Applied to matrices and kernels only, never to biases or batch-norm parameters."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero."""
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((), max_length=16)
    """Shares of the steps after which the learning rate is multiplied by `drop`; with any, there is no cosine."""
    drop: float = Field(0.1, gt=0, lt=1)
    clip: float = Field(5.0, gt=0)
    """Largest norm of the gradient."""

    @field_validator("drops")
    @classmethod
    def _later_and_later(cls, drops: tuple[float, ...]) -> tuple[float, ...]:
        if list(drops) != sorted(set(drops)):
            raise ValueError("drops must rise, for example [0.5, 0.75]")
        return drops


class TeacherSpec(Pick):
    """
    The network to be compressed. Without `weights` the job trains it first and keeps it for later jobs; with no epochs
    either there is no teacher, and students are cut from the untrained network.
    """

    weights: Location | None = None
    """A safetensors file with the state dict of the architecture."""
    epochs: int = Field(20, ge=0, le=10_000)
    """Length of the teacher's own training, 0 for a job without a teacher; not used when `weights` are given."""
    training: Schedule = Schedule(learning_rate=0.1)

    @property
    def taught(self) -> bool:
        """Whether there is a teacher to learn from, and not only a network to cut students from."""
        return self.weights is not None or self.epochs > 0


Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Share = Annotated[float, Field(gt=0, le=1)]


class BlockRule(Part):
    """Other settings for some blocks. What is left out stays as the space has it; of several rules the last counts."""

    match: Pattern
    """A name, or a pattern with `*` and `?`, of blocks, layers or sites: `layer3.*`, `features.7`, `*.conv2`."""
    divisor: int | None = Field(None, ge=1, le=1024)
    min_keep: Share | None = None
    max_keep: Share | None = None
    """Largest share of its channels that a width keeps; below 1 every student is narrower than the teacher."""
    keep: tuple[Share, ...] | None = Field(None, min_length=1, max_length=64)
    """The shares that widths offer, instead of even steps."""
    removal: bool | None = None
    min_kernel: int | None = Field(None, ge=1, le=63)
    operators: tuple[Literal["low_rank", "separable"], ...] | None = None
    groups: bool | None = None

    @model_validator(mode="after")
    def _consistent(self) -> BlockRule:
        if self.keep is not None and list(self.keep) != sorted(set(self.keep)):
            raise ValueError("`keep` must rise, for example [0.25, 0.5, 1.0]")
        if self.keep is not None and (self.min_keep is not None or self.max_keep is not None):
            raise ValueError("give either `keep`, or `min_keep` and `max_keep`")
        return self


class SpaceSpec(Part):
    """What may be changed in the teacher."""

    divisor: int = Field(8, ge=1, le=1024)
    """Channel counts are multiples of this (2 suits tiny networks, 8 to 32 real hardware)."""
    steps: int = Field(8, ge=2, le=64)
    """How many widths a site offers between nothing and full, evenly spaced."""
    min_keep: Share = 0.125
    """Smallest share of its channels that a width keeps."""
    removal: bool = True
    """Whether residual blocks may be removed whole."""
    min_kernel: int = Field(3, ge=1, le=63)
    """Larger kernels may be cropped to odd sizes down to this; 63 leaves them all as they are."""
    operators: tuple[Literal["low_rank", "separable"], ...] = ()
    """What may stand for a k x k convolution: two of lower rank, or a depthwise and a pointwise one."""
    groups: bool = False
    """Whether the groups of grouped convolutions may be made narrower, and not only fewer."""
    resolutions: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((), max_length=16)
    """Smaller sizes, in pixels, to which the student may shrink its images before it looks at them."""
    include: tuple[Pattern, ...] = Field(("*",), max_length=256)
    """What may be changed: patterns of blocks, layers or sites. Everything else stays as it is."""
    exclude: tuple[Pattern, ...] = Field((), max_length=256)
    """What of that stays as it is."""
    blocks: tuple[BlockRule, ...] = Field((), max_length=256)

    @field_validator("resolutions")
    @classmethod
    def _rising(cls, resolutions: tuple[int, ...]) -> tuple[int, ...]:
        if list(resolutions) != sorted(set(resolutions)):
            raise ValueError("resolutions must rise, for example [24, 28]")
        return resolutions


class LibrarySpec(Part):
    """How every choice of every site is distilled alone, against the teacher's own blocks."""

    steps: int = Field(40, ge=0, le=1_000_000)
    """Of Adam, for a choice that lies within one block."""
    coupled_steps: int = Field(20, ge=0, le=1_000_000)
    """Of distillation of the whole network, for a choice that spans blocks, such as the width of a stage."""
    choices: int = Field(3, ge=1, le=64)
    """Widths of a site that are measured; the harms of those between them are interpolated."""
    batch_size: int = Field(128, ge=1, le=4096)
    """Within a block; the whole network is given a fourth of it."""
    learning_rate: float = Field(2e-3, gt=0, le=1)
    """Of Adam."""
    images: int = Field(256, ge=1, le=1_000_000)
    """Of the validation set, on which the harm of a choice is measured; all of it where it has fewer."""


class ElasticSpec(Part):
    """How one set of weights is trained for all candidates, each step on another."""

    steps: int = Field(600, ge=1, le=10_000_000)
    focus: float = Field(0.5, ge=0, le=1)
    """Share of the steps taken near the planner's optima; the others go to candidates drawn at random."""
    every: int = Field(50, ge=1, le=1_000_000)
    """Steps between two checkpoints, and between two meetings of workers that train side by side."""
    training: Schedule = Schedule(learning_rate=0.03)


class BlockStrength(Part):
    """How hard the widths of some blocks are pressed. Of several rules the last counts."""

    match: Pattern
    """A name, or a pattern with `*` and `?`, of blocks or of width sites."""
    strength: float = Field(ge=0, le=1000)
    """A multiple of what presses the others; 0 protects the block, whose channels then all stay."""


class StructureSpec(Part):
    """How widths are learned: the teacher loses channels in one training, until it is within the budget."""

    steps: int = Field(600, ge=1, le=10_000_000)
    """Of the whole way down, through all levels."""
    press: float = Field(0.8, gt=0, le=1)
    """Share of the way to each level in which channels are lost; in the rest of it the network settles."""
    strength: float = Field(10.0, gt=0, le=1e6)
    """Of the regulariser at first; it is adapted so that the cost keeps to its path."""
    weighting: float = Field(0.5, ge=0, le=1)
    """How much it counts for a channel's pressure what it costs: 1 is in proportion, 0 presses all channels alike."""
    threshold: float = Field(0.1, gt=0, le=1)
    """How weak a channel should have become before it dies, as a share of what is usual; while they are not, the
    regulariser grows stronger."""
    blocks: tuple[BlockStrength, ...] = Field((), max_length=256)
    sequential: bool = False
    """Whether blocks lose channels one after the other, and not all at once."""
    every: int = Field(50, ge=1, le=1_000_000)
    """Steps between two checkpoints."""
    training: Schedule = Schedule(learning_rate=0.1, drops=(0.8,))
    """Of each level anew."""


class SearchSpec(Part):
    strategy: Pick = Pick(name="planned")
    weights: Literal["slice", "library", "elastic", "structure", "scratch"] = "library"
    """
    Where the weights of a candidate come from: cut from the teacher; its blocks from the library, each distilled
    alone; cut from the elastic student, which was trained for all candidates at once; cut from the network whose widths
    were learned; or from nowhere, at random.
    """
    library: LibrarySpec = LibrarySpec()
    elastic: ElasticSpec = ElasticSpec()
    structure: StructureSpec = StructureSpec()
    trials: int = Field(24, ge=1, le=100_000)
    """Candidates to score; of all levels together where there are several."""
    rungs: tuple[Annotated[int, Field(ge=0, le=10_000_000)], ...] = Field((40, 120), min_length=1, max_length=16)
    """Training lengths, in steps from the start, at which trials are compared; 0 compares them untrained."""
    exempt: float = Field(0.1, ge=0, le=0.5)
    """Share of the promotions that go to trials which would be stopped: slow starters, and a measure of the others."""
    repeats: int = Field(2, ge=0, le=16)
    """Trials of the last rung that are scored again with another seed, to tell how much a score varies by itself."""
    deterministic: bool = False
    """The same seed gives the same result with any number of workers: trials of a rung wait for each other."""
    reduction: int = Field(3, ge=2, le=16)
    """One in this many of the trials that come to a rung goes on to the next, and one of each level at least."""
    views: int = Field(4, ge=1, le=64)
    """Augmented copies of the training set for which the teacher's outputs are cached."""
    calibration_batches: int = Field(4, ge=1, le=1000)
    """Batches that recompute batch-norm statistics before every score."""
    training: Schedule = Schedule()
    distill: Pick | None = None
    """How trials are distilled; without it as `distill` of the job says."""
    seed: int = Field(0, ge=0, lt=2**32)

    @field_validator("rungs")
    @classmethod
    def _ascending(cls, rungs: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in itertools.pairwise(rungs)):
            raise ValueError("rungs must rise, for example [40, 120]")
        return rungs


class FinalistsSpec(Part):
    """The best trials, trained long. The one best on validation is the student; it alone meets the test set."""

    count: int = Field(2, ge=1, le=64)
    """At each level, where there are several."""
    steps: int = Field(600, ge=1, le=10_000_000)
    checkpoint_every: int = Field(200, ge=1, le=10_000_000)
    """Steps between two checkpoints, from which an interrupted finalist goes on."""
    training: Schedule = Schedule()
    distill: Pick | None = None
    """How finalists are distilled; without it as `distill` of the job says."""


class ExportSpec(Part):
    onnx: bool = True
    """Also write student.onnx. The folder with architecture.json and weights.safetensors is always written."""


class Resources(Part):
    cpus_per_trial: int = Field(1, ge=1, le=256)
    gpus_per_trial: float = Field(0, ge=0, le=16)
    concurrent_trials: int = Field(2, ge=1, le=10_000)
    attempts: int = Field(3, ge=1, le=20)
    """Times a trial may be started when the machine below it dies; a candidate's own failure is not retried."""


class JobSpec(Part):
    """One compression job: a teacher, a dataset and a budget in; a distilled student under the budget out."""

    version: Literal[1] = 1
    task: Task = "classification"
    """What the network does: one class an image, or boxes of objects in it."""
    teacher: TeacherSpec
    dataset: Pick
    budget: BudgetSpec = Field(examples=[{"macs": "20%", "params": "200k"}])
    space: SpaceSpec = SpaceSpec()
    search: SearchSpec = SearchSpec()
    distill: Pick = Pick(name="hinton")
    finalists: FinalistsSpec = FinalistsSpec()
    export: ExportSpec = ExportSpec()
    resources: Resources = Resources()
    labels: dict[Name, Label] = Field(default_factory=dict, max_length=64)
    priority: int = Field(0, ge=-1000, le=1000)
    """Jobs of higher priority start first."""

    def distiller(self, part: Trained) -> Pick:
        """What trials, or finalists, are distilled with."""
        return (self.search if part == "search" else self.finalists).distill or self.distill

    def distiller_pointer(self, part: Trained) -> str:
        """Where that is named."""
        own = (self.search if part == "search" else self.finalists).distill
        return f"/{part}/distill" if own else "/distill"


def read_spec(document: object) -> JobSpec:
    """
    A `JobSpec` from a decoded JSON or YAML document.

    Raises:
        InvalidSpec: one `FieldError` for every mistake, each with a pointer and a remedy.
    """
    return read_part(JobSpec, document)
