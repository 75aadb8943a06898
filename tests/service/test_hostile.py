"""
Nothing that a hostile client sends is taken, breaks the server or is left behind; what may be kept steers nobody's
terminal. Of each of the 28 attacks on the list of `tests.service.hostile` there is an input there, or a test elsewhere.
"""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import time
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image
from sqlalchemy import Engine, text
from typer.testing import CliRunner

import search.recipe  # noqa: F401 - loads torch while tests are collected, where no clock runs
from search.errors import UserError
from search.files import Files
from search.trial import State, Trial
from service.app import create_app
from service.checker import DirectChecker
from service.cli import app as commands
from service.problems import MEDIA_TYPE, Problem
from service.screens.glass import shown
from service.settings import Settings
from service.store.engine import latest_revision
from service.store.ports import Scope
from service.store.tables import metadata
from tests.service.hostile import ATTACKS, CORPUS, KEPT, OPERATIONS, PATHS, Attempt, inputs
from tests.service.served import SPEC, WEIGHTS, claimed, listening, make_app, submitted
from tests.service.test_tenancy import Willing, furnished
from workers.memory import MemoryLedger
from workers.ports import JobState, Level, Line, Phase

pytestmark = pytest.mark.timeout(60)

HOUSE = Path(__file__).parents[2]
CANARY = "canary-in-a-file-of-this-server"
ELSEWHERE = {
    1: "tests/service/test_uploads.py::test_what_is_no_weights_is_refused_and_leaves_nothing",
    2: "tests/search/test_header.py::test_what_is_no_weights_is_refused_soon_and_for_little",
    4: "tests/search/test_header.py::test_what_is_no_weights_is_refused_soon_and_for_little",
    6: "tests/service/test_uploads.py::test_what_is_no_weights_is_refused_and_leaves_nothing",
    7: "tests/search/test_datasets.py::test_a_corrupt_image_is_named",
    9: "tests/service/test_signing.py::test_what_was_not_is_forged",
    10: "tests/test_deploy.py::test_the_network_is_closed_unless_opened",
    11: "tests/test_house.py::test_nothing_that_is_read_can_run",
    12: "tests/service/test_tenancy.py::test_what_is_another_tenants_is_answered_like_what_never_was",
    14: "tests/service/test_canaries.py::test_no_secret_is_anywhere_but_with_its_bearer",
    17: "tests/contracts/test_ledger.py::test_what_json_cannot_say_is_refused",
    19: "tests/service/test_turnstile.py::test_two_hundred_idle_sockets_keep_nobody_waiting",
    26: "tests/contracts/test_ledger.py::test_an_old_token_is_refused_everywhere_and_changes_nothing",
    27: "tests/test_house.py::test_every_dependency_is_pinned_exactly",
    28: "tests/service/test_tenancy.py::test_every_change_leaves_one_row_in_the_audit",
}
"""Attacks that are no request, or that a test has of its own."""
TO_THE_RECORD = frozenset({8, 20, 21, 22})
"""Attacks whose words may come as far as the database."""
LONGEST_SECONDS = 5.0
"""That one input may keep the server busy; a loaded machine needs most of them."""


