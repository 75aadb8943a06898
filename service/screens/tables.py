"""Lists: jobs, trials, artifacts, plugins, checks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from search.budget import Budget, level_of
from search.errors import FieldError
from search.trial import State
from service.documents import JobDocument, TrialDocument
from service.schemas import CatalogEntry, DeliveryDocument, KeyDocument, Usage, WebhookDocument
from service.screens.words import Signs, age, aims, duration, measure, merit, percent, plural
from workers.ports import JobState

_STATES = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.QUEUED: "dim",
}


def jobs_table(jobs: Iterable[JobDocument], *, now: datetime) -> RenderableType:
    """Ids are never folded: they are there to be copied."""
    table = listing("job", "state", "what", ">student", ">age", whole=("job", "state", "student", "age"), gap=2)
    for job in jobs:
        table.add_row(
            job.id,
            Text(f"{job.state}{_pausing(job)}", _STATES.get(job.state, "cyan")),
            f"{job.teacher.name} on {job.spec['dataset']['name']}",
            _accuracies(job),
            age((now - job.created_at).total_seconds()),
        )
    return table


def _accuracies(job: JobDocument) -> str:
    """Of the student, or of the loosest and the tightest of a ladder."""
    found = [percent(student.metrics.accuracy) for student in job.students]
    return "".join(found) if len(found) < 2 else f"{found[0].removesuffix(' %')} / {found[-1]}"


def job_screen(job: JobDocument, *, signs: Signs) -> RenderableType:
    """A job that has not ended, in a few lines."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    rows: list[tuple[str, RenderableType]] = [
        ("job", Text(job.id, "bold")),
        ("state", Text(f"{job.state}{_pausing(job)}", _STATES.get(job.state, "cyan"))),
        ("teacher", job.teacher.name),
        ("dataset", f"{job.spec['dataset']['name']}{_skipped(job)}"),
        ("budget", aims(job.spec["budget"], signs)),
    ]
    if job.reason:
        rows.append(("reason", job.reason))
    if job.phase is not None and not job.state.terminal:
        progress = f", {job.progress.done} of {job.progress.total}" if job.progress else ""
        rows.append(("phase", f"{job.phase}{progress}"))
    if job.teacher.metrics is not None:
        rows.append((merit(job.spec), f"{percent(job.teacher.metrics.accuracy)} (teacher)"))
    if job.trials.total:
        rows.append(("trials", _trial_counts(job)))
    if job.best is not None:
        rows.append(("best", f"trial {job.best.number}, {percent(job.best.accuracy)} at rung {job.best.rung + 1}"))
    if job.timing.seconds is not None:
        rows.append(("time", duration(job.timing.seconds)))
    for name, value in rows:
        grid.add_row(name, value)
    return Padding(grid, (1, 2))


def _skipped(job: JobDocument) -> str:
    found = job.skipped_images
    return "" if found is None else f", {found.count:,} of {plural(found.images, 'image')} skipped"


def _pausing(job: JobDocument) -> str:
    if job.state.terminal or not job.pause_requested:
        return ""
    return " (paused)" if job.paused else " (about to pause)"


def _trial_counts(job: JobDocument) -> str:
    counts = job.trials.model_dump()
    return ", ".join(f"{counts[name]} {name}" for name in counts if name == "total" or counts[name])


def trials_table(
    trials: Sequence[TrialDocument], teacher: Mapping[str, int] | None, levels: Sequence[Mapping[str, int]] = ()
) -> RenderableType:
    """
    Costs are shares of the teacher's once those are known: macs, params and what is limited. With several `levels`,
    loosest first, each trial has the tightest that it fits.
    """
    wanted = dict.fromkeys(["macs", "params", *(levels[0] if levels else ())])
    metrics = [metric for metric in wanted if trials and metric in trials[0].cost]
    failed = any(trial.state is State.FAILED for trial in trials)
    budgets = [Budget(limits) for limits in levels] if len(levels) > 1 else []
    # Without a teacher all are 0, and nobody is near to anything.
    near = not any(trial.scores for trial in trials) or any(score.kl for trial in trials for score in trial.scores)
    columns = [">trial", *([">level"] if budgets else []), "state", ">rungs", ">accuracy", *([">kl"] if near else [])]
    table = listing(*columns, *(f">{metric}" for metric in metrics), *(["reason"] if failed else []))
    for trial in trials:
        score = trial.scores[-1] if trial.scores else None
        costs = [
            percent(trial.cost[metric] / teacher[metric]) if teacher else measure(metric, trial.cost[metric])
            for metric in metrics
        ]
        table.add_row(
            str(trial.number),
            *([str(level_of(budgets, trial.cost) + 1)] if budgets else []),
            trial.state.lower(),
            str(len(trial.scores)),
            percent(score.accuracy) if score else "",
            *([f"{score.kl:.3f}" if score else ""] if near else []),
            *costs,
            *([trial.reason if trial.state is State.FAILED else ""] if failed else []),
        )
    return table


