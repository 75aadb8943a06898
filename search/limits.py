"""
What a user writes of the budget: limits, how times are measured, the accuracy that turns the goal round, and the costs
of which the whole front is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from search.budget import AT_LEAST, Limit, as_text, check_ladder
from search.errors import UserError
from search.part import Name, Part


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

    def floor(self, teacher: float | None) -> float:
        """The least validation accuracy, 0..1, given the teacher's; `at_least` needs none."""
        if self.at_least is not None:
            return float(Limit.read("accuracy", self.at_least).amount)
        return float(Fraction(repr(teacher)) - Fraction(repr(self.max_drop)) / 100)


class FrontGoal(Part):
    """Asks for the front: students of which none is beaten by another in accuracy and in all of these costs."""

    costs: tuple[Name, ...] = Field(("macs",), min_length=1, max_length=3)
    """The costs to be made small; the first one says how far apart candidates are sought."""

    @field_validator("costs")
    @classmethod
    def _costs(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for at, metric in enumerate(metrics):
            if metric == "accuracy" or metric in AT_LEAST:
                raise _misfit(((at,), f"`{metric}` is not a cost, of which less is better; write one such as macs"))
            if metric in metrics[:at]:
                raise _misfit(((at,), f"`{metric}` is listed twice"))
        return metrics


def _without_null(schema: dict[str, Any]) -> None:
    """A limit is given or left out; null is no limit."""
    for field in schema["properties"].values():
        if field.pop("default", ...) is None and "anyOf" in field:
            field["anyOf"] = [kind for kind in field["anyOf"] if kind != {"type": "null"}]


class BudgetSpec(Part):
    """
    Limits by metric: a text, a number, or a list of them, which is a ladder: one student for each of its levels, in one
    job. Levels go from loose to tight; all lists are equally long, and a limit without a list holds at every level.
    With `front` there need not be a limit.
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
    front: FrontGoal | None = Field(None, examples=[{"costs": ["macs"]}, {"costs": ["macs", "params"]}])

    @property
    def limits(self) -> dict[str, tuple[Limit, ...]]:
        """What was written for every metric but accuracy and the front; more than one limit is a ladder."""
        found: dict[str, tuple[Limit, ...]] = {}
        for metric, value in self:
            written = value.limit if isinstance(value, (LatencyLimit, ThroughputLimit)) else value
            if written is not None and not isinstance(written, (AccuracyGoal, FrontGoal)):
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
        if self.front is not None:
            self._check_front(self.front, ladders)
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

    def _check_front(self, front: FrontGoal, ladders: Mapping[str, int]) -> None:
        if self.accuracy is not None:
            raise _misfit((("front",), "a job keeps an accuracy or looks for a front; leave out one of them"))
        if ladders:
            why = "with a front, a cost has one limit; the job looks for students of all sizes itself"
            raise _misfit(*(((metric,), why) for metric in ladders))
        if "latency" in front.costs and self.latency is None:
            why = 'how is it measured? Add `latency` with a limit, such as "1x faster", and its settings'
            raise _misfit((("front", "costs", front.costs.index("latency")), why))

    @model_serializer(mode="wrap")
    def _as_written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {metric: value for metric, value in plain(self).items() if value is not None}


_METRICS = 16
