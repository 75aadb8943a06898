"""The command line against the real service over a real socket: streams, exit codes, and words that help."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from service.cli import app
from service.quickstart import JOB
from service.terminal import Exit
from tests.service.served import SPEC, WEIGHTS, claimed, listening, make_app, searched, submitted, succeeded
from workers.memory import MemoryArtifacts, MemoryLedger
from workers.ports import JobState, Level, Line

ROOT = Path(__file__).parents[2]
KEY = "a key of sufficient length"
COMMANDS = [
    *("quickstart", "doctor", "catalog", "plan", "submit", "watch", "jobs", "show", "trials", "events", "logs", "pull"),
    *("cancel", "pause", "resume", "change", "retry", "clone", "delete"),
    *("usage", "local", "serve", "api", "dispatcher", "migrate", "keys", "tenants", "version", "webhooks"),
]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def artifacts() -> MemoryArtifacts:
    return MemoryArtifacts()


@pytest.fixture
def url(
    tmp_path: Path, ledger: MemoryLedger, artifacts: MemoryArtifacts, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    with listening(make_app(tmp_path / "home", ledger, artifacts)) as url:
        monkeypatch.setenv("STILLHOUSE_URL", url)
        yield url


def stillhouse(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A process of its own; it finds the server in the environment."""
    command = [sys.executable, "-m", "service.cli", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT} | options
    return subprocess.Popen(command, **streams)


# Start


def test_lists_are_filtered_and_ordered_by_the_server(url: str, ledger: MemoryLedger) -> None:
    low, high = (submitted(ledger, priority=priority, labels={"team": "vision"}) for priority in (1, 5))
    submitted(ledger)
    shown = stillhouse("jobs", "--filter", 'labels.team = "vision"', "--order-by", "priority desc", "--json")
    assert [job["id"] for job in json.loads(shown.stdout)["jobs"]] == [high, low]
    claim = claimed(ledger)
    searched(ledger, claim)
    shown = stillhouse("trials", claim.job_id, "--order-by", "rung desc", "--filter", "accuracy > 0.1", "--json")
    assert [trial["number"] for trial in json.loads(shown.stdout)["trials"]] == [1, 0]
    refused = stillhouse("trials", claim.job_id, "--filter", "acuracy > 0.1")
    assert refused.exit_code == Exit.USAGE
    assert 'did you mean "accuracy"?' in " ".join(refused.stderr.split())


def test_a_log_is_printed_and_followed_to_the_end(url: str, ledger: MemoryLedger) -> None:
    submitted(ledger)
    claim = claimed(ledger)
    ledger.log(
        claim, [Line(Level.DEBUG, "stillhouse", "quiet"), Line(Level.WARNING, "stillhouse.session", "[b]loud[/b]")]
    )
    shown = stillhouse("logs", claim.job_id)
    assert "WARNING" in shown.stdout
    assert "[b]loud[/b]" in shown.stdout, "no markup of ours"
    assert "quiet" not in shown.stdout
    following = started("logs", claim.job_id, "-f", "--level", "debug", "--json")
    assert following.stdout is not None
    assert [json.loads(following.stdout.readline())["message"] for _ in range(2)] == ["quiet", "[b]loud[/b]"]
    ledger.log(claim, [Line(Level.INFO, "stillhouse", "over")])
    ledger.close(claim, JobState.CANCELLED, "as a test wants it")
    rest, _ = following.communicate(timeout=20)
    assert [json.loads(line)["message"] for line in rest.splitlines()] == ["over"]
    assert following.returncode == Exit.OK


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    program = "import sys, service.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "ray", "sqlalchemy", "uvicorn", "fastapi", "optuna", "scipy"} & set(loaded.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_takes_no_secret(command: str) -> None:
    answer = stillhouse(command, "--help")
    assert answer.exit_code == 0
    assert f" {command} " in answer.stdout
    assert not any(word in answer.stdout.lower() for word in ("--api-key", "--password", "--token", "--secret"))


