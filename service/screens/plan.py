"""What a job would do, before any of it is done: bounds and limits, time and cost, what the teacher offers."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from search.budget import AT_LEAST
from service.schemas import Expectation, Plan, PlannedLevel, Share
from service.screens.words import Signs, bound, duration, measure, percent, plural

_BAR, _NARROW_BAR, _WIDE = 24, 10, 100
"""Cells of a bar from the smallest value of a metric to the largest, on a screen of so many columns and on others."""


def plan_screen(plan: Plan, *, width: int, signs: Signs, report: bool = False) -> RenderableType:
    """The whole plan; of the report every line when asked for, else how many modules there are of each kind."""
    parts: list[RenderableType] = [
        _heading(plan, signs),
        Text(),
        _metrics(plan, signs, _BAR if width >= _WIDE else _NARROW_BAR),
        Text(),
    ]
    parts += [_levels(plan, signs), Text(), _estimate(plan, signs), Text()]
    parts.append(_report(plan) if report else _folded(plan))
    return Padding(Group(*parts), (1, 2))


def _heading(plan: Plan, signs: Signs) -> RenderableType:
    images = " + ".join(f"{count:,} {name}" for name, count in plan.dataset.images.items())
    shape = signs.times.join(map(str, plan.dataset.shape))
    kinds = ", ".join(f"{count} {kind}" for kind, count in plan.space.kinds.items())
    grid = _grid()
    grid.add_row("teacher", Text(plan.teacher.name, "bold"))
    grid.add_row("dataset", f"{plan.dataset.name}: {plan.dataset.classes} classes, images {shape}, {images}")
    grid.add_row("space", f"{plural(plan.space.sites, 'site')} ({kinds}), at most {plan.space.size:.2g} students")
    return grid


def _metrics(plan: Plan, signs: Signs, cells: int) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    larger = plan.largest != plan.teacher.cost  # where a choice lowers one cost and raises another
    for name in ("", "teacher", "smallest", "range", *(["largest"] if larger else []), "limit"):
        right = name in ("teacher", "smallest")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "limit", overflow="fold")
    for metric, cost in plan.teacher.cost.items():
        limits = [level.limits[metric] for level in plan.levels if metric in level.limits]
        least, most = plan.smallest[metric], plan.largest[metric]
        asked = Text("\n").join(
            Text(f"{bound(metric, limit, signs)} ({percent(limit / cost)})") for limit in dict.fromkeys(limits)
        )
        table.add_row(
            metric,
            measure(metric, cost),
            f"{measure(metric, least)} ({percent(least / cost)})",
            _bar(least, most, limits, signs, cells, upwards=metric in AT_LEAST),
            *([measure(metric, most)] if larger else []),
            asked,
        )
    return table


def _bar(least: int, most: int, limits: list[int], signs: Signs, cells: int, *, upwards: bool) -> Text:
    """From the smallest value on the left to the largest on the right: what every limit allows, and where they are."""
    places = [round((cells - 1) * (min(max(limit, least), most) - least) / max(most - least, 1)) for limit in limits]
    bar = Text()
    for cell in range(cells):
        allowed = all(cell >= place if upwards else cell <= place for place in places)
        if cell in places:
            bar.append(signs.upright, "bold")
        else:
            bar.append(signs.bar if allowed else signs.axis, "green" if allowed and places else "dim")
    return bar


def _levels(plan: Plan, signs: Signs) -> RenderableType:
    grid = _grid()
    for number, level in enumerate(plan.levels, start=1):
        name = "budget" if len(plan.levels) == 1 else f"level {number}"
        limits = ", ".join(f"{metric} {bound(metric, limit, signs)}" for metric, limit in level.limits.items())
        grid.add_row(name, Text.assemble((f"{signs.tick} proved feasible", "green"), f": {limits}"))
        grid.add_row("", Text(f"narrowed evenly: {_student(plan, level)}", "dim"))
        binds = f"; {level.binding} binds" if level.binding is not None and len(level.limits) > 1 else ""
        grid.add_row("", Text(f"{_share(level.share)} of the space fits{binds}", "dim"))
    if plan.unmeasured:
        grid.add_row("unmeasured", f"{', '.join(plan.unmeasured)}: not to be had here; the workers will judge it")
    return grid


def _student(plan: Plan, level: PlannedLevel) -> str:
    metrics = level.limits or plan.teacher.cost
    return ", ".join(
        f"{metric} {measure(metric, level.witness.cost[metric])} "
        f"({percent(level.witness.cost[metric] / plan.teacher.cost[metric])})"
        for metric in metrics
    )


def _share(share: Share) -> str:
    if share.fitting:
        decimals = 1 if share.low >= 0.01 else 4
        return f"{100 * share.low:.{decimals}f} to {100 * share.high:.{decimals}f} %"
    return f"fewer than 1 in {int(1 / share.high):,}"


def _estimate(plan: Plan, signs: Signs) -> RenderableType:
    rungs = ", ".join(f"{steps:,}" for steps in plan.rungs)
    doing = {
        "search": f"{plural(plan.trials, 'trial')} at rungs of {rungs} steps",
        "finalists": plural(plan.finalists, "finalist") + (" a level" if len(plan.levels) > 1 else ""),
    }
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("phase", "at least", "expected", "at most", ""):
        table.add_column(name, justify="left" if name in ("phase", "") else "right", overflow="fold")
    for phase in plan.estimate.phases:
        table.add_row(phase.phase, *_times(phase), Text(doing.get(phase.phase, ""), "dim"))
    seconds, cost = plan.estimate.seconds, plan.estimate.cost
    hours = f"{cost.expected:.2g} {plan.estimate.unit} ({cost.low:.2g} to {cost.high:.2g})"
    table.add_row("together", *(Text(said, "bold") for said in _times(seconds)), hours)
    return Group(table, Text(plan.estimate.basis, "dim"))


def _times(span: Expectation) -> tuple[str, str, str]:
    return duration(span.low), duration(span.expected), duration(span.high)


def _folded(plan: Plan) -> RenderableType:
    grid = _grid()
    for status, count in Counter(module.status for module in plan.report).most_common():
        reasons = Counter(module.reason for module in plan.report if module.status == status and module.reason)
        why = "; ".join(reason if number == count else f"{number} {reason}" for reason, number in reasons.most_common())
        grid.add_row(status, Text.assemble(plural(count, "module"), (f": {why}" if why else "", "dim")))
    return grid


def _report(plan: Plan) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("module", "what can be done", "at which site, or why not"):
        table.add_column(name, overflow="fold")
    for module in plan.report:
        why = module.site or f"{module.reason} ({module.where})"
        table.add_row(module.module, module.status, Text(why, "" if module.site else "dim"))
    return table


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid
