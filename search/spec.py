"""
What a user writes: `JobSpec` and its parts.

The same frozen model is the REST body, the file given to the command line, the argument of the SDK, the stored row and
the worker's input. It knows the shape of a job, not the plugins: their options are checked by `search.recipe`.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from search.budget import AT_LEAST, Limit, as_text, check_ladder
from search.errors import FieldError, InvalidSpec, UserError, did_you_mean

Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")]
Label = Annotated[str, StringConstraints(max_length=256)]
P = TypeVar("P", bound="Part")
Location = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class Part(BaseModel):
    """Base of everything a user writes: frozen, unknown fields refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Pick(Part):
    """The name of a plugin and its options; the plugin's own `Options` model checks them."""

    name: Name
    options: dict[Name, JsonValue] = Field(default_factory=dict, max_length=64)


class Schedule(Part):
    """How a network is trained: SGD with Nesterov momentum 0.9, one cosine, gradients clipped."""

    batch_size: int = Field(64, ge=1, le=4096)
    learning_rate: float = Field(0.05, gt=0, le=10)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    """Applied to matrices and kernels only, never to biases or batch-norm parameters."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero."""
    clip: float = Field(5.0, gt=0)
    """Largest norm of the gradient."""


class TeacherSpec(Pick):
    """The network to be compressed. Without `weights` the job trains it first and keeps it for later jobs."""

    weights: Location | None = None
    """A safetensors file with the state dict of the architecture."""
    epochs: int = Field(20, ge=1, le=10_000)
    """Length of the teacher's own training; not used when `weights` are given."""
    training: Schedule = Schedule(learning_rate=0.1)


def _misfit(*mistakes: tuple[tuple[int | str, ...], str]) -> ValidationError:
    """What a validator raises of values that it cannot point at itself: where, below it, and why."""
    return ValidationError.from_exception_data(
        "budget",
        [{"type": "value_error", "loc": at, "input": None, "ctx": {"error": ValueError(why)}} for at, why in mistakes],
    )


def _written(metric: str) -> Callable[[Any], str | tuple[str, ...] | None]:
    """Checks one limit of `metric` or a ladder of them, and writes numbers out."""

    def check(value: Any) -> str | tuple[str, ...]:
        steps = list(value) if isinstance(value, (list, tuple)) else [value]
        if not 1 <= len(steps) <= _LEVELS:
            raise ValueError(f"a ladder has 1 to {_LEVELS} limits")
        read, mistakes = [], []
        for level, step in enumerate(steps):
            try:
                read.append(Limit.read(metric, step))
            except UserError as error:
                mistakes.append(((level,) if isinstance(value, (list, tuple)) else (), error.message))
        if mistakes:
            raise _misfit(*mistakes)
        try:
            check_ladder(read)
        except UserError as error:
            level = int(error.errors[0].pointer.removeprefix("/"))
            raise _misfit(((level,), error.message)) from None
        texts = tuple(as_text(step).strip() for step in steps)
        return texts if isinstance(value, (list, tuple)) else texts[0]

    return check


_LEVELS = 16
_Limits = str | tuple[str, ...]
_LimitInput = str | float | list[str | float]
Macs = Annotated[_Limits, BeforeValidator(_written("macs"), json_schema_input_type=_LimitInput)]
Flops = Annotated[_Limits, BeforeValidator(_written("flops"), json_schema_input_type=_LimitInput)]
Params = Annotated[_Limits, BeforeValidator(_written("params"), json_schema_input_type=_LimitInput)]
WeightBytes = Annotated[_Limits, BeforeValidator(_written("weight_bytes"), json_schema_input_type=_LimitInput)]
ActivationBytes = Annotated[_Limits, BeforeValidator(_written("activation_bytes"), json_schema_input_type=_LimitInput)]
Latency = Annotated[_Limits, BeforeValidator(_written("latency"), json_schema_input_type=str | list[str])]
Throughput = Annotated[_Limits, BeforeValidator(_written("throughput"), json_schema_input_type=str | list[str])]
OtherCost = Annotated[_Limits, BeforeValidator(_written(""), json_schema_input_type=_LimitInput)]


class Measurement(Part):
    """How a time is measured, on the exported student."""

    runtime: Literal["onnxruntime-cpu", "torch-cpu", "torch-cuda", "onnxruntime-cuda"] = "onnxruntime-cpu"
    device: str = Field("cpu", min_length=1, max_length=128)
    """The device's name, as the runtime knows it."""
    precision: Literal["fp32"] = "fp32"
    batch: int = Field(1, ge=1, le=4096)
    """Images that go through the network at once; a latency is that of the whole batch."""
    threads: int = Field(1, ge=1, le=1024)
    statistic: Literal["median", "mean", "min", "p90", "p95", "p99"] = "median"
    """What is taken of the repeated measurements."""