def test_every_attack_of_the_list_is_made_here_or_elsewhere() -> None:
    made = inputs(CORPUS) | {(attack, word) for attack, word in KEPT}
    assert len(made) >= 400
    assert len({word for attack, word in made if attack == 5}) >= 200
    assert {attack for attack, _ in made} | ELSEWHERE.keys() == ATTACKS.keys()
    assert {attempt.operation for attempt in CORPUS} == OPERATIONS.keys(), "each operation gets some"
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        tree = ast.parse((HOUSE / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, place


class Wire:
    """A connection that sends what it is given, and is made anew when the server has closed it."""

    def __init__(self, url: str) -> None:
        self._address = (urlsplit(url).hostname, urlsplit(url).port)
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> tuple[HTTPResponse, bytes]:
        for last in (False, True):
            self._socket = self._socket or socket.create_connection(self._address, timeout=20)
            try:
                self._send(request)
                answer = HTTPResponse(self._socket)
                answer.begin()
                content = answer.read()
            except (HTTPException, ConnectionError):
                self.close()
                if last:
                    raise
            else:
                if answer.will_close:
                    self.close()
                return answer, content
        raise AssertionError("one of the two came to an end")

    def _send(self, request: bytes) -> None:
        assert self._socket is not None
        with suppress(ConnectionError):  # it has said what it had to say, and does not want the rest
            self._socket.sendall(request)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def rows(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        counts = {table: text(f"SELECT COUNT(*) FROM {table}") for table in metadata.tables}  # noqa: S608 - of ours
        return {table: int(connection.execute(count).scalar_one()) for table, count in counts.items()}


def furnished_folder(home: Path) -> Path:
    """A data root with pets, and with all that may lie in one to lead astray; what it leads to lies beside it."""
    data, secret = home / "data", home / "secret"
    for folder in (data / "pets" / "cat", data / "pets" / "dog", secret):
        folder.mkdir(parents=True)
    for number in range(16):
        Image.new("RGB", (8, 8), (number * 9, 7, 99)).save(data / "pets" / ("cat", "dog")[number % 2] / f"{number}.png")
    (secret / "canary.safetensors").write_text(CANARY)
    (data / "way-out").symlink_to(secret)
    (data / "loop").symlink_to("loop")
    os.mkfifo(data / "pipe")
    return data


def test_nothing_hostile_is_taken_or_breaks_anything_or_is_left_behind(engine: Engine, tmp_path: Path) -> None:
    data = furnished_folder(tmp_path)
    record, artifacts, secrets, ids = furnished(engine)
    settings = Settings(
        home=tmp_path / "home", data_roots=(data,), webhook_hosts=("hooks.example.org",), key_rate=1e6, key_burst=10**6
    )
    checker = DirectChecker(Files(tmp_path / "cache", (data,)))
    app = create_app(settings, record, artifacts, checker, schema_version=latest_revision())
    known = ids["alice"] | {"secret": secrets["alice"][Scope.ADMIN]}
    sent = [each for each in CORPUS if engine.dialect.name == "sqlite" or each.attack in TO_THE_RECORD]
    before, files = rows(engine), sorted(data.rglob("*"))
    wrong: list[str] = []
    with listening(app) as url:
        wire = Wire(url)
        for attempt in sent:
            began = time.monotonic()
            answer, content = wire.ask(attempt.raw(known))
            faults = [*_faults(attempt, answer, content, tmp_path)]
            if time.monotonic() - began > LONGEST_SECONDS:
                faults.append("took too long")
            if faults:
                wrong.append(
                    f"{attempt.attack} {attempt.input[:60]!r} {attempt.method} {attempt.target[:80]}: {faults}"
                )
        wire.close()
        assert httpx2.get(f"{url}/healthz").status_code == 200
    assert not wrong, "\n".join(wrong)
    assert rows(engine) == before
    assert sorted(data.rglob("*")) == files
    assert not (tmp_path / "home").exists()


def test_no_location_leads_out_of_the_data_root(tmp_path: Path) -> None:
    data = furnished_folder(tmp_path)
    files = Files(tmp_path / "cache", (data,))
    led = set()
    for word in PATHS:
        with suppress(UserError):
            led.add(files.resolve(word, pointer="/weights").relative_to(data).as_posix())
    assert led <= {".", "pipe"}, "which are below it, and neither weights nor pets"


def _faults(attempt: Attempt, answer: HTTPResponse, content: bytes, home: Path) -> Iterator[str]:
    """What is wrong with an answer."""
    if answer.status not in attempt.expected:
        yield f"answered {answer.status}: {content[:200]!r}"
    if CANARY.encode() in content or str(home).encode() in content:
        yield "tells what lies on the server"
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["x-request-id"]) or "set-cookie" in answer.headers:
        yield f"headers that were put in: {answer.headers}"
    if answer.headers["x-content-type-options"] != "nosniff":
        yield "may be taken for something else"
    if answer.status >= 400:
        if answer.headers["content-type"] != MEDIA_TYPE or len(content) > 32_000:
            yield f"no problem: {content[:200]!r}"
        else:
            yield from _unpointed(attempt, Problem.model_validate_json(content))
    elif attempt.operation == "jobs.artifact_content" and content != WEIGHTS:
        yield "not the file"


def _unpointed(attempt: Attempt, found: Problem) -> Iterator[str]:
    """A body in which one place is hostile is refused for that."""
    pointers = [error.pointer for error in found.errors]
    if found.status == 422 and not any(pointer.startswith(attempt.pointer) for pointer in pointers):
        yield f"refused for {pointers}, not for {attempt.pointer}: {found.detail}"


def test_what_may_be_kept_comes_back_as_it_came_and_as_nothing_but_json(sqlite: Engine, tmp_path: Path) -> None:
    record, artifacts, secrets, _ = furnished(sqlite)
    settings = Settings(home=tmp_path, key_rate=1e6, key_burst=10**6)
    app = create_app(settings, record, artifacts, Willing(), schema_version=latest_revision())
    bearing = {"Authorization": f"Bearer {secrets['alice'][Scope.ADMIN]}"}
    labels = {f"word{number}": word for number, (_, word) in enumerate(KEPT)}
    asked = {"teacher": SPEC["teacher"], "dataset": SPEC["dataset"]}
    bodies = cycle((("keys", {}), ("teachers", asked), ("datasets", {"dataset": SPEC["dataset"]})))
    with (
        listening(app) as url,
        httpx2.Client(base_url=url, headers=bearing) as http,
    ):
        job = http.post("/v1/jobs", json=SPEC | {"labels": labels}).json()
        found = http.get(job["links"]["self"], headers={"Accept": "text/html"})
        assert found.json()["spec"]["labels"] == labels
        assert _is_json(found)
        for name, word in labels.items():
            kind, body = next(bodies)
            made = http.post(f"/v1/{kind}", json=body | {"name": word})
            assert (made.status_code, made.json()["name"]) == (201, word)
            listed = http.get(f"/v1/{kind}")
            assert listed.json()[kind][0]["name"] == word
            assert _is_json(made)
            assert _is_json(listed)
            if not any(unicodedata.category(character) == "Cc" for character in word):  # which no filter holds
                quoted = word.replace("\\", "\\\\").replace('"', '\\"')
                by_label = http.get("/v1/jobs", params={"filter": f'labels.{name} = "{quoted}"'})
                assert [each["id"] for each in by_label.json()["jobs"]] == [job["id"]], word


def _is_json(answer: httpx2.Response) -> bool:
    policy = answer.headers["content-security-policy"]
    typed = (answer.headers["content-type"], answer.headers["x-content-type-options"])
    return typed == ("application/json", "nosniff") and "default-src 'none'" in policy and "sandbox" in policy


def test_nothing_leaves_as_a_page_or_a_table() -> None:
    """A browser runs nothing of what it is given, and no program for tables opens it."""
    kinds = {
        kind
        for _, _, operation in OPERATIONS.values()
        for response in operation["responses"].values()
        for kind in response.get("content", {})
    }
    allowed = {"application/json", MEDIA_TYPE, "application/octet-stream", "text/event-stream", "text/plain"}
    assert kinds <= allowed
    assert [name for name, each in OPERATIONS.items() if "text/plain" in str(each[2]["responses"])] == ["metrics"]


STEERING = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp\u2066\x85forged\u2028line\rover\x08"
LEFT = "[2J]0;title31mgnpforgedlineover"


def test_no_words_of_others_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a screen shows, and documents too, which say the same all the while."""
    ledger = MemoryLedger()
    running = submitted(ledger, labels={"note": STEERING}, teacher=SPEC["teacher"] | {"weights": f"w{STEERING}"})
    claim = claimed(ledger)
    ledger.enter(claim, Phase.SEARCH)
    trial = ledger.open_trial(claim, Trial("", 0, "k", {"a": 1}, {"a": 2}, {"macs": 3}))
    ledger.start_trial(claim, trial.id)
    ledger.close_trial(claim, trial.id, State.FAILED, f"ERROR: {STEERING}")
    ledger.log(claim, [Line(Level.WARNING, "stillhouse", f"said {STEERING} :bomb: [red]x[/]")])
    failed = submitted(ledger)
    ledger.close(claimed(ledger), JobState.FAILED, f"TEACHER_FAILED: {STEERING}")
    with listening(make_app(tmp_path, ledger)) as url:
        monkeypatch.setenv("STILLHOUSE_URL", url)
        looks = [("jobs",), ("show", running), ("show", failed), ("trials", running), ("events", running)]
        looks += [("logs", running), ("watch", failed), ("show", f"job_{STEERING}"), ("catalog", STEERING)]
        for look in looks:
            for form in ((), ("--json",)):
                told = CliRunner().invoke(commands, [*look, *form])
                for said in (told.stdout, told.stderr):
                    assert shown(said) == said, (look, said)
        logged = CliRunner().invoke(commands, ["logs", running]).stdout
        assert f"said {LEFT} :bomb: [red]x[/]" in logged
        assert logged.count("\n") == 1
        document = json.loads(CliRunner().invoke(commands, ["show", running, "--json"]).stdout)
        assert document["spec"]["labels"] == {"note": STEERING}
