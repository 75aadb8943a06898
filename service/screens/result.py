"""The screen at the end of a job."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from service.documents import JobDocument, TeacherMetrics, TrialDocument
from service.screens.glass import Glass
from service.screens.plot import Picture, Point, scatter
from service.screens.trust import trust_lines
from service.screens.words import UNICODE, Signs, bound, duration, measure, merit, percent, plural, points, ratio, size
from service.students import StudentDocument, VerdictDocument
from workers.ports import JobState

PLOTTED = "macs"
_HEIGHT = 9
_DETECTION = {"ap50": "AP50", "miss_rate": "miss rate"}
_PARAMETER_BYTES = 4
"""Of a float32, in which teachers are kept."""


def result_screen(
    job: JobDocument, candidates: Sequence[Point], *, width: int, signs: Signs, folder: Path | None = None
) -> RenderableType:
    """
    `candidates` are (macs, validation accuracy) of the scored trials; `folder` is where the student lies on this
    machine, or None while it has not been fetched.
    """
    finished = _finished(job)
    if finished is None:
        return unfinished_screen(job, signs=signs)
    table = _comparison(finished, signs) if len(job.students) == 1 else _ladder(finished, signs)
    parts: list[RenderableType] = [_headline(finished, signs)]
    if job.reason:  # a student that missed its times
        parts.append(Text(job.reason, "bold red"))
    parts += [Text(), table]
    picture = _picture(finished, candidates)
    if picture is not None:
        parts += [Text(), *scatter(picture, width=min(width - 4, 76), height=_HEIGHT, signs=signs)]
        parts.append(_legend(merit(job.spec), signs, taught=finished.metrics is not None))
    trusted = trust_lines(job, signs)
    if trusted:
        parts += [Text(), *(Text(line, "dim") for line in trusted)]
    if folder is not None:
        parts += [Text(), _whereabouts(job, folder)]
    return Padding(Group(*parts), (1, 2))


@dataclass(frozen=True, slots=True)
class _Finished:
    """A job with a student, its parts without None. Of a ladder, `student` is that of the loosest level."""

    job: JobDocument
    cost: Mapping[str, int]
    """Of the teacher, or where there is none of the untrained network that students are cut from."""
    metrics: TeacherMetrics | None
    """Of the teacher, where there is one."""
    student: StudentDocument

    @property
    def whole(self) -> str:
        """What students are compared with."""
        return "untrained" if self.metrics is None else "teacher"

    def lost(self, accuracy: float, signs: Signs) -> str:
        """What lies between the teacher's accuracy on the test set and a student's."""
        return "" if self.metrics is None else points(accuracy - self.metrics.accuracy, signs)


def _finished(job: JobDocument) -> _Finished | None:
    if job.student is None or job.teacher.cost is None:
        return None
    return _Finished(job, job.teacher.cost, job.teacher.metrics, job.student)


def as_svg(job: JobDocument, candidates: Sequence[Point]) -> str:
    """The screen as it looks in a terminal of 84 columns."""
    console = Glass(record=True, width=84, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(result_screen(job, candidates, width=84, signs=UNICODE, folder=Path("student")), highlight=False)
    # rich's frame has a viewer fetch fonts from another host; what monospace font there is will do.
    return re.sub(r"@font-face \{.*?\}|<!--.*?-->", "", console.export_svg(title="stillhouse"), flags=re.DOTALL)


def unfinished_screen(job: JobDocument, *, signs: Signs) -> RenderableType:
    """For a job without a student."""
    style = "bold red" if job.state is JobState.FAILED else "bold"
    line = Text.assemble((job.id, "bold"), "  ", (job.state, style))
    if job.timing.seconds is not None:
        line.append(f"  after {duration(job.timing.seconds)}", "dim")
    parts: list[RenderableType] = [line]
    if job.reason:
        parts.append(Text(job.reason))
    parts += [Text(line, "dim") for line in trust_lines(job, signs)]
    if job.best is not None:
        reached = f"{percent(job.best.accuracy)} {merit(job.spec)}"
        parts.append(Text(f"best so far: trial {job.best.number}, {reached}", "dim"))
    return Padding(Group(*parts), (1, 2))


def _headline(finished: _Finished, signs: Signs) -> Text:
    """
    `small_resnet → 5.1× fewer MACs, 4.3× fewer params, −0.4 pt accuracy, 12 trials, 1 m 02 s, 8 stopped early`; of a
    ladder `small_resnet → 3 students, 2.0× to 10.0× fewer MACs, ...`.
    """
    job, students = finished.job, finished.job.students
    gains = [] if len(students) == 1 else [plural(len(students), "student")]
    for metric, word in (("macs", "MACs"), ("params", "params")):
        if metric in finished.cost and metric in finished.student.cost:
            ratios = [ratio(finished.cost[metric], student.cost[metric], signs) for student in students]
            gains.append(f"{_span(ratios)} fewer {word}")
    reached = [
        finished.lost(student.metrics.accuracy, signs) or percent(student.metrics.accuracy) for student in students
    ]
    gains.append(f"{_span(reached)} {merit(job.spec)}")
    effort = [plural(job.trials.total, "trial")]
    if job.timing.seconds is not None:
        effort.append(duration(job.timing.seconds))
    effort.append(f"{job.trials.stopped} stopped early")
    return Text.assemble(
        (job.teacher.name, "bold"),
        f" {signs.arrow} ",
        (", ".join(gains), "bold green"),
        (", " + ", ".join(effort), "dim"),
    )


def _span(said: Sequence[str]) -> str:
    return said[0] if said[0] == said[-1] else f"{said[0]} to {said[-1]}"


def trial_points(trials: Iterable[TrialDocument], metric: str = PLOTTED) -> list[Point]:
    """Cost and last validation accuracy of the trials that were scored."""
    return [(trial.cost[metric], trial.scores[-1].accuracy) for trial in trials if trial.scores]


def _comparison(finished: _Finished, signs: Signs) -> Table:
    student = finished.student
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    for name in (finished.whole, "student", ""):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    table.add_row(
        merit(finished.job.spec),
        "" if finished.metrics is None else percent(finished.metrics.accuracy),
        Text(percent(student.metrics.accuracy), "bold"),
        finished.lost(student.metrics.accuracy, signs),
    )
    for group, reached in student.metrics.shots.items():
        taught = None if finished.metrics is None else finished.metrics.shots.get(group)
        told = ("", "") if taught is None else (percent(taught), points(reached - taught, signs))
        table.add_row(f"  {group}-shot", told[0], percent(reached), told[1])
    for name, reached in student.metrics.detection.items():
        taught = None if finished.metrics is None else finished.metrics.detection.get(name)
        told = ("", "") if taught is None else (percent(taught), points(reached - taught, signs))
        table.add_row(f"  {_DETECTION.get(name, name)}", told[0], percent(reached), told[1])
    verdicts = {verdict.metric: verdict for verdict in student.verdicts}
    times = {time.metric: time for time in student.times}
    if "accuracy" in verdicts:
        after, said = student.metrics.validation_accuracy, _said(verdicts["accuracy"], signs)
        before = None if finished.metrics is None else finished.metrics.validation_accuracy
        compared = ["", percent(after), ""]
        if before is not None:
            compared = [percent(before), percent(after), points(after - before, signs)]
        table.add_row("  validation", *compared, said)
    for metric in _shown(student, finished.cost):
        cost, spent = finished.cost[metric], student.cost[metric]
        said = _said(verdicts[metric], signs) if metric in verdicts else Text()
        table.add_row(metric, measure(metric, cost), Text(measure(metric, spent), "bold"), percent(spent / cost), said)
        if metric in times:
            guess = times[metric].predicted
            table.add_row("  predicted", "", measure(metric, guess), percent(guess / cost))
    if "params" in finished.cost:
        whole = _PARAMETER_BYTES * finished.cost["params"]
        table.add_row("weights", f"~ {size(whole)}", Text(size(student.bytes), "bold"), percent(student.bytes / whole))
    return table


def _ladder(finished: _Finished, signs: Signs) -> Table:
    """For the teacher and the student of each level a line for each cost, with the verdict where it is limited."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", merit(finished.job.spec), ""):
        table.add_column(name, justify="left" if not table.columns else "right", no_wrap=True)
    table.add_column("cost", no_wrap=True)
    for _ in range(2):
        table.add_column("", justify="right", no_wrap=True)
    table.add_column("limit")
    metrics = _shown(finished.student, finished.cost)
    head = [finished.whole, "" if finished.metrics is None else percent(finished.metrics.accuracy), ""]
    for metric in metrics:
        table.add_row(*head, metric, measure(metric, finished.cost[metric]), "", "")
        head = ["", "", ""]
    for student in finished.job.students:
        accuracy = student.metrics.accuracy
        row: list[RenderableType] = [
            Text(student.folder, "bold"),
            Text(percent(accuracy), "bold"),
            finished.lost(accuracy, signs),
        ]
        verdicts = {verdict.metric: verdict for verdict in student.verdicts}
        for metric in metrics:
            spent = student.cost[metric]
            table.add_row(
                *row,
                metric,
                Text(measure(metric, spent), "bold"),
                percent(spent / finished.cost[metric]),
                _said(verdicts[metric], signs) if metric in verdicts else "",
            )
            row = ["", "", ""]
    return table


