"""A job while it goes on: a picture that is drawn anew, or a line for each event where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.trial import State
from service.board import Board, Contender, Happened
from service.screens.words import Signs, aims, amount, bound, duration, measure, merit, percent, plural, sparkline
from workers.ports import JobState, Phase

_STYLES = {
    JobState.SUCCEEDED: "bold green",
    JobState.FAILED: "bold red",
    JobState.CANCELLED: "bold yellow",
}
_BAR = 22
"""Columns of a progress bar."""


def live_screen(board: Board, *, now: datetime, signs: Signs, rows: int = 5) -> RenderableType:
    """Header, phases, the best so far, the first `rows` of the ranking, trials by state."""
    parts: list[RenderableType] = [_header(board, now, signs), Text(), _phases(board, now, signs)]
    if board.best is not None:
        best = _best(board, board.best, signs) if len(board.levels) == 1 else _best_of_levels(board, signs)
        parts += [Text(), best, Text(), _ranking(board, rows)]
    if board.contenders:
        parts += [Text(), _counts(board, signs)]
    return Group(*parts)


def _header(board: Board, now: datetime, signs: Signs) -> RenderableType:
    began = board.began_at or now
    elapsed = max(((board.ended_at or now) - began).total_seconds(), 0.0)
    first = Text.assemble(
        (board.job_id, "bold"), "  ", (board.state, _STYLES.get(board.state, "bold cyan")), f"  {duration(elapsed)}"
    )
    return Group(first, Text(aim(board.spec, signs), "dim"))


def aim(spec: Any, signs: Signs) -> str:
    """`small_resnet on digits, macs ≤ 25%`."""
    return f"{spec['teacher']['name']} on {spec['dataset']['name']}, {aims(spec['budget'], signs)}"


def _phases(board: Board, now: datetime, signs: Signs) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=2)
    grid.add_column(min_width=10)
    grid.add_column(width=_BAR)
    grid.add_column(min_width=22)
    grid.add_column(justify="right")
    for phase, station in board.stations.items():
        spent = station.seconds(board.ended_at or now)
        if spent is None and phase.optional:
            continue
        time = "" if spent is None else duration(spent)
        if station.ended_at is not None:
            mark, bar = Text(signs.tick, "green"), _bar(1, 1, signs)
        elif spent is not None:
            mark, bar = Text(signs.active, "cyan"), _bar(station.done, station.total, signs)
        else:
            mark, bar = Text(signs.waiting, "dim"), Text()
        grid.add_row(
            mark, Text(phase, "" if spent is not None else "dim"), bar, Text(_news(board, phase)), Text(time, "dim")
        )
    return grid


def _bar(done: int, total: int, signs: Signs) -> Text:
    filled = round(_BAR * min(done / total, 1)) if total else 0
    return Text.assemble((signs.bar * filled, "cyan"), (signs.axis * (_BAR - filled), "dim"))


def _news(board: Board, phase: Phase) -> str:
    station = board.stations[phase]
    if phase is Phase.TEACHER and board.teacher_accuracy is not None:
        return f"{percent(board.teacher_accuracy)} {merit(board.spec)}"
    if phase is Phase.SURVEY and "macs" in board.teacher_cost:
        return f"{amount(board.teacher_cost['macs'])} macs"
    if phase is Phase.SEARCH and station.total:
        return f"{station.done} of {plural(station.total, 'trial')}"
    if station.total and station.ended_at is None:
        unit = _UNITS.get(phase, "")
        return f"{station.done:,} of {station.total:,} {unit}".rstrip()
    return "" if station.result is None else _prepared(phase, station.result)


_UNITS = {
    Phase.TEACHER: "epochs",
    Phase.LIBRARY: "entries",
    Phase.ELASTIC: "steps",
    Phase.STRUCTURE: "steps",
    Phase.FINALISTS: "steps",
}


def _prepared(phase: str, result: Mapping[str, Any]) -> str:
    """What a phase between survey and search came to."""
    match phase:
        case Phase.TEACHER:
            return "none" if result["source"] == "untrained" else ""
        case Phase.LIBRARY:
            return ", ".join(f"{result[how]:,} {how}" for how in ("trained", "reused") if result[how])
        case Phase.PLAN:
            return plural(len(result["starts"]), "start")
        case Phase.STRUCTURE if not result["reused"]:
            return ", ".join(
                f"{amount(value)} {metric}" for level in result["levels"] for metric, value in level["cost"].items()
            )
        case Phase.ELASTIC | Phase.STRUCTURE:
            return "reused" if result["reused"] else plural(result["steps"], "step")
    return ""


def _best(board: Board, best: Contender, signs: Signs) -> Text:
    line = Text.assemble(
        ("best so far  ", "dim"),
        (f"trial {best.number}", "bold"),
        f"  {percent(best.accuracy or 0)}",
        (f" at {_shares(board, best, board.limits)}" if board.teacher_cost else "", ""),
    )
    if len(board.course) > 1:
        line.append("  " + sparkline(board.course, 24, signs), "cyan")
    return line


def _best_of_levels(board: Board, signs: Signs) -> Table:
    """What differs from level to level is enough to tell them apart."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("level", justify="right")
    table.add_column("limit")
    table.add_column("best so far")
    first, last = board.levels[0].limits, board.levels[-1].limits
    metrics = [metric for metric in first if first[metric] != last[metric]]
    for level, budget in enumerate(board.levels):
        limits = ", ".join(f"{metric} {bound(metric, budget.limits[metric], signs)}" for metric in metrics)
        best, said = board.best_of(level), Text()
        if best is not None:
            shares = _shares(board, best, metrics)
            said = Text.assemble((f"trial {best.number}", "bold"), f"  {percent(best.accuracy or 0)} at {shares}")
        table.add_row(str(level + 1), Text(limits, "dim"), said)
    return table


def _shares(board: Board, trial: Contender, metrics: Iterable[str]) -> str:
    shown = [metric for metric in metrics if board.teacher_cost.get(metric)] or ["macs"]
    return ", ".join(f"{percent(trial.cost[metric] / board.teacher_cost[metric])} {metric}" for metric in shown)


def _ranking(board: Board, rows: int) -> Table:
    rungs = len(board.spec["search"]["rungs"])
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("trial", merit(board.spec), "macs", "params", "rung"):
        table.add_column(name, justify="right")
    table.add_column("")
    for trial in board.ranking[:rows]:
        shares = [
            percent(trial.cost[metric] / board.teacher_cost[metric]) if board.teacher_cost.get(metric) else ""
            for metric in ("macs", "params")
        ]
        table.add_row(
            str(trial.number),
            percent(trial.accuracy or 0),
            *shares,
            f"{trial.rungs}/{rungs}",
            Text(trial.state.lower(), "dim"),
        )
    return table


def _counts(board: Board, signs: Signs) -> Text:
    counts = board.counts()
    shown = [State.RUNNING, State.PENDING, State.COMPLETED, State.STOPPED, State.FAILED]
    words = [f"{counts[state]} {state.lower()}" for state in shown if counts[state] or state is not State.FAILED]
    return Text(f"trials  {f' {signs.dot} '.join(words)}", "dim")


def event_line(event: Happened, spec: Any) -> str | None:
    """One event in words; None for those that say nothing new."""
    data = event.data
    match event.kind:
        case "JOB_CLAIMED":
            again = data.get("claim", 1)
            return "started" if again == 1 else f"taken up again (claim {again})"
        case "LEASE_EXPIRED":
            return "its driver has gone silent; another will go on"
        case "PHASE_ENTERED":
            return f"{data['phase']}: begun"
        case "PHASE_FINISHED":
            return f"{data['phase']}: done{_outcome(data['phase'], data['result'], spec)}"
        case "IMAGES_SKIPPED":
            return f"{data['skipped']:,} of {plural(data['images'], 'image')} cannot be used and are skipped"
        case "PROGRESS" if "blocks" in data:
            alive = sum(data["blocks"].values())
            return f"{data['phase']}: {data['done']:,} of {data['total']:,}, {amount(alive)} {data['metric']} alive"
        case "PROGRESS" if "done" in data:
            return f"{data['phase']}: {data['done']:,} of {data['total']:,}"
        case "TRIAL_SCORED":
            rungs = len(spec["search"]["rungs"])
            return (
                f"trial {data['number']}: {_reached(data, spec)} at rung {data['rung'] + 1} of {rungs} "
                f"(step {data['step']:,}){_near(data)}{_known(data)}"
            )
        case "FINALIST_SCORED":
            return f"finalist, trial {data['number']}: {_reached(data, spec)}{_near(data)}{_known(data)}"
        case "REPEAT_SCORED":
            return f"trial {data['number']} again with another seed: {_reached(data, spec)}"
        case "TRIAL_STOPPED":
            return f"trial {data['number']}: stopped early"
        case "TRIAL_FAILED" | "TRIAL_RETURNED":
            word = "failed" if event.kind == "TRIAL_FAILED" else "lost its machine, will be given out again"
            return f"trial {data['number']}: {word}{': ' if data.get('reason') else ''}{data.get('reason', '')}"
        case "ARTIFACT_KEPT":
            return f"kept {data['name']}"
        case "CANCEL_REQUESTED" | "PAUSE_REQUESTED":
            return f"asked to {event.kind.removesuffix('_REQUESTED').lower()}"
        case "JOB_PAUSED" | "JOB_RESUMED":
            return event.kind.removeprefix("JOB_").lower()
        case "JOB_CHANGED":
            return f"changed: {', '.join(pointer[1:] for pointer in data['changes'])}"
        case "JOB_SUCCEEDED":
            return "succeeded"
        case "JOB_FAILED" | "JOB_CANCELLED":
            return (
                f"{event.kind.removeprefix('JOB_').lower()}{': ' if data.get('reason') else ''}{data.get('reason', '')}"
            )
    return None


def _reached(data: Mapping[str, Any], spec: Any) -> str:
    return f"{percent(data['accuracy'])} {merit(spec)}"


def _near(data: Mapping[str, Any]) -> str:
    """To the teacher; where there is none, all distances are 0."""
    return f", kl {data['kl']:.3f}" if data["kl"] else ""


def _known(data: Mapping[str, Any]) -> str:
    return ", known from before" if data.get("cached") else ""


def _outcome(phase: str, result: Any, spec: Any) -> str:
    if phase == "teacher":
        accuracy = result["accuracy"]
        return f", {result['source']}" + ("" if accuracy is None else f", {percent(accuracy)} {merit(spec)}")
    if phase == "survey":
        costs = ", ".join(
            f"{measure(metric, value)} {metric}" for metric, value in result["cost"].items() if metric != "flops"
        )
        return f", the teacher has {costs}; {plural(result['sites'], 'site')}"
    said = _prepared(phase, result)
    return f", {said}" if said else ""
