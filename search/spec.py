"""
What a user writes: `JobSpec` and its parts.

The same frozen model is the REST body, the file given to the command line, the argument of the SDK, the stored row and
the worker's input. It knows the shape of a job, not the plugins: their options are checked by `search.recipe`.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, field_validator

from search.budget import Limit
from search.errors import FieldError, InvalidSpec, did_you_mean

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


class SpaceSpec(Part):
    """What may be changed in the teacher."""

    divisor: int = Field(8, ge=1, le=1024)
    """Channel counts are multiples of this (2 suits tiny networks, 8 to 32 real hardware)."""
    steps: int = Field(8, ge=2, le=64)
    """How many widths a site offers between nothing and full, evenly spaced."""
    min_keep: float = Field(0.125, gt=0, le=1)
    """Smallest share of its channels that a width keeps."""
    removal: bool = True
    """Whether residual blocks may be removed whole."""


class SearchSpec(Part):
    strategy: Pick = Pick(name="tpe")
    trials: int = Field(24, ge=1, le=100_000)
    """Candidates to score."""
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
    budget: dict[Name, Limit] = Field(min_length=1, max_length=16)
    """Largest cost the student may have, by metric: `{macs: "20%", params: "200k"}`."""
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
