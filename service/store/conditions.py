"""Filters and orders as SQL: allow-listed columns, every value a bound parameter."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Dialect,
    Float,
    Text,
    and_,
    case,
    cast,
    collate,
    false,
    func,
    literal,
    not_,
    or_,
    select,
)

from service.filters import And, By, Comparison, Expression, Not, Operator, Or, Path, Value
from service.store.tables import Moment, jobs, scores, trials
from workers.ports import JobState

Place = tuple[Value, ...]
"""Where a page has ended: the values that its last row has of the fields it is ordered by."""

Columns = Callable[[Path], ColumnElement[Any]]

latest = scores.alias("latest")
"""The last score of a trial, joined by `is_latest`."""
_next = scores.alias("next")
is_latest = and_(
    latest.c.trial_id == trials.c.id,
    # A trial has a score of every rung up to its last.
    not_(
        select(_next.c.trial_id)
        .where(_next.c.trial_id == latest.c.trial_id, _next.c.rung == latest.c.rung + 1)
        .correlate(latest)
        .exists()
    ),
)
OF_THE_SCORE = frozenset({"rung", "step", "accuracy", "kl", "seconds", "cached"})
"""Fields of a trial that are those of its last score."""

_COMPARE: Mapping[Operator, Callable[[Any, Any], Any]] = {
    Operator.EQUAL: operator.eq,
    Operator.UNEQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.AT_MOST: operator.le,
    Operator.MORE: operator.gt,
    Operator.AT_LEAST: operator.ge,
}
_ALWAYS_THERE = frozenset(
    column.name for table in (jobs, trials) for column in table.columns if not column.nullable
) | {"cancel_requested"}


def job_columns(dialect: Dialect) -> Columns:
    """The fields of `service.filters.JOBS`."""

    def column(path: Path) -> ColumnElement[Any]:
        match path:
            case ("labels", name):
                return _binary(_text_at(("labels", name), dialect), dialect)
            case ("teacher",) | ("dataset",):
                return _binary(_text_at((path[0], "name"), dialect), dialect)
            case ("strategy",):
                return _binary(_text_at(("search", "strategy", "name"), dialect), dialect)
            case ("cancel_requested",):
                return case((jobs.c.cancel_requested_at.is_not(None), literal(True)), else_=literal(False))
            case ("state",) | ("phase",):
                return _binary(jobs.c[path[0]], dialect)
        return jobs.c[path[0]]

    return column


def trial_columns(dialect: Dialect) -> Columns:
    """The fields of `service.filters.TRIALS`; those of the last score are of `latest`, which must be joined."""

    def column(path: Path) -> ColumnElement[Any]:
        match path:
            case ("cost", name) | ("choices", name):
                return cast(trials.c[path[0]][name].as_string(), BigInteger)
            case ("state",) | ("key",):
                return _binary(trials.c[path[0]], dialect)
        return latest.c[path[0]] if path[0] in OF_THE_SCORE else trials.c[path[0]]

    return column


_OPEN = frozenset(state for state in JobState if not state.terminal)

Hint = Callable[[Comparison, ColumnElement[bool]], ColumnElement[bool]]
"""Takes a comparison and what it is in SQL, and returns what is true of the same rows and found sooner."""


def condition(expression: Expression, column: Columns, hint: Hint) -> ColumnElement[bool]:
    """True or false of every row, never NULL, as `service.filters.holds` is."""
    match expression:
        case And(parts):
            return and_(*(condition(part, column, hint) for part in parts))
        case Or(parts):
            return or_(*(condition(part, column, hint) for part in parts))
        case Not(part):
            return not_(condition(part, column, hint))
        case Comparison():
            return hint(expression, _compared(expression, column))


def _compared(comparison: Comparison, column: Columns) -> ColumnElement[bool]:
    found, compared, value = column(comparison.field), comparison.operator, comparison.value
    if value is None:
        return found.is_(None) if compared is Operator.EQUAL else found.is_not(None)
    said: ColumnElement[bool] = _COMPARE[compared](found, _bound(value, found))
    if _always_there(comparison.field):
        return said
    return or_(found.is_(None), said) if compared is Operator.UNEQUAL else and_(found.is_not(None), said)


def no_hint(_: Comparison, said: ColumnElement[bool]) -> ColumnElement[bool]:
    return said


def job_hint(comparison: Comparison, said: ColumnElement[bool]) -> ColumnElement[bool]:
    """
    A state before the end is one of few jobs, which have an index. A label is looked for as it is written in the spec
    before the spec is parsed: SQLAlchemy writes JSON as `json.dumps` does.
    """
    match comparison:
        case Comparison(("state",), Operator.EQUAL, str(state)) if state in _OPEN:
            return and_(jobs.c.ended_at.is_(None), said)
        case Comparison(("labels", _), Operator.EQUAL, str(value)):
            written = cast(jobs.c.spec, Text).contains(json.dumps(value), autoescape=True)
            return case((written, said), else_=false())
    return said


def ordering(order: Sequence[By], column: Columns) -> list[ColumnElement[Any]]:
    """Rows without a value last, either way."""
    by: list[ColumnElement[Any]] = []
    for field, falling in order:
        way = column(field).desc() if falling else column(field).asc()
        by.append(way if _always_there(field) else way.nulls_last())
    return by


def beyond(place: Place, order: Sequence[By], column: Columns) -> ColumnElement[bool]:
    """The rows that come after a place; `order` ends with what no two rows share."""
    ways: list[ColumnElement[bool]] = []
    equal: list[ColumnElement[bool]] = []
    for (field, falling), value in zip(order, place, strict=True):
        found = column(field)
        if value is None:
            equal.append(found.is_(None))
            continue  # nothing comes after what has no value
        bound = _bound(value, found)
        further = found < bound if falling else found > bound
        if not _always_there(field):
            further = or_(further, found.is_(None))
        ways.append(and_(*equal, further))
        equal.append(found == bound)
    wanted = or_(false(), *ways)
    (field, falling), value = order[0], place[0]
    if value is not None and _always_there(field):
        # Says nothing new, but lets the database begin at the place instead of looking for it.
        found = column(field)
        bound = _bound(value, found)
        wanted = and_(found <= bound if falling else found >= bound, wanted)
    return wanted


def _always_there(field: Path) -> bool:
    return len(field) == 1 and field[0] in _ALWAYS_THERE


def _bound(value: Value, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """
    Typed by the value, not by the column: a column of whole numbers would have 1.5 rounded, and one of 32 bits would
    have larger ones refused.
    """
    match value:
        case bool():
            return literal(value, Boolean())
        case int() if not isinstance(column.type, Float):
            return literal(value, BigInteger())
        case int() | float():
            return literal(float(value), Float(53))
        case str():
            return literal(value, Text())
        case _:
            return literal(value, Moment())


def _text_at(path: tuple[str, ...], dialect: Dialect) -> ColumnElement[str]:
    """A text within a job's spec; NULL where there is none."""
    # As one path: each step for itself would parse the spec anew. The operator of Postgres reads a name NULL as none.
    if dialect.name == "postgresql":
        return func.json_extract_path_text(jobs.c.spec, *path, type_=Text)
    text: ColumnElement[str] = jobs.c.spec[path].as_string()
    return text


def _binary(column: ColumnElement[Any], dialect: Dialect) -> ColumnElement[Any]:
    """Compared code point by code point, whatever language the database was made for."""
    return collate(column, "C") if dialect.name == "postgresql" else column
