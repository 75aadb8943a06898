"""What processes log: one line a record, who it is about, and no secret in it."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import journal
from service.journal import JsonLines, Redaction, TextLines, about, open_journal
from service.settings import Settings, read_settings
from tests.service.served import client_of, make_app

CANARY = "kaf1kanarienvogel"
LOGGER = logging.getLogger("stillhouse.test")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_line_says_when_what_and_what_about(tmp_path: Path) -> None:
    open_journal("json", "info", file=tmp_path / "log", job_id="job_1")
    LOGGER.info("%d of %d", 1, 2, extra={"trial_id": "trial_7", "something": "else"})
    (line,) = lines(tmp_path / "log")
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "stillhouse.test",
        "message": "1 of 2",
        "job_id": "job_1",
        "trial_id": "trial_7",
    }


def test_a_request_is_known_in_every_line_written_for_it(tmp_path: Path) -> None:
    app = make_app(tmp_path, api_key="k" * 32)
    job = f"job_{'0' * 26}"

    @app.get("/v1/jobs/{job_id}/noisy")
    def noisy() -> None:
        LOGGER.warning("inside")

    open_journal("json", "info", file=tmp_path / "log")
    with client_of(app) as client:
        headers = {"Authorization": f"Bearer {'k' * 32}", "X-Request-Id": "mine"}
        client.get(f"/v1/jobs/{job}", headers=headers)
        client.get(f"/v1/jobs/{job}/noisy", headers=headers | {"X-Request-Id": "other"})
    said = {line["request_id"]: line for line in lines(tmp_path / "log") if line["logger"] == "stillhouse.api"}
    assert (said["mine"]["tenant"], said["mine"]["job_id"], said["mine"]["status"]) == ("default", job, 404)
    assert said["mine"]["method"] == "GET"
    (inside,) = [line for line in lines(tmp_path / "log") if line["message"] == "inside"]
    assert inside["request_id"] == "other"
    assert journal.subjects() == {}, "nothing of a request is left behind"


def test_a_traceback_is_part_of_its_line(tmp_path: Path) -> None:
    open_journal("json", "info", file=tmp_path / "log")
    try:
        raise ValueError(f"two\nlines of postgresql://u:{CANARY}@host/db")
    except ValueError:
        LOGGER.exception("failed")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    sys.excepthook(KeyError, KeyError("gone"), None)
    failed, died, ended = lines(tmp_path / "log")
    assert failed["exception"].splitlines()[-2:] == ["ValueError: two", "lines of postgresql://u:***@host/db"]
    assert "ZeroDivisionError" in died["exception"]
    assert (ended["level"], ended["message"]) == ("critical", "ended by KeyError")


@pytest.mark.parametrize(
    "text",
    [
        f"sth_{CANARY}",
        f"whsec_{CANARY}==",
        f"postgresql+psycopg://user:{CANARY}@host/name",
        f"https://:{CANARY}@host",
        f"Authorization: Bearer {CANARY}",
        f"{{'authorization': 'Basic {CANARY}=='}}",
        f"('authorization', '{CANARY}')",
        f"host=h password={CANARY} dbname=d",
        f"/v1/jobs?api_key={CANARY}&x=1",
    ],
)
def test_what_looks_like_a_secret_is_not_written(text: str) -> None:
    hidden = Redaction().hidden(f"before {text} after")
    assert CANARY not in hidden
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")


@pytest.mark.parametrize(
    "text", ["GET '/v1/jobs/job_01' 200 3.2 ms", "http://127.0.0.1:8431/v1", "the basic block", "a bearer of news"]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redaction().hidden(text) == text


@given(st.text(), st.text(min_size=6), st.sampled_from(["text", "json"]))
def test_a_known_secret_is_hidden_wherever_it_stands_and_a_record_is_one_line(
    words: str, secret: str, form: str
) -> None:
    record = logging.LogRecord("n", logging.INFO, "f", 1, "%s!%s", (words + secret, {"k": secret}), None)
    Redaction([secret]).filter(record)
    assert secret not in record.getMessage() or secret in "!*** {'k':}"
    line = (JsonLines({}) if form == "json" else TextLines()).format(record)
    assert len(line.splitlines()) == 1


def test_a_call_with_wrong_arguments_loses_nothing(tmp_path: Path) -> None:
    open_journal("json", "info", file=tmp_path / "log")
    LOGGER.info("%d rows", "no number")
    assert lines(tmp_path / "log")[0]["message"].startswith("%d rows")


def test_a_canary_in_every_setting_is_never_logged(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, api_key=f"{CANARY}-key", database_url=f"postgresql://u:{CANARY}@h/d", oidc_issuer="https://i"
    )
    open_journal("json", "debug", secrets=settings.secrets, file=tmp_path / "log")
    LOGGER.info("settings: %r, %s, %s", settings, settings.api_key, settings.database_url)
    LOGGER.info("the bare %s-key and the bare %s", CANARY, CANARY)
    assert CANARY not in (tmp_path / "log").read_text()
    assert len(lines(tmp_path / "log")) == 2


def test_text_is_the_form_unless_another_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_settings(home=tmp_path).log_format == "text"
    monkeypatch.setenv("STILLHOUSE_LOG_FORMAT", "json")
    settings = read_settings(home=tmp_path)
    assert settings.log_format == "json"
    assert settings.environment()["STILLHOUSE_LOG_FORMAT"] == "json", "its drivers write as it does"


@pytest.mark.timeout(60)
def test_a_dispatcher_writes_lines_only_tells_its_figures_and_keeps_its_secrets(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {"HOME": str(tmp_path), "LOG_FORMAT": "json", "METRICS_PORT": str(port), "API_KEY": f"{CANARY}-key"}
    environment = os.environ | {f"STILLHOUSE_{name}": value for name, value in given.items()}
    command = [sys.executable, "-m", "service.cli", "dispatcher"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        with httpx2.Client() as http:
            deadline, figures = time.monotonic() + 40, ""
            while not figures:
                assert process.poll() is None
                assert time.monotonic() < deadline
                try:
                    figures = http.get(f"http://127.0.0.1:{port}/metrics").text
                except httpx2.TransportError:
                    time.sleep(0.1)
    finally:
        process.terminate()
        output, log = process.communicate(timeout=20)
    assert "stillhouse_driver_slots 1.0" in figures
    assert process.returncode == 0, log
    assert CANARY not in output + log + figures
    said = [json.loads(line) for line in log.splitlines()]
    assert any(line["message"].startswith("Dispatching jobs of sqlite://") for line in said)


@pytest.mark.timeout(30)
def test_a_process_that_fails_says_so_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql://u:{CANARY}@127.0.0.1:1/d"
    given = {"LOG_FORMAT": "json", "DATABASE_URL": url, "HOME": str(tmp_path)}
    environment = os.environ | {f"STILLHOUSE_{name}": value for name, value in given.items()}
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "migrate"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode != 0
    assert CANARY not in done.stdout + done.stderr


def test_subjects_of_one_request_do_not_reach_another() -> None:
    told: list[object] = []

    def handle(number: int) -> None:
        about(request_id=str(number))
        told.append(dict(journal.subjects()))

    for number in range(2):
        thread = threading.Thread(target=handle, args=(number,))
        thread.start()
        thread.join()
    assert told == [{"request_id": "0"}, {"request_id": "1"}]