def test_a_mistyped_command_ends_with_usage() -> None:
    answer = stillhouse("submitt", "x.yaml")
    assert answer.exit_code == Exit.USAGE
    assert answer.stdout == ""


def test_the_version() -> None:
    assert json.loads(stillhouse("version", "--json").stdout) == {"version": stillhouse("version").stdout.strip()}


# Submitting


def test_submit_prints_the_id_and_nothing_else(url: str, ledger: MemoryLedger) -> None:
    answer = stillhouse("submit", "-", stdin=yaml.safe_dump(SPEC))
    assert answer.exit_code == 0, answer.stderr
    job_id = answer.stdout.strip()
    assert ledger.job(job_id).state is JobState.QUEUED
    assert f"stillhouse watch {job_id}" in answer.stderr


def test_submit_reads_a_file_and_gives_the_document(url: str, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps(SPEC))
    first, again = (stillhouse("submit", file, "--json", "--idempotency-key", "k") for _ in range(2))
    assert json.loads(first.stdout)["spec"]["budget"] == SPEC["budget"]
    assert json.loads(again.stdout)["id"] == json.loads(first.stdout)["id"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("teacher: [", "line"),
        ("a: 1\na: 2", "`a` comes twice"),
        ("- 1\n- 2", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("a: .nan", "Out of range"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
        ("a: &a [*a]", "Circular reference"),
    ],
)
def test_what_is_no_document_never_leaves_this_machine(text: str, expected: str) -> None:
    answer = stillhouse("submit", "-", "--url", "http://127.0.0.1:9", stdin=text)
    assert answer.exit_code == Exit.USAGE
    assert expected in answer.stderr
    assert answer.stdout == ""


def test_a_file_that_is_not_there() -> None:
    answer = stillhouse("submit", "nowhere.yaml")
    assert answer.exit_code == Exit.USAGE
    assert "nowhere.yaml cannot be read: No such file" in answer.stderr


def test_dates_stay_what_was_written(url: str) -> None:
    text = yaml.safe_dump(SPEC) + "labels: {day: 2026-01-31}\n"
    answer = stillhouse("submit", "-", "--json", stdin=text)
    assert json.loads(answer.stdout)["labels"] == {"day": "2026-01-31"}


@pytest.mark.parametrize(
    ("changes", "pointer", "remedy"),
    [
        ({"search": {"trails": 3}}, "/search/trails", 'did you mean "trials"?'),
        ({"dataset": {"name": "digit"}}, "/dataset/name", 'did you mean "digits"?'),
        ({"budget": {"macs": "20 parsec"}}, "/budget/macs", "use k, M, G, T or %"),
        ({"budget": {"macs": "1"}}, "/budget/macs", "the smallest reachable is"),
    ],
)
def test_a_wrong_spec_is_answered_with_pointer_and_remedy(
    url: str, changes: dict[str, Any], pointer: str, remedy: str
) -> None:
    answer = stillhouse("submit", "-", stdin=yaml.safe_dump(SPEC | changes))
    assert answer.exit_code == Exit.USAGE
    assert answer.stdout == ""
    said = " ".join(answer.stderr.split())
    assert pointer in said
    assert remedy in said


def test_a_plan_is_the_same_with_and_without_a_server(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "other"))
    there = stillhouse("plan", "-", "--json", stdin=yaml.safe_dump(SPEC))
    here = stillhouse("plan", "-", "--json", "--local", stdin=yaml.safe_dump(SPEC))
    assert there.exit_code == here.exit_code == 0
    plans = [json.loads(answer.stdout) for answer in (there, here)]
    assert all(plan.pop("estimate")["seconds"]["expected"] > 0 for plan in plans), "it is timed, so it differs"
    assert plans[0] == plans[1]
    assert "proved feasible" in stillhouse("plan", "-", stdin=yaml.safe_dump(SPEC)).stdout
    assert "layer1.0.conv1" in stillhouse("plan", "-", "--report", stdin=yaml.safe_dump(SPEC)).stdout


