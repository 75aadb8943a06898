"""What the trials of jobs come to: counted, and of a job that has ended as it was counted then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, Row, Select, and_, case, func, insert, select

from search.trial import Score, State
from service.store.conditions import is_latest, latest
from service.store.tables import scores, trials
from service.store.tables import standings as kept
from service.students import named
from workers.ports import JobRecord
from workers.standings import Placed, Standing, standing_of

NOTHING = standing_of([])
_DOCUMENT = TypeAdapter(Standing)


def standings(connection: Connection, found: Sequence[JobRecord]) -> list[Standing]:
    """Of these jobs, whatever the number of their trials, by five statements at most."""
    known = {record.id: NOTHING for record in found if not record.claims}
    known |= _kept(connection, [record.id for record in found if record.claims and record.state.terminal])
    if unknown := [record for record in found if record.id not in known]:
        known |= zip((record.id for record in unknown), _counted(connection, unknown), strict=True)
    return [known[record.id] for record in found]


def keep(connection: Connection, found: Iterable[JobRecord]) -> None:
    """
    Puts down what the trials of jobs come to that have just ended: neither they nor their trials change any more, and
    lists go through more of them than of others. What cannot be counted by this version is left to whoever looks at
    it: a job ends nevertheless.
    """
    ended = [record for record in found if record.claims]
    if not ended:
        return
    with suppress(ValidationError):
        rows = [
            {"job_id": record.id, "document": _DOCUMENT.dump_python(standing, mode="json")}
            for record, standing in zip(ended, _counted(connection, ended), strict=True)
        ]
        connection.execute(insert(kept), rows)


def _kept(connection: Connection, ids: Sequence[str]) -> dict[str, Standing]:
    """A version of the program that did not keep them may have ended some, and another may have kept them otherwise."""
    known = {}
    for row in connection.execute(select(kept).where(kept.c.job_id.in_(ids))) if ids else ():
        with suppress(ValidationError):
            known[row.job_id] = _DOCUMENT.validate_python(row.document)
    return known


def _counted(connection: Connection, found: Sequence[JobRecord]) -> list[Standing]:
    ids = [record.id for record in found]
    counted: dict[str, dict[State, Any]] = {job_id: {} for job_id in ids}
    for row in connection.execute(_counts(ids)):
        counted[row.job_id][State(row.state)] = row
    best = {row.job_id: row.id for row in connection.execute(_best(ids))}
    wanted = {job_id: named(record) for job_id, record in zip(ids, found, strict=True)}
    every = sorted(set(best.values()).union(*wanted.values()))
    known = {row.id: _placed(row) for row in connection.execute(_PLACED.where(trials.c.id.in_(every)))}
    return [
        Standing(
            counts={state: rows[state].trials if state in rows else 0 for state in State},
            promoted=sum(row.promoted for row in rows.values()),
            known=sum(row.known for row in rows.values()),
            settled=sum(row.trials if state.terminal else row.scored for state, row in rows.items()),
            best=known[best[job_id]] if job_id in best else None,
            trials={trial_id: known[trial_id] for trial_id in wanted[job_id] if trial_id in known},
        )
        for job_id, rows in counted.items()
    ]


_PLACED = select(
    trials.c.id,
    trials.c.number,
    trials.c.cost,
    *(latest.c[name] for name in ("rung", "step", "accuracy", "kl", "seconds", "cached")),
).select_from(trials.outerjoin(latest, is_latest))


def _placed(row: Row[Any]) -> Placed:
    trial_id, number, cost, *score = tuple(row)
    return Placed(trial_id, number, cost, None if score[0] is None else Score(*score))


def _counts(ids: Sequence[str]) -> Select[Any]:
    each = (
        select(
            trials.c.job_id,
            trials.c.state,
            func.count(scores.c.rung).label("scores"),
            func.sum(case((scores.c.cached, 1), else_=0)).label("cached"),
        )
        .outerjoin_from(trials, scores, scores.c.trial_id == trials.c.id)
        .where(trials.c.job_id.in_(ids))
        .group_by(trials.c.id, trials.c.job_id, trials.c.state)
        .subquery()
    )
    whole = and_(each.c.scores > 0, each.c.cached == each.c.scores)
    return select(
        each.c.job_id,
        each.c.state,
        func.count().label("trials"),
        func.sum(case((each.c.scores > 0, 1), else_=0)).label("scored"),
        func.sum(case((each.c.scores > 1, 1), else_=0)).label("promoted"),
        func.sum(case((whole, 1), else_=0)).label("known"),
    ).group_by(each.c.job_id, each.c.state)


def _best(ids: Sequence[str]) -> Select[Any]:
    """The trial that `search.rungs.Rungs.best` would put first. The first of all scores is its trial's last one."""
    untrained = scores.c.step == 0  # as `search.trial.Score.rank` has it
    order = (
        scores.c.rung.desc(),
        case((untrained, -scores.c.kl), else_=scores.c.accuracy).desc(),
        case((untrained, scores.c.accuracy), else_=-scores.c.kl).desc(),
        trials.c.number,
    )
    ranked = (
        select(
            trials.c.job_id,
            trials.c.id,
            func.row_number().over(partition_by=trials.c.job_id, order_by=order).label("place"),
        )
        .join(scores, scores.c.trial_id == trials.c.id)
        .where(trials.c.job_id.in_(ids), trials.c.state != State.FAILED)
        .subquery()
    )
    return select(ranked.c.job_id, ranked.c.id).where(ranked.c.place == 1)
