"""The screen at the end of a job."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from service.documents import JobDocument, StudentDocument, TeacherMetrics, TrialDocument, VerdictDocument
from service.screens.plot import Picture, Point, scatter
from service.screens.words import UNICODE, Signs, amount, duration, percent, plural, points, ratio, size
from workers.ports import JobState

PLOTTED = "macs"
_HEIGHT = 9
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
    parts: list[RenderableType] = [_headline(finished, signs), Text(), _comparison(finished, signs)]
    picture = _picture(finished, candidates)
    if picture is not None:
        parts += [Text(), *scatter(picture, width=min(width - 4, 76), height=_HEIGHT, signs=signs), _legend(signs)]
    if folder is not None:
        parts += [Text(), _whereabouts(folder)]
    return Padding(Group(*parts), (1, 2))


@dataclass(frozen=True, slots=True)
class _Finished:
    """A job with a student, its parts without None."""

    job: JobDocument
    cost: Mapping[str, int]
    """Of the teacher."""
    metrics: TeacherMetrics
    student: StudentDocument

    @property
    def loss(self) -> float:
        """Of accuracy on the test set; below zero when the student is worse."""
        return self.student.metrics.accuracy - self.metrics.accuracy


def _finished(job: JobDocument) -> _Finished | None:
    if job.student is None or job.teacher.metrics is None or job.teacher.cost is None:
        return None
    return _Finished(job, job.teacher.cost, job.teacher.metrics, job.student)


def as_svg(job: JobDocument, candidates: Sequence[Point]) -> str:
    """The screen as it looks in a terminal of 84 columns."""
    console = Console(record=True, width=84, file=io.StringIO(), force_terminal=True, color_system="truecolor")
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
    if job.best is not None:
        parts.append(Text(f"best so far: trial {job.best.number}, {percent(job.best.accuracy)} accuracy", "dim"))
    return Padding(Group(*parts), (1, 2))


def _headline(finished: _Finished, signs: Signs) -> Text:
    """`small_resnet → 5.1× fewer MACs, 4.3× fewer params, −0.4 pt accuracy, 12 trials, 1 m 02 s, 8 stopped early`."""
    job, student = finished.job, finished.student
    gains = [
        f"{ratio(finished.cost[metric], student.cost[metric], signs)} fewer {word}"
        for metric, word in (("macs", "MACs"), ("params", "params"))
        if metric in finished.cost and metric in student.cost
    ]
    gains.append(f"{points(finished.loss, signs)} accuracy")
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


def trial_points(trials: Iterable[TrialDocument], metric: str = PLOTTED) -> list[Point]:
    """Cost and last validation accuracy of the trials that were scored."""
    return [(trial.cost[metric], trial.scores[-1].accuracy) for trial in trials if trial.scores]


def _comparison(finished: _Finished, signs: Signs) -> Table:
    student = finished.student
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    for name in ("teacher", "student", ""):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    table.add_row(
        "accuracy",
        percent(finished.metrics.accuracy),
        Text(percent(student.metrics.accuracy), "bold"),
        points(finished.loss, signs),
    )
    verdicts = {verdict.metric: verdict for verdict in student.verdicts}
    for metric in dict.fromkeys(["macs", "params", *verdicts]):
        if metric not in finished.cost or metric not in student.cost:
            continue
        before, after = finished.cost[metric], student.cost[metric]
        said = _said(verdicts[metric], signs) if metric in verdicts else Text()
        table.add_row(metric, amount(before), Text(amount(after), "bold"), percent(after / before), said)
    if "params" in finished.cost:
        before = _PARAMETER_BYTES * finished.cost["params"]
        table.add_row(
            "weights", f"~ {size(before)}", Text(size(student.bytes), "bold"), percent(student.bytes / before)
        )
    return table


def _said(verdict: VerdictDocument, signs: Signs) -> Text:
    sign, word, style = (signs.tick, "fits", "green") if verdict.fits else (signs.cross, "over", "bold red")
    return Text.assemble((f"{signs.most} {amount(verdict.limit)} ", "dim"), (f"{sign} {word}", style))


def _picture(finished: _Finished, candidates: Sequence[Point]) -> Picture | None:
    student = finished.student
    if PLOTTED not in finished.cost or PLOTTED not in student.cost:
        return None
    limits = {verdict.metric: verdict.limit for verdict in student.verdicts}
    return Picture(
        candidates=candidates,
        teacher=(finished.cost[PLOTTED], finished.metrics.validation_accuracy),
        student=(student.cost[PLOTTED], student.metrics.validation_accuracy),
        limit=limits.get(PLOTTED),
    )


def _legend(signs: Signs) -> Text:
    dot = "\u2802" if signs.braille else "o"
    return Text.assemble(
        ("validation accuracy over macs   ", "dim"),
        (signs.teacher, "bold yellow"),
        " teacher  ",
        (signs.student, "bold green"),
        " student  ",
        (dot, "cyan"),
        " trials  ",
        (signs.limit, "dim"),
        " limit",
    )


def _whereabouts(folder: Path) -> Group:
    place = shown_path(folder)
    lines = [Text.assemble("The student lies in ", (f"{place}/", "bold")), Text()]
    return Group(*lines, *(Text(f"    {line}", "cyan") for line in snippet(folder)))


def snippet(folder: Path) -> tuple[str, str, str]:
    """Three lines of Python that load the student; they work from the folder where the command was given."""
    place = shown_path(folder)
    return (
        "import runpy",
        f'load = runpy.run_path("{place}/load.py")["load"]',
        f'student = load("{place}")   # normalised images -> logits',
    )


def shown_path(path: Path) -> str:
    """As a person would write it: relative when it lies below the current folder."""
    path = path.absolute()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.as_posix()