class _Measured(Measurement):
    @property
    def measurement(self) -> Measurement:
        return Measurement.model_validate(self.model_dump(exclude={"limit"}))


class LatencyLimit(_Measured):
    """Largest latency of a batch: `4 ms`, `50%` or `2x faster`."""

    limit: Latency = Field(examples=["4 ms", "2x faster", ["50%", "25%"]])


class ThroughputLimit(_Measured):
    """Least images a second: `200/s` or `2x faster`."""

    limit: Throughput = Field(examples=["200/s", "2x faster"])


def _measured(metric: str) -> Callable[[Any], Any]:
    """`"4 ms"` for `{"limit": "4 ms"}`; a mistake in the short form is pointed at where it stands."""
    check = _written(metric)
    return lambda value: value if isinstance(value, (Mapping, Measurement)) else {"limit": check(value)}


class AccuracyGoal(Part):
    """Turns the goal round: the cheapest student whose validation accuracy is at or above a floor."""

    max_drop: float | None = Field(None, ge=0, lt=100)
    """Percentage points that the student may lie below its teacher."""
    at_least: str | None = Field(None, examples=["91.5%"])
    """The floor itself."""
    cheapest: Name = "macs"
    """The cost to be made small."""

    @field_validator("at_least")
    @classmethod
    def _share(cls, written: str | None) -> str | None:
        if written is not None:
            limit = Limit.read("accuracy", written)
            if not limit.relative or not written.rstrip().endswith("%"):
                raise ValueError('write a share of the images, such as "91.5%"')
        return written

    @field_validator("cheapest")
    @classmethod
    def _cost(cls, metric: str) -> str:
        if metric == "accuracy" or metric in AT_LEAST:
            raise ValueError(f"`{metric}` is not a cost, of which less is better; write one such as macs")
        return metric

    @model_validator(mode="after")
    def _one(self) -> AccuracyGoal:
        if (self.max_drop is None) == (self.at_least is None):
            raise ValueError('give exactly one of `max_drop` (in percentage points) and `at_least` (such as "91.5%")')
        return self

    def floor(self, teacher: float) -> float:
        """The least validation accuracy, 0..1, given the teacher's."""
        if self.at_least is not None:
            return float(Limit.read("accuracy", self.at_least).amount)
        return float(Fraction(repr(teacher)) - Fraction(repr(self.max_drop)) / 100)


def _without_null(schema: dict[str, Any]) -> None:
    """A limit is given or left out; null is no limit."""
    for field in schema["properties"].values():
        if field.pop("default", ...) is None and "anyOf" in field:
            field["anyOf"] = [kind for kind in field["anyOf"] if kind != {"type": "null"}]