def test_a_plan_is_made_here_when_nobody_named_a_server_and_none_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    monkeypatch.delenv("STILLHOUSE_URL", raising=False)
    monkeypatch.setattr("service.wire.DEFAULT_URL", "http://127.0.0.1:9")
    assert "proved feasible" in stillhouse("plan", "-", stdin=yaml.safe_dump(SPEC)).stdout
    named = stillhouse("plan", "-", "--url", "http://127.0.0.1:9", stdin=yaml.safe_dump(SPEC))
    assert named.exit_code == Exit.UNREACHABLE


# Looking


@pytest.mark.parametrize("kind", ["teachers", "datasets", "distillers", "strategies", "costs"])
def test_the_catalog_is_the_same_with_and_without_a_server(url: str, kind: str) -> None:
    there, here = stillhouse("catalog", kind, "--json"), stillhouse("catalog", kind, "--json", "--local")
    assert json.loads(there.stdout) == json.loads(here.stdout)
    names = [entry["name"] for entry in json.loads(there.stdout)["entries"]]
    assert names
    assert all(name in stillhouse("catalog", kind).stdout for name in names)


def test_every_look_at_a_job_has_a_picture_and_a_document(
    url: str, ledger: MemoryLedger, artifacts: MemoryArtifacts, tmp_path: Path
) -> None:
    job = succeeded(ledger, artifacts)
    assert json.loads(stillhouse("jobs", "--json").stdout)["jobs"][0]["id"] == job
    assert job in stillhouse("jobs").stdout
    assert stillhouse("jobs", "--state", "failed", "--json").stdout.split() == ["{", '"jobs":', "[]", "}"]
    document = json.loads(stillhouse("show", job, "--json").stdout)
    (verdict, *_) = document["student"]["verdicts"]
    assert verdict == {"metric": "macs", "limit": 500, "value": 480, "fits": True, "at_least": False}
    assert "2.1× fewer MACs" in stillhouse("show", job, "--svg", tmp_path / "result.svg").stdout
    assert (tmp_path / "result.svg").read_text().startswith("<svg")
    trials = json.loads(stillhouse("trials", job, "--json", "--sort", "accuracy").stdout)["trials"]
    assert [trial["scores"][-1]["accuracy"] for trial in trials] == [0.55, 0.5]
    assert "55.0 %" in stillhouse("trials", job, "--pareto").stdout
    lines = stillhouse("events", job, "--json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert stillhouse("events", job, "--json", "--after", 5).stdout.splitlines() == lines[5:]
    assert stillhouse("events", job, "--json", "--follow").stdout.splitlines() == lines
    assert "succeeded" in stillhouse("events", job).stdout


def test_no_jobs_yet(url: str) -> None:
    answer = stillhouse("jobs")
    assert (answer.exit_code, answer.stdout) == (0, "")
    assert "stillhouse submit" in answer.stderr


def test_trials_are_sorted_by_what_they_have(url: str, ledger: MemoryLedger, artifacts: MemoryArtifacts) -> None:
    answer = stillhouse("trials", succeeded(ledger, artifacts), "--sort", "mac")
    assert answer.exit_code == Exit.USAGE
    assert 'did you mean "macs"?' in answer.stderr


def test_without_a_terminal_no_line_carries_colour_or_blanks(
    url: str, ledger: MemoryLedger, artifacts: MemoryArtifacts
) -> None:
    job = succeeded(ledger, artifacts)
    for command in (["show", job], ["jobs"], ["trials", job], ["watch", job]):
        answer = stillhouse(*command)
        assert "\x1b" not in answer.stdout + answer.stderr
        assert all(line == line.rstrip() for line in answer.stdout.splitlines())


def at_a_terminal(*arguments: object, **environment: str) -> str:
    """What a person would get on a screen."""
    primary, secondary = pty.openpty()
    process = started(
        *arguments,
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env=os.environ | {"TERM": "xterm"} | environment,
    )
    os.close(secondary)
    said = b""
    while True:
        try:
            piece = os.read(primary, 65536)
        except OSError:  # how a pseudo-terminal says that the other side has closed it
            break
        if not piece:
            break
        said += piece
    os.close(primary)
    assert process.wait(10) == 0, said.decode()
    return said.decode()


def test_a_terminal_gets_colour_unless_it_is_not_wanted(
    url: str, ledger: MemoryLedger, artifacts: MemoryArtifacts
) -> None:
    job = succeeded(ledger, artifacts)
    assert "\x1b[" in at_a_terminal("watch", job)
    assert "\x1b" not in at_a_terminal("watch", job, NO_COLOR="1")


# Exit codes


def test_an_unknown_job(url: str) -> None:
    for command in ("show", "watch", "trials", "events", "pull", "cancel"):
        answer = stillhouse(command, "job_" + "0" * 26)
        assert answer.exit_code == Exit.NOT_FOUND, command
        assert "there is no job" in answer.stderr


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_URL", "http://127.0.0.1:9")
    answer = stillhouse("jobs")
    assert answer.exit_code == Exit.UNREACHABLE
    assert "stillhouse serve" in answer.stderr


def test_the_key_is_taken_from_the_environment(
    tmp_path: Path, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(make_app(tmp_path, ledger, api_key=KEY)) as url:
        answer = stillhouse("jobs", "--url", url)
        assert answer.exit_code == Exit.REFUSED
        assert "STILLHOUSE_API_KEY" in answer.stderr
        monkeypatch.setenv("STILLHOUSE_API_KEY", KEY)
        assert stillhouse("jobs", "--url", url).exit_code == 0


# Watching


def test_watching_a_job_that_succeeded_shows_its_result(
    url: str, ledger: MemoryLedger, artifacts: MemoryArtifacts
) -> None:
    job = succeeded(ledger, artifacts)
    answer = stillhouse("watch", job)
    assert answer.exit_code == 0
    assert "fewer MACs" in answer.stdout
    assert "trial 1: 55.0 % accuracy" in answer.stderr
    assert f"stillhouse pull {job}" in answer.stderr
    lines = [json.loads(line) for line in stillhouse("watch", job, "--json").stdout.splitlines()]
    assert lines[-1]["kind"] == "JOB_SUCCEEDED"


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_a_job_that_did_not_succeed_is_exit_one(url: str, ledger: MemoryLedger, state: JobState) -> None:
    submitted(ledger)
    claim = claimed(ledger)
    ledger.close(claim, state, "for a reason")
    answer = stillhouse("watch", claim.job_id)
    assert answer.exit_code == Exit.JOB_FAILED
    assert "for a reason" in answer.stdout


def test_submit_and_wait_gives_one_document(url: str, ledger: MemoryLedger) -> None:
    process = started("submit", "-", "--wait", "--json", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(yaml.safe_dump(SPEC))
    process.stdin.close()
    while not ledger.jobs(limit=1):
        time.sleep(0.02)
    ledger.close(claimed(ledger), JobState.FAILED, "on purpose")
    process.stdin = None
    out, _ = process.communicate(timeout=20)
    assert process.returncode == Exit.JOB_FAILED
    assert json.loads(out)["reason"] == "on purpose"


def test_a_wait_may_end_before_the_job(url: str, ledger: MemoryLedger) -> None:
    job = submitted(ledger)
    answer = stillhouse("watch", job, "--timeout", "0.3")
    assert answer.exit_code == Exit.TIMED_OUT
    assert f"stillhouse watch {job}" in answer.stderr
    assert ledger.job(job).state is JobState.QUEUED


def test_control_c_detaches_and_says_how_to_come_back(url: str, ledger: MemoryLedger) -> None:
    job = submitted(ledger)
    claimed(ledger)
    process = started("watch", job)
    assert process.stderr is not None
    assert "started" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=10)
    assert process.returncode == Exit.DETACHED
    assert out == ""
    assert f"stillhouse watch {job}" in said
    assert f"stillhouse cancel {job}" in said
    assert "Traceback" not in said
    assert not ledger.job(job).cancel_requested


def test_cancel(url: str, ledger: MemoryLedger) -> None:
    waiting, running = submitted(ledger, priority=-1), submitted(ledger)
    claimed(ledger)
    assert "CANCELLED" in stillhouse("cancel", waiting).stdout
    assert "will be cancelled" in stillhouse("cancel", running).stdout
    assert ledger.job(running).cancel_requested


def test_another_course(url: str, ledger: MemoryLedger) -> None:
    job = submitted(ledger, labels={"team": "vision"})
    assert "is paused" in stillhouse("pause", job).stdout
    assert json.loads(stillhouse("resume", job, "--json").stdout)["pause_requested"] is False
    assert "revision 3" in stillhouse("change", job, "--label", "team=", "--trials", "3", "--priority", "2").stdout
    spec = ledger.job(job).spec
    assert (spec["labels"], spec["search"]["trials"], spec["priority"]) == ({}, 3, 2)
    again = stillhouse("clone", job, "--budget", "params=50%", "--trials", "5").stdout.strip()
    assert ledger.job(again).spec["budget"] == {"params": "50%"}
    assert ledger.job(again).parent == job
    stillhouse("cancel", job)
    assert ledger.job(stillhouse("retry", job).stdout.strip()).parent == job
    assert "is gone" in stillhouse("delete", job, "--yes").stdout
    assert stillhouse("show", job).exit_code == Exit.NOT_FOUND
    assert stillhouse("change", again).exit_code == Exit.USAGE
    assert stillhouse("change", again, "--label", "team").exit_code == Exit.USAGE
    assert stillhouse("change", again, "--priority", "1", "--revision", "7").exit_code == Exit.USAGE


# Taking home


def test_pull_lists_what_it_wrote(
    url: str, ledger: MemoryLedger, artifacts: MemoryArtifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = succeeded(ledger, artifacts)
    answer = stillhouse("pull", job)
    assert answer.exit_code == 0
    assert answer.stdout.split() == ["student/weights.safetensors"]
    assert (tmp_path / "student" / "weights.safetensors").read_bytes() == WEIGHTS
    assert 'load("student")' in answer.stderr
    assert json.loads(stillhouse("pull", job, "--json").stdout)["files"] == ["weights.safetensors"]


def test_pull_and_local_leave_foreign_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    for command in (["pull", "job_x"], ["local", ROOT / "examples" / "quickstart.yaml"], ["quickstart"]):
        answer = stillhouse(*command, "--out", tmp_path)
        assert answer.exit_code == Exit.USAGE
        assert "thesis.tex" in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


TINY = {
    "teacher": {"name": "small_resnet", "options": {"depth": 1, "width": 8}, "epochs": 1},
    "dataset": {"name": "digits", "options": {"size": 16}},
    "budget": {"macs": "50%"},
    "space": {"divisor": 2},
    "search": {"strategy": {"name": "uniform"}, "weights": "slice", "trials": 2, "rungs": [3], "views": 1},
    "finalists": {"count": 1, "steps": 6, "checkpoint_every": 3},
    "export": {"onnx": False},
}


@pytest.mark.timeout(180)
def test_local_runs_a_job_to_its_student(tmp_path: Path) -> None:
    process = started(
        "local", "-", "--out", tmp_path / "student", "--backend", "inline", "--home", tmp_path / "home", "--json",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    out, said = process.communicate(yaml.safe_dump(TINY), timeout=170)
    assert process.returncode == 0, said
    job = json.loads(out)
    assert job["state"] == "SUCCEEDED"
    assert all(verdict["fits"] for verdict in job["student"]["verdicts"])
    assert {path.name for path in (tmp_path / "student").iterdir()} >= {"architecture.json", "weights.safetensors"}
    assert "search: done" in said
    assert "Warning" not in said


def test_a_wrong_spec_is_refused_locally_too() -> None:
    answer = stillhouse("local", "-", stdin=yaml.safe_dump({**TINY, "search": {"trails": 1}}))
    assert answer.exit_code == Exit.USAGE
    assert "/search/trails" in answer.stderr


# This machine


def test_a_setting_that_cannot_be_used_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_RAY_ADDRESS", "head:6379")
    for command in ("serve", "dispatcher"):
        answer = stillhouse(command)
        assert answer.exit_code == Exit.USAGE
        assert "The settings have mistakes" in answer.stderr
        assert "STILLHOUSE_RAY_TOKEN_FILE: name the file" in answer.stderr


def test_the_doctor_tries_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_PORT", "0")
    answer = stillhouse("doctor", "--json", "--home", tmp_path / "home")
    checks = {check["name"]: check for check in json.loads(answer.stdout)["checks"]}
    assert {"python", "torch", "ray", "home", "disk", "shared memory", "database", "port", "server"} == checks.keys()
    bad = {name: check["detail"] for name, check in checks.items() if check["state"] == "bad"}
    assert (bad, answer.exit_code) == ({}, 0)
    assert checks["torch"]["detail"].startswith("torch 2.")
    assert all(check["fix"] for check in checks.values() if check["state"] != "ok")


def test_the_doctor_says_what_to_do_about_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    from service.doctor import _home
    from service.settings import read_settings

    (tmp_path / "file").write_text("")
    finding = _home(read_settings(home=tmp_path / "file" / "home"))
    assert finding.state == "bad"
    assert "STILLHOUSE_HOME" in finding.fix


@pytest.mark.parametrize(("found", "remedy"), [("0001", "stillhouse migrate"), ("9999", "finish the upgrade")])
def test_the_doctor_says_what_to_do_about_tables_of_another_version(tmp_path: Path, found: str, remedy: str) -> None:
    from service.doctor import _database
    from service.settings import read_settings

    with closing(sqlite3.connect(tmp_path / "stillhouse.db")) as file:
        file.execute("CREATE TABLE alembic_version (version_num TEXT)")
        file.execute("INSERT INTO alembic_version VALUES (?)", [found])
        file.commit()
    finding = _database(read_settings(home=tmp_path))
    assert finding.state == "note"
    assert f"is at revision {found}" in finding.detail
    assert remedy in finding.fix


def test_the_doctor_says_what_to_do_about_a_cluster_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service import doctor
    from service.settings import read_settings

    (tmp_path / "token").write_text("of a cluster")
    settings = read_settings(home=tmp_path, ray_address="127.0.0.1:1", ray_token_file=tmp_path / "token")
    monkeypatch.setattr(doctor, "_USE_RAY", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_RAY_SECONDS", 0.5)
    finding = doctor._ray_started(settings)
    assert (finding.state, finding.detail) == ("bad", "no answer within 0.5 s")
    assert "127.0.0.1:1" in finding.fix
    assert "STILLHOUSE_RAY_TOKEN_FILE" in finding.fix


def test_the_demonstration_is_the_example() -> None:
    assert yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text()) == JOB


def test_a_server_that_does_not_come_up_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "stillhouse.db").write_text("this is no database, and it is long enough to be looked at as one" * 20)
    answer = stillhouse("quickstart", "--home", home, "--out", tmp_path / "student")
    assert answer.exit_code == Exit.JOB_FAILED
    assert "server.log" in answer.stderr
    assert "database" in answer.stderr
