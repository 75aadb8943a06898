"""What everything that a user writes has in common, and how a mistake in it is told."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from search.errors import FieldError, InvalidSpec, did_you_mean

Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")]
P = TypeVar("P", bound="Part")

_MOST_ERRORS, _LONGEST_WORD = 32, 64
"""So many mistakes are told, and so much of a name: what answers a large document is not larger still."""


class Part(BaseModel):
    """Base of everything a user writes: frozen, unknown fields refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def read_part(model: type[P], document: object) -> P:
    """
    Any part from a decoded document; raises `InvalidSpec` with one `FieldError` for every mistake, or for the first 32.
    Nothing is taken for what it is not: neither "5" nor true for a number, nor 1 for true.
    """
    try:
        part = model.model_validate(document)
    except ValidationError as error:
        raise InvalidSpec(field_errors(model, error.errors(include_url=False))) from None
    taken = list(_taken_for_another(document, part.model_dump(mode="json")))
    if taken:
        raise InvalidSpec(taken)
    return part


def _taken_for_another(written: object, read: object, pointer: str = "") -> Iterator[FieldError]:
    """pydantic's strict mode would do, but that it takes no list for a tuple where a validator has looked before it."""
    match written, read:
        case Mapping(), Mapping():
            for name in written.keys() & read.keys():
                step = str(name).replace("~", "~0").replace("/", "~1")
                yield from _taken_for_another(written[name], read[name], f"{pointer}/{step}")
        case ((list() | tuple()), list()) if len(written) == len(read):
            for place, (one, other) in enumerate(zip(written, read, strict=True)):
                yield from _taken_for_another(one, other, f"{pointer}/{place}")
        case ((str() | bool() | int() | float()), (bool() | int() | float())) if _kind(written) is not _kind(read):
            wanted = "true or false" if isinstance(read, bool) else "a number"
            yield FieldError(pointer, "INVALID_VALUE", f"must be {wanted}, not {_shown(written)}")


def _kind(value: object) -> type:
    return next(kind for kind in (bool, str, float) if isinstance(value, kind) or kind is float)


def _shown(value: object) -> str:
    return json.dumps(value)[:64]


def field_errors(model: type[BaseModel], errors: Iterable[Mapping[str, Any]]) -> list[FieldError]:
    """pydantic's findings about a document meant for `model`, rewritten for the person who wrote the document."""
    return [_field_error(model, error) for error in islice(errors, _MOST_ERRORS)]


def _field_error(model: type[BaseModel], error: Mapping[str, Any]) -> FieldError:
    path = [str(step)[:_LONGEST_WORD] for step in error["loc"] if step != "[key]"]
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