class BudgetSpec(Part):
    """
    Limits by metric: a text, a number, or a list of them, which is a ladder: one student for each of its levels, in one
    job. Levels go from loose to tight; all lists are equally long, and a limit without a list holds at every level.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=_without_null)
    __pydantic_extra__: dict[Name, OtherCost]

    macs: Macs | None = Field(None, examples=["20%", "1.5 GMACs", "4x smaller", 4_500_000, ["50%", "30%", "20%"]])
    """Multiply-accumulates of one image. 1 MAC = 2 FLOPs."""
    flops: Flops | None = Field(None, examples=["20%", "3 GFLOPs"])
    """Floating-point operations of one image, twice the macs."""
    params: Params | None = Field(None, examples=["30%", "800k"])
    weight_bytes: WeightBytes | None = Field(None, examples=["3 MB", "3 MiB", "25%"])
    """Of all parameters and buffers in float32."""
    activation_bytes: ActivationBytes | None = Field(None, examples=["512 KiB", "50%"])
    """The most that is alive at once for one image."""
    latency: Annotated[
        LatencyLimit | None,
        BeforeValidator(_measured("latency"), json_schema_input_type=str | list[str] | LatencyLimit),
    ] = Field(None, examples=["4 ms", "2x faster", {"limit": "4 ms", "runtime": "torch-cpu", "threads": 2}])
    throughput: Annotated[
        ThroughputLimit | None,
        BeforeValidator(_measured("throughput"), json_schema_input_type=str | list[str] | ThroughputLimit),
    ] = Field(None, examples=["200/s", "2x faster"])
    accuracy: AccuracyGoal | None = Field(
        None, examples=[{"max_drop": 1.0}, {"at_least": "91.5%", "cheapest": "params"}]
    )

    @property
    def limits(self) -> dict[str, tuple[Limit, ...]]:
        """What was written for every metric but accuracy; more than one limit is a ladder."""
        found: dict[str, tuple[Limit, ...]] = {}
        for metric, value in self:
            written = value.limit if isinstance(value, (LatencyLimit, ThroughputLimit)) else value
            if written is not None and not isinstance(written, AccuracyGoal):
                steps = (written,) if isinstance(written, str) else written
                found[metric] = tuple(Limit.read(metric, step) for step in steps)
        return found

    @property
    def measurements(self) -> dict[str, Measurement]:
        """How the limited times are measured, by metric."""
        both = {"latency": self.latency, "throughput": self.throughput}
        return {metric: limit.measurement for metric, limit in both.items() if limit is not None}

    @property
    def levels(self) -> int:
        """Students asked for: the length of the ladder, or 1."""
        return max((len(steps) for steps in self.limits.values()), default=1)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, document: Any) -> Any:
        if isinstance(document, Mapping):
            nothing = [name for name, value in document.items() if value is None]
            if nothing:
                raise _misfit(
                    *(((name,), "a limit is a number or a text; leave out what is not limited") for name in nothing)
                )
            if not 1 <= len(document) <= _METRICS:
                raise ValueError(f"give at least 1 limit, and at most {_METRICS}")
        return document

    @model_validator(mode="after")
    def _level(self) -> BudgetSpec:
        limits = self.limits
        ladders = {metric: len(steps) for metric, steps in limits.items() if len(steps) > 1}
        if ladders and self.accuracy is not None:
            why = "with an accuracy to be kept, a cost has one limit; the job looks for the cheapest student itself"
            raise _misfit(*(((metric,), why) for metric in ladders))
        if self.accuracy is not None and self.accuracy.cheapest == "latency" and self.latency is None:
            why = 'how is it measured? Add `latency` with a limit, such as "1x faster", and its settings'
            raise _misfit((("accuracy", "cheapest"), why))
        first = next(iter(ladders), "")
        uneven = [metric for metric, count in ladders.items() if count != ladders[first]]
        if uneven:
            raise _misfit(
                *(
                    ((metric,), f"has {ladders[metric]} levels and `{first}` has {ladders[first]}; write equally many")
                    for metric in uneven
                )
            )
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {metric: value for metric, value in plain(self).items() if value is not None}


_METRICS = 16

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


class SearchSpec(Part):
    strategy: Pick = Pick(name="tpe")
    trials: int = Field(24, ge=1, le=100_000)
    """Candidates to score; of all levels together where there are several."""
    rungs: tuple[Annotated[int, Field(ge=1, le=10_000_000)], ...] = Field((40, 120), min_length=1, max_length=16)
    """Training lengths, in steps from the start, at which trials are compared."""
    reduction: int = Field(3, ge=2, le=16)
    """One in this many of the trials scored so far at a rung may go on; more do when later ones turn out better."""
    views: int = Field(4, ge=1, le=64)
    """Augmented copies of the training set for which the teacher's outputs are cached."""
    calibration_batches: int = Field(4, ge=1, le=1000)
    """Batches that recompute batch-norm statistics before every score."""
    training: Schedule = Schedule()
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


def read_spec(document: object) -> JobSpec:
    """
    A `JobSpec` from a decoded JSON or YAML document.

    Raises:
        InvalidSpec: one `FieldError` for every mistake, each with a pointer and a remedy.
    """
    return read_part(JobSpec, document)


def read_part(model: type[P], document: object) -> P:
    """Any part from a decoded document; raises `InvalidSpec` as `read_spec` does."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InvalidSpec(field_errors(model, error.errors(include_url=False))) from None


def field_errors(model: type[BaseModel], errors: Iterable[Mapping[str, Any]]) -> list[FieldError]:
    """pydantic's findings about a document meant for `model`, rewritten for the person who wrote the document."""
    return [_field_error(model, error) for error in errors]


def _field_error(model: type[BaseModel], error: Mapping[str, Any]) -> FieldError:
    path = [str(step) for step in error["loc"] if step != "[key]"]
    pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)
    match error["type"]:
        case "extra_forbidden":
            known = _fields_at(model, path[:-1])
            return FieldError(
                pointer, "UNKNOWN_FIELD", f"unknown field `{path[-1]}`{did_you_mean(path[-1], known)}", tuple(known)
            )
        case "missing":
            return FieldError(pointer, "MISSING_FIELD", f"`{path[-1]}` is required; add it")
        case "literal_error":
            return FieldError(pointer, "INVALID_VALUE", f"must be {error['ctx']['expected']}")
        case "value_error":
            return FieldError(pointer, "INVALID_VALUE", str(error["ctx"]["error"]))
        case "json_invalid":
            return FieldError("", "MALFORMED_JSON", "the body is not valid JSON; check quotes and commas")
        case kind:
            message = str(error["msg"])
            return FieldError(pointer, "INVALID_VALUE", f"{message[:1].lower()}{message[1:]} ({kind})")


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: type[BaseModel] | None = model
    for step in path:
        field = current.model_fields.get(step) if current else None
        current = _model_in(field.annotation) if field else None
    return sorted(current.model_fields) if current else []


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
    return None
