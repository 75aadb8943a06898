"""
Screens of a job that really ran, as plain text at two widths.

The documents in `golden` are what was answered about jobs of `examples/quickstart.yaml` and `examples/ladder.yaml`.
Where a screen is meant to change: REDRAW_SCREENS=1 pytest tests/service/test_screens.py, then read the difference.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from search.errors import FieldError
from search.trial import State
from service.board import Board
from service.documents import EventDocument, JobDocument, TrialDocument
from service.schemas import Plan
from service.screens.live import event_line, live_screen
from service.screens.plan import plan_screen
from service.screens.plot import Picture, scatter
from service.screens.result import as_svg, result_screen, trial_points, unfinished_screen
from service.screens.tables import job_screen, jobs_table, mistakes, ordered, pareto, trials_table
from service.screens.words import (
    ASCII,
    UNICODE,
    aims,
    amount,
    duration,
    measure,
    percent,
    points,
    ratio,
    size,
    sparkline,
)
from workers.ports import JobState, Phase

GOLDEN = Path(__file__).parent / "golden"
REDRAW = os.environ.get("REDRAW_SCREENS") == "1"
JOB = JobDocument.model_validate_json((GOLDEN / "job.json").read_text())
TRIALS = [TrialDocument.model_validate(trial) for trial in json.loads((GOLDEN / "trials.json").read_text())["trials"]]
EVENTS = [EventDocument.model_validate_json(line) for line in (GOLDEN / "events.ndjson").read_text().splitlines()]
LADDER = JobDocument.model_validate_json((GOLDEN / "ladder.json").read_text())
LADDER_EVENTS = [
    EventDocument.model_validate_json(line) for line in (GOLDEN / "ladder-events.ndjson").read_text().splitlines()
]
NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)


def drawn(picture: RenderableType, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(picture)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def board_after(count: int, job: JobDocument = JOB, events: Sequence[EventDocument] = EVENTS) -> Board:
    board = Board(job.id, job.spec)
    for event in events[:count]:
        board.take(event)
    return board


def half_way(job: JobDocument = JOB, events: Sequence[EventDocument] = EVENTS) -> Board:
    """When half of the trials had been scored."""
    scored = [place for place, event in enumerate(events) if event.kind == "TRIAL_SCORED"]
    return board_after(scored[len(scored) // 2] + 1, job, events)


PLAN = Plan.model_validate_json((GOLDEN / "plan.json").read_text())
MISTAKES = [
    FieldError(
        "/search/trails", "UNKNOWN_FIELD", 'unknown field `trails`, did you mean "trials"?', ("rungs", "trials")
    ),
    FieldError("", "MISSING_FIELD", "`budget` is required; add it"),
]
SCREENS: dict[str, Any] = {
    "result": lambda width, signs: result_screen(
        JOB, trial_points(TRIALS), width=width, signs=signs, folder=Path("student")
    ),
    "live": lambda _, signs: live_screen(half_way(), now=EVENTS[0].at + timedelta(seconds=120), signs=signs),
    "ladder": lambda width, signs: result_screen(
        LADDER,
        board_after(len(LADDER_EVENTS), LADDER, LADDER_EVENTS).points("macs"),
        width=width,
        signs=signs,
        folder=Path("students"),
    ),
    "ladder-live": lambda _, signs: live_screen(
        half_way(LADDER, LADDER_EVENTS), now=LADDER_EVENTS[0].at + timedelta(seconds=60), signs=signs
    ),
    "trials": lambda _, __: trials_table(ordered(TRIALS, "accuracy"), JOB.teacher.cost),
    "jobs": lambda _, __: jobs_table([JOB], now=NOW),
    "plan": lambda width, signs: plan_screen(PLAN, width=width, signs=signs),
    "report": lambda width, signs: plan_screen(PLAN, width=width, signs=signs, report=True),
    "mistakes": lambda _, signs: mistakes(MISTAKES, signs),
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_looks_as_it_did(name: str, width: int) -> None:
    found = drawn(SCREENS[name](width, UNICODE), width)
    file = GOLDEN / f"{name}-{width}.txt"
    if REDRAW:
        file.write_text(found)
    assert found == file.read_text()
    assert max(map(len, found.splitlines())) <= width


@pytest.mark.parametrize("name", SCREENS)
def test_without_unicode_nothing_else_is_printed(name: str) -> None:
    assert drawn(SCREENS[name](80, ASCII), 80).isascii()


def test_a_student_that_is_too_slow_is_shown_with_what_was_predicted_and_what_was_measured() -> None:
    document = JOB.model_dump(mode="json")
    verdict = {"metric": "latency", "limit": 4_000_000, "value": 4_250_000, "fits": False, "at_least": False}
    timed = {
        "metric": "latency",
        "predicted": 3_900_000,
        "measured": 4_250_000,
        "student": 4_250_000,
        "teacher": 8_000_000,
        "ratio": 0.53,
        "low": 0.52,
        "high": 0.54,
        "samples": 200,
        "environment": {"threads": 1},
    }
    document["teacher"]["cost"]["latency"] = 8_000_000
    for student in (document["student"], document["students"][0]):
        student["cost"]["latency"] = 4_250_000
        student["verdicts"].append(verdict)
        student["times"] = [timed]
    document |= {"state": "FAILED", "reason": "the exported student takes 4.25 ms a batch"}
    job = JobDocument.model_validate(document)
    said = drawn(result_screen(job, [], width=100, signs=UNICODE), 100)
    assert "the exported student takes 4.25 ms a batch" in said
    latency, predicted = (next(line for line in said.splitlines() if word in line) for word in ("latency", "predicted"))
    assert "8.00 ms" in latency
    assert "4.25 ms" in latency
    assert "✗ over" in latency
    assert "3.90 ms" in predicted


def test_the_result_says_what_the_document_says() -> None:
    student, teacher = JOB.student, JOB.teacher
    assert student is not None
    assert teacher.cost is not None
    assert teacher.metrics is not None
    text = drawn(SCREENS["result"](120, UNICODE), 120)
    assert f"{teacher.cost['macs'] / student.cost['macs']:.1f}× fewer MACs" in text
    assert f"{teacher.cost['params'] / student.cost['params']:.1f}× fewer params" in text
    assert f"{100 * student.metrics.accuracy:.1f} %" in text
    assert f"{JOB.trials.stopped} stopped early" in text
    assert text.count("✓ fits") == len(student.verdicts)


@pytest.mark.parametrize("finished", [JOB, LADDER])
def test_without_a_teacher_no_accuracy_is_a_teachers(finished: JobDocument) -> None:
    document = finished.model_dump(mode="json")
    document["teacher"] |= {"source": "untrained", "metrics": None}
    job = JobDocument.model_validate(document)
    text = drawn(result_screen(job, trial_points(TRIALS), width=140, signs=UNICODE), 140)
    assert "teacher" not in text
    assert UNICODE.teacher not in text
    assert "untrained" in text
    first, last = (percent(job.students[at].metrics.accuracy) for at in (0, -1))
    reached = first if first == last else f"{first} to {last}"
    assert f"params, {reached} accuracy," in " ".join(text.split())


def test_without_a_teacher_nothing_is_near_to_it() -> None:
    trials = [
        trial.model_copy(update={"scores": [score.model_copy(update={"kl": 0.0}) for score in trial.scores]})
        for trial in TRIALS
    ]
    assert "kl" not in drawn(trials_table(trials, None), 100)
    scored = next(event for event in EVENTS if event.kind == "TRIAL_SCORED")
    line = event_line(scored.model_copy(update={"data": {**scored.data, "kl": 0.0}}), JOB.spec)
    assert line is not None
    assert "kl" not in line
    taught = next(event for event in EVENTS if event.kind == "PHASE_FINISHED" and event.data["phase"] == "teacher")
    result = {**taught.data["result"], "source": "untrained", "accuracy": None, "validation_accuracy": None}
    untaught = taught.model_copy(update={"data": {**taught.data, "result": result}})
    assert event_line(untaught, JOB.spec) == "teacher: done, untrained"
    board = Board(JOB.id, JOB.spec)
    for event in EVENTS[: EVENTS.index(taught)]:
        board.take(event)
    board.take(untaught)
    shown = drawn(live_screen(board, now=EVENTS[0].at + timedelta(seconds=120), signs=UNICODE), 100)
    (line,) = (one for one in shown.splitlines() if "teacher" in one)
    assert "none" in line
    assert "%" not in line


def test_a_student_over_its_limit_is_not_said_to_fit() -> None:
    document = JOB.model_dump(mode="json")
    document["student"]["verdicts"][0] |= {"fits": False, "limit": 1000}
    document["students"] = [document["student"]]
    text = drawn(result_screen(JobDocument.model_validate(document), [], width=80, signs=UNICODE), 80)
    assert "≤ 1.00 k ✗ over" in text


def test_every_level_is_told_with_its_own_limit() -> None:
    text = drawn(SCREENS["ladder"](80, UNICODE), 80)
    assert text.count("✓ fits") == sum(len(student.verdicts) for student in LADDER.students) == 6
    for student in LADDER.students:
        assert student.folder in text
        assert f"≤ {amount(student.verdicts[0].limit)} ✓ fits" in text
    board = board_after(len(LADDER_EVENTS), LADDER, LADDER_EVENTS)
    assert [budget.limits for budget in board.levels] == LADDER.levels
    bests = [board.best_of(level) for level in range(3)]
    for best, limits in zip(bests, LADDER.levels, strict=True):
        assert best is not None
        assert all(best.cost[metric] <= limit for metric, limit in limits.items())


def test_a_trial_of_a_ladder_is_listed_with_its_level() -> None:
    macs = [limits["macs"] for limits in LADDER.levels]
    trials = [
        TRIALS[number].model_copy(update={"cost": {"macs": spent, "params": 1}})
        for number, spent in enumerate((macs[0], macs[1], macs[2], macs[1] + 1))
    ]
    lines = drawn(trials_table(trials, None, LADDER.levels), 80).splitlines()
    assert lines[0].split()[:2] == ["trial", "level"]
    assert [line.split()[1] for line in lines[1:]] == ["1", "2", "3", "1"]


def test_an_accuracy_is_judged_on_validation() -> None:
    document = JOB.model_dump(mode="json")
    validation = document["student"]["metrics"]["validation_accuracy"]
    verdict = {"metric": "accuracy", "limit": 0.975, "value": validation, "fits": True, "at_least": True}
    document["students"][0]["verdicts"].append(verdict)
    document["student"] = document["students"][0]
    text = drawn(result_screen(JobDocument.model_validate(document), [], width=80, signs=UNICODE), 80)
    (line,) = (line for line in text.splitlines() if "validation  " in line)
    assert f"{100 * validation:.1f} %" in line
    assert line.endswith("≥ 97.5 % ✓ fits")


def test_of_long_tailed_data_rare_classes_are_told_apart() -> None:
    document = JOB.model_dump(mode="json")
    document["teacher"]["metrics"]["shots"] = {"many": 0.91, "few": 0.305}
    document["students"][0]["metrics"]["shots"] = {"many": 0.9, "few": 0.415}
    document["student"] = document["students"][0]
    text = drawn(result_screen(JobDocument.model_validate(document), [], width=80, signs=UNICODE), 80)
    lines = [" ".join(line.split()) for line in text.splitlines() if "-shot" in line]
    assert lines == ["many-shot 91.0 % 90.0 % −1.0 pt", "few-shot 30.5 % 41.5 % +11.0 pt"]
    document["teacher"]["metrics"]["shots"] = {}  # of a teacher that was kept before shots were told
    text = drawn(result_screen(JobDocument.model_validate(document), [], width=80, signs=UNICODE), 80)
    assert [line.split() for line in text.splitlines() if "few-shot" in line] == [["few-shot", "41.5", "%"]]


def test_a_detector_is_told_by_its_precision_and_its_misses() -> None:
    document = JOB.model_dump(mode="json")
    document["spec"]["task"] = "detection"
    document["teacher"]["metrics"]["detection"] = {"ap50": 0.8, "miss_rate": 0.2}
    for student in (document["student"], *document["students"]):
        student["metrics"]["detection"] = {"ap50": 0.75, "miss_rate": 0.26}
    found = drawn(
        result_screen(JobDocument.model_validate(document), trial_points(TRIALS), width=100, signs=UNICODE), 100
    )
    assert "accuracy" not in found
    assert re.search(r"mAP +\d", found)
    assert re.search(r"AP50 +80\.0 % +75\.0 % +\u22125\.0 pt", found)
    assert re.search(r"miss rate +20\.0 % +26\.0 % +\+6\.0 pt", found)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"macs": "25%", "params": "200k"}, "macs ≤ 25%, params ≤ 200k"),
        ({"macs": ["50%", "25%"]}, "macs ≤ 50% / 25%"),
        (
            {"latency": {"limit": "4 ms"}, "throughput": {"limit": ["9/s", "20/s"]}},
            "latency ≤ 4 ms, throughput ≥ 9/s / 20/s",
        ),
        (
            {"accuracy": {"max_drop": 1.0, "at_least": None, "cheapest": "macs"}},
            "least macs, accuracy ≥ teacher − 1 pt",
        ),
        ({"accuracy": {"max_drop": None, "at_least": "9%", "cheapest": "params"}}, "least params, accuracy ≥ 9%"),
    ],
)
def test_a_budget_is_read_as_it_was_meant(budget: dict[str, Any], said: str) -> None:
    assert aims(budget, UNICODE) == said


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("macs", 1_643_328, "1.64 M"),
        ("weight_bytes", 207_400, "207 kB"),
        ("latency", 4_210_000, "4.21 ms"),
        ("throughput", 210, "210/s"),
        ("accuracy", 0.915, "91.5 %"),
    ],
)
def test_a_value_is_told_in_the_unit_of_its_metric(metric: str, value: float, said: str) -> None:
    assert measure(metric, value) == said


def test_a_job_without_a_student_shows_why() -> None:
    document = JOB.model_dump(mode="json") | {
        "student": None,
        "students": [],
        "state": "FAILED",
        "reason": "every trial failed",
    }
    failed = JobDocument.model_validate(document)
    for picture in (
        unfinished_screen(failed, signs=UNICODE),
        result_screen(failed, [], width=80, signs=UNICODE),
        job_screen(failed, signs=UNICODE),
    ):
        assert "every trial failed" in drawn(picture, 80)


def test_the_board_agrees_with_the_document() -> None:
    board = board_after(len(EVENTS))
    counts = board.counts()
    assert board.state is JobState.SUCCEEDED
    assert len(board.contenders) == JOB.trials.total
    assert counts[State.COMPLETED] == JOB.trials.completed
    assert counts[State.STOPPED] == JOB.trials.stopped
    assert board.best is not None
    assert JOB.best is not None
    assert (board.best.number, board.best.accuracy) == (JOB.best.number, JOB.best.accuracy)
    assert sorted(board.points("macs")) == sorted(trial_points(TRIALS))
    walked = [phase for phase, station in board.stations.items() if station.ended_at is not None]
    assert walked == list(JOB.timing.phases)
    assert board.stations[Phase.SEARCH].done == JOB.trials.total


def trusting(rival: dict[str, Any] | None, noise: float | None) -> JobDocument:
    """The job as if it had measured how far it can be trusted."""
    document = JOB.model_dump(mode="json")
    document["evidence"] = {
        "correlations": [
            {
                "steps": 40,
                "later_steps": 120,
                "finalists": False,
                "trials": 8,
                "value": 0.81,
                "low": 0.2,
                "high": 0.97,
            },
            {
                "steps": 120,
                "later_steps": 600,
                "finalists": True,
                "trials": 2,
                "value": None,
                "low": None,
                "high": None,
            },
        ],
        "noise": noise
        and {"value": noise, "low": noise / 2, "high": 5 * noise, "difference": 6 * noise, "repeated": 2},
        "exempt": {"trials": 5, "won": 1, "rate": 0.2, "low": 0.005, "high": 0.716},
        "advice": "Raise `search.rungs`, for example to [80, 240].",
    }
    for student in (document["student"], document["students"][0]):
        student["rival"] = rival
    return JobDocument.model_validate(document)


@pytest.mark.parametrize(
    ("beaten", "noise", "said"),
    [
        (True, 0.003, "the student beats trial 3 by +2.0 pt on validation, more than chance makes"),
        (False, 0.02, "the student and trial 3 are a tie: +2.0 pt on validation is no more than chance makes"),
        (None, None, "the student is +2.0 pt against trial 3 on validation; how much of that is chance is not known"),
    ],
)
def test_who_beats_whom_is_said_with_what_chance_makes(beaten: bool | None, noise: float | None, said: str) -> None:
    assert JOB.student is not None
    accuracy = JOB.student.metrics.validation_accuracy - 0.02
    job = trusting({"trial": "trial_x", "number": 3, "validation_accuracy": accuracy, "beaten": beaten}, noise)
    screen = drawn(result_screen(job, trial_points(TRIALS), width=120, signs=UNICODE), 120)
    assert said in screen
    assert "the order after 40 steps and that after 120: rank correlation 0.81 (0.20 to 0.97; 8 trials)" in screen
    assert "600" not in screen
    assert ("varies by" in screen) is (noise is not None)
    assert "1 beat all others" in screen
    assert "Raise `search.rungs`" in screen


@pytest.mark.parametrize("signs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_every_moment_of_the_job_can_be_drawn(signs: Any) -> None:
    board = Board(JOB.id, JOB.spec)
    for event in EVENTS:
        board.take(event)
        text = drawn(live_screen(board, now=event.at, signs=signs), 80)
        assert board.state in text
        event_line(event, JOB.spec)


def test_an_unknown_event_changes_nothing() -> None:
    board = board_after(20)
    before = drawn(live_screen(board, now=NOW, signs=UNICODE), 80)
    strange = EventDocument(seq=21, kind="MOON_ROSE", at=NOW, data={"phase": "night"})
    board.take(strange)
    assert drawn(live_screen(board, now=NOW, signs=UNICODE), 80) == before
    assert event_line(strange, JOB.spec) is None


def test_the_picture_for_a_readme_is_whole() -> None:
    svg = as_svg(JOB, trial_points(TRIALS))
    assert svg.startswith("<svg")
    assert "small_resnet" in svg
    assert "fewer" in svg
    assert re.findall(r"https?://[^\s\"]+", svg) == ["http://www.w3.org/2000/svg"]


def test_the_front_holds_what_no_other_trial_beats() -> None:
    front = pareto(TRIALS, "macs")
    scored = [trial for trial in TRIALS if trial.scores]
    for trial in scored:
        beaten = any(
            other.cost["macs"] <= trial.cost["macs"]
            and other.scores[-1].accuracy >= trial.scores[-1].accuracy
            and (other.cost["macs"], -other.scores[-1].accuracy) != (trial.cost["macs"], -trial.scores[-1].accuracy)
            for other in scored
        )
        assert (trial in front) != beaten


accuracies = st.floats(0, 1)
plotted = st.tuples(st.floats(1, 1e12), accuracies)


@given(
    candidates=st.lists(plotted, max_size=30),
    teacher=plotted,
    students=st.lists(plotted, max_size=3),
    limits=st.lists(st.floats(1, 1e12), max_size=3),
    width=st.integers(26, 120),
    height=st.integers(2, 20),
    signs=st.sampled_from([UNICODE, ASCII]),
)
def test_a_plot_is_never_wider_than_asked_and_always_shows_the_student(
    candidates: list[tuple[float, float]],
    teacher: tuple[float, float],
    students: list[tuple[float, float]],
    limits: list[float],
    width: int,
    height: int,
    signs: Any,
) -> None:
    lines = scatter(Picture(candidates, teacher, students, limits), width=width, height=height, signs=signs)
    assert len(lines) == height + 2
    assert max(len(line) for line in lines) <= width
    text = "\n".join(line.plain for line in lines)
    assert (signs.student if students else signs.teacher) in text


@given(st.lists(accuracies, max_size=40))
def test_a_sparkline_rises_with_its_values(values: list[float]) -> None:
    bars = sparkline(values, 24, UNICODE)
    assert len(bars) == min(len(values), 24)
    steps = itertools.pairwise(zip(values[-24:], bars, strict=True))
    assert all(
        UNICODE.bars.index(bar) <= UNICODE.bars.index(next_bar)
        for (value, bar), (next_value, next_bar) in steps
        if value <= next_value
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (amount(0), "0"),
        (amount(999), "999"),
        (amount(999.6), "1.00 k"),
        (amount(1_000), "1.00 k"),
        (amount(22_901_345), "22.9 M"),
        (amount(999_999), "1.00 M"),
        (amount(4_580_269), "4.58 M"),
        (amount(5e15), "5000 T"),
        (size(194_632), "195 kB"),
        (size(12), "12 B"),
        (percent(0.95349), "95.3 %"),
        (points(-0.004, UNICODE), "−0.4 pt"),
        (points(0.003, ASCII), "+0.3 pt"),
        (points(-0.0001, UNICODE), "0.0 pt"),
        (ratio(22.9, 4.49, UNICODE), "5.1×"),
        (ratio(1, 0, ASCII), "infx"),
        (duration(8.31), "8.3 s"),
        (duration(9.96), "10 s"),
        (duration(59.6), "1 m 00 s"),
        (duration(62), "1 m 02 s"),
        (duration(7500), "2 h 05 m"),
        (duration(273_600), "3 d 04 h"),
        (duration(-1), "0.0 s"),
    ],
)
def test_numbers_are_written_for_people(found: str, expected: str) -> None:
    assert found == expected