def _shown(student: StudentDocument, teacher: Mapping[str, int]) -> list[str]:
    """The costs that a screen has room for: macs, params, and what is limited."""
    metrics = dict.fromkeys(["macs", "params", *(verdict.metric for verdict in student.verdicts)])
    return [metric for metric in metrics if metric in teacher and metric in student.cost]


def _said(verdict: VerdictDocument, signs: Signs) -> Text:
    missed = "under" if verdict.at_least else "over"
    sign, word, style = (signs.tick, "fits", "green") if verdict.fits else (signs.cross, missed, "bold red")
    return Text.assemble((f"{bound(verdict.metric, verdict.limit, signs)} ", "dim"), (f"{sign} {word}", style))


def _picture(finished: _Finished, candidates: Sequence[Point]) -> Picture | None:
    if PLOTTED not in finished.cost or PLOTTED not in finished.student.cost:
        return None
    students = finished.job.students
    limits = {v.limit for student in students for v in student.verdicts if v.metric == PLOTTED}
    return Picture(
        candidates=candidates,
        teacher=None if finished.metrics is None else (finished.cost[PLOTTED], finished.metrics.validation_accuracy),
        students=[(student.cost[PLOTTED], student.metrics.validation_accuracy) for student in students],
        limits=sorted(limits),
    )


