"""
The language of `filter` and `order_by`: text to a tree, a tree to text, and what a tree says of one row.

A subset of AIP-160. `docs/guide/filters.md` has the grammar and the meaning, of which these are the laws:

- A comparison with a field that has no value is false, but `= null` is true. `a != b` says the same as `NOT a = b`.
- AND and OR do not stand side by side without parentheses: elsewhere AND binds tighter, in AIP-160 OR does.
- Whatever is wrong is refused with its place, and nothing is guessed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, NamedTuple

from search.trial import State
from workers.ports import JobState, Phase

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
"""What may stand without quotes."""
_FAMILIAR = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")
"""Names within a family."""

Value = str | int | float | bool | datetime | None
Path = tuple[str, ...]
"""A field: `("state",)`, or of a family with its name there: `("labels", "team")`."""


class Kind(Enum):
    """What the values of a field are."""

    TEXT = "a text in quotes"
    NUMBER = "a number"
    MOMENT = "a time such as 2026-01-31T09:30:00Z"
    FLAG = "true or false"


@dataclass(frozen=True)
class Field:
    kind: Kind
    words: tuple[str, ...] = ()
    """Of a text, all that it may be; empty for any text."""


@dataclass(frozen=True)
class Vocabulary:
    """
    The fields of a list. Of a family every name is a field; `short` names fields that may be written without theirs.
    `last` is what no two rows share, and settles the order of what is equal in everything else.
    """

    fields: Mapping[str, Field]
    families: Mapping[str, Field]
    short: Mapping[str, Path]
    last: str

    def field(self, path: Path) -> Field:
        return self.fields[path[0]] if len(path) == 1 else self.families[path[0]]

    def find(self, path: Path) -> Path | None:
        """The field of that name; None when there is none."""
        if len(path) == 1:
            return path if path[0] in self.fields else self.short.get(path[0])
        return path if len(path) == 2 and path[0] in self.families and _FAMILIAR.fullmatch(path[1]) else None

    @property
    def names(self) -> list[str]:
        return [*self.fields, *self.short, *(f"{family}.NAME" for family in self.families)]


_NUMBER, _TEXT, _MOMENT, _FLAG = (Field(kind) for kind in (Kind.NUMBER, Kind.TEXT, Kind.MOMENT, Kind.FLAG))

JOBS = Vocabulary(
    fields={
        "id": _TEXT,
        "state": Field(Kind.TEXT, tuple(JobState)),
        "phase": Field(Kind.TEXT, tuple(Phase)),
        "priority": _NUMBER,
        "claims": _NUMBER,
        "created_at": _MOMENT,
        "started_at": _MOMENT,
        "ended_at": _MOMENT,
        "cancel_requested": _FLAG,
        "teacher": _TEXT,
        "dataset": _TEXT,
        "strategy": _TEXT,
    },
    families={"labels": _TEXT},
    short={},
    last="id",
)
TRIALS = Vocabulary(
    fields={
        "id": _TEXT,
        "number": _NUMBER,
        "state": Field(Kind.TEXT, tuple(State)),
        "attempt": _NUMBER,
        "key": _TEXT,
        "rung": _NUMBER,
        "step": _NUMBER,
        "accuracy": _NUMBER,
        "kl": _NUMBER,
        "seconds": _NUMBER,
        "cached": _FLAG,
    },
    families={"cost": _NUMBER, "choices": _NUMBER},
    short={
        name: ("cost", name)
        for name in ("macs", "flops", "params", "weight_bytes", "activation_bytes", "latency", "throughput")
    },
    last="number",
)
"""`rung` to `cached` are those of a trial's last score."""


class Operator(StrEnum):
    EQUAL = "="
    UNEQUAL = "!="
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="


_COMPARES: Mapping[Operator, Callable[[Any, Any], bool]] = {
    Operator.LESS: operator.lt,
    Operator.AT_MOST: operator.le,
    Operator.MORE: operator.gt,
    Operator.AT_LEAST: operator.ge,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """`value` is of the field's kind, or None with `EQUAL` and `UNEQUAL` alone."""

    field: Path
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class Not:
    part: Expression


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Expression, ...]
    """Two at least."""


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Expression, ...]
    """Two at least."""


Expression = Comparison | Not | And | Or


class By(NamedTuple):
    """One field to order by. Rows without a value come last either way."""

    field: Path
    falling: bool


def holds(expression: Expression, value_of: Callable[[Path], Value]) -> bool:
    """Whether a row is meant, of which `value_of` knows every field."""
    match expression:
        case And(parts):
            return all(holds(part, value_of) for part in parts)
        case Or(parts):
            return any(holds(part, value_of) for part in parts)
        case Not(part):
            return not holds(part, value_of)
        case Comparison(field, Operator.UNEQUAL, value):
            return value_of(field) != value
        case Comparison(field, Operator.EQUAL, value):
            return value_of(field) == value
    found = value_of(expression.field)
    return found is not None and _COMPARES[expression.operator](found, expression.value)


def fields_of(expression: Expression | None) -> set[Path]:
    """All fields that it asks about."""
    match expression:
        case None:
            return set()
        case And(parts) | Or(parts):
            return {field for part in parts for field in fields_of(part)}
        case Not(part):
            return fields_of(part)
        case Comparison(field):
            return {field}


def written(expression: Expression) -> str:
    """The text that `read_filter` reads as this."""
    match expression:
        case Comparison(field, compared, value):
            return f"{written_field(field)} {compared} {_written_value(value)}"
        case Not(part):
            return f"NOT {_within(part)}"
        case And(parts):
            return " AND ".join(map(_within, parts))
        case Or(parts):
            return " OR ".join(map(_within, parts))


def _within(part: Expression) -> str:
    return f"({written(part)})" if isinstance(part, (And, Or)) else written(part)


def written_field(field: Path) -> str:
    return ".".join(name if WORD.fullmatch(name) else f'"{name}"' for name in field)


def _written_value(value: Value) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case datetime():
            return value.isoformat()
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case _:
            return repr(value)


def settled(order: Sequence[By], vocabulary: Vocabulary) -> tuple[By, ...]:
    """The order with what no two rows share at its end, the same way as the field before it."""
    last = (vocabulary.last,)
    if any(key.field == last for key in order):
        return tuple(order)
    return (*order, By(last, order[-1].falling if order else False))