def ordered(trials: Iterable[TrialDocument], key: str) -> list[TrialDocument]:
    """By `number`, by `accuracy` (best first) or by a cost (least first). Raises `KeyError` for another word."""
    if key == "number":
        return sorted(trials, key=lambda trial: trial.number)
    if key == "accuracy":
        return sorted(trials, key=lambda trial: -(trial.scores[-1].accuracy if trial.scores else -1.0))
    return sorted(trials, key=lambda trial: trial.cost[key])


def pareto(trials: Iterable[TrialDocument], metric: str) -> list[TrialDocument]:
    """The scored trials that no other one beats in both accuracy and `metric`, cheapest first."""
    scored = [trial for trial in trials if trial.scores]
    front: list[TrialDocument] = []
    for trial in sorted(scored, key=lambda trial: (trial.cost[metric], -trial.scores[-1].accuracy)):
        if not front or trial.scores[-1].accuracy > front[-1].scores[-1].accuracy:
            front.append(trial)
    return front


def catalog_table(entries: Iterable[CatalogEntry]) -> RenderableType:
    table = listing("name", "what it is", "options and their defaults")
    for entry in entries:
        properties = entry.options.get("properties", {})
        options = [_option(name, schema) for name, schema in properties.items()]
        table.add_row(Text(entry.name, "bold"), entry.summary, Text("\n".join(options) or "none", "dim"))
        table.add_row()
    return table


def _option(name: str, schema: Mapping[str, Any]) -> str:
    return f"{name}: {json.dumps(schema['default'])}" if "default" in schema else f"{name} (required)"


def mistakes(errors: Iterable[FieldError], signs: Signs) -> RenderableType:
    """One block a mistake: where, what and remedy, what could stand there."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for error in errors:
        message = Text(error.message)
        if error.allowed and len(error.allowed) <= 16:
            message.append(f"\nallowed: {', '.join(error.allowed)}", "dim")
        grid.add_row(f"  {signs.cross} {error.pointer or '/'}", message)
    return grid


def keys_table(keys: Iterable[KeyDocument]) -> RenderableType:
    table = listing("key", "tenant", "scope", "name", "made", "expires", "last used", whole=("key", "expires"))
    for key in keys:
        ends = Text("revoked", "yellow") if key.revoked_at else Text(day(key.expires_at) or "never")
        table.add_row(key.id, key.tenant, key.scope, key.name, day(key.created_at), ends, day(key.last_used_at))
    return table


def webhooks_table(webhooks: Iterable[WebhookDocument]) -> RenderableType:
    table = listing("webhook", "to", "told of", "made", whole=("webhook",))
    for webhook in webhooks:
        kinds = Text(", ".join(webhook.kinds))
        if webhook.disabled_at is not None:
            kinds = Text("nothing more: its receiver is gone", "yellow")
        table.add_row(webhook.id, webhook.url, kinds, day(webhook.created_at))
    return table


def deliveries_table(deliveries: Iterable[DeliveryDocument]) -> RenderableType:
    table = listing("delivery", "kind", "state", ">attempts", "next", "at the latest attempt", whole=("delivery",))
    styles = {"WAITING": "", "DELIVERED": "green", "DEAD": "red"}
    for each in deliveries:
        state = Text(each.state.lower(), styles[each.state])
        said = each.error or (str(each.status) if each.status else "")
        table.add_row(each.id, each.kind, state, str(each.attempts), day(each.next_at), said)
    return table


def tenants_table(tenants: Iterable[Usage]) -> RenderableType:
    """Used / allowed; nothing is said where there is no limit."""
    found = list(tenants)
    quotas = list(found[0].quotas) if found else []
    table = listing("tenant", *(f">{quota.replace('_', ' ')}" for quota in quotas), whole=("tenant",))
    for tenant in found:
        told = (
            f"{use.used:,.0f}" + (f" / {use.limit:,}" if use.limit is not None else "")
            for use in tenant.quotas.values()
        )
        table.add_row(tenant.tenant, *told)
    return table


def day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def listing(*columns: str, whole: Sequence[str] = (), gap: int = 3) -> Table:
    """A column whose name begins with `>` is set to the right; those in `whole` are never folded."""
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="dim")
    for column in columns:
        name = column.removeprefix(">")
        justify: Literal["left", "right"] = "left" if name == column else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in whole)
    return table