def _legend(judged: str, signs: Signs, *, taught: bool) -> Text:
    dot = "\u2802" if signs.braille else "o"
    teacher = Text.assemble((signs.teacher, "bold yellow"), " teacher  ") if taught else Text()
    return Text.assemble(
        (f"validation {judged} over macs   ", "dim"),
        teacher,
        (signs.student, "bold green"),
        " student  ",
        (dot, "cyan"),
        " trials  ",
        (signs.limit, "dim"),
        " limit",
    )


def _whereabouts(job: JobDocument, folder: Path) -> Group:
    students = [student.folder for student in job.students]
    several = len(students) > 1
    first = folder / students[0] if several else folder
    where = [(f"{shown_path(folder)}/", "bold")]
    if several:
        where = [(f"{shown_path(folder / name)}/", "bold") for name in (students[0], students[-1])]
    said = Text("The students lie in " if several else "The student lies in ")
    said.append_text(Text(" to ").join(Text(*place) for place in where))
    return Group(said, Text(), *(Text(f"    {line}", "cyan") for line in snippet(first, job.spec)))


def snippet(folder: Path, spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """Three lines of Python that load the student; they work from the folder where the command was given."""
    place = shown_path(folder)
    answers = "rows of x1, y1, x2, y2, score, class" if spec.get("task") == "detection" else "logits"
    return (
        "import runpy",
        f'load = runpy.run_path("{place}/load.py")["load"]',
        f'student = load("{place}")   # normalised images -> {answers}',
    )


def shown_path(path: Path) -> str:
    """As a person would write it: relative when it lies below the current folder."""
    path = path.absolute()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.as_posix()
