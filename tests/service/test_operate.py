"""Keys and tenants from an operator's shell, and the key that a server makes for its own machine."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service import latchkey
from service.cli import app
from service.client import Client
from service.commands.host import _made
from service.serve import _lay_key, _opened
from service.settings import Settings
from service.store.accounts import digest_of
from service.store.engine import connect
from service.store.record import SqlRecord
from service.store.values import Scope
from service.terminal import Exit, Terminal
from tests.service.served import listening, make_app

pytestmark = pytest.mark.timeout(30)

Shell = Callable[..., Result]


@pytest.fixture
def home(migrated_file: Path, tmp_path: Path) -> Path:
    """A server's home in which nobody has done anything yet."""
    shutil.copy(migrated_file, tmp_path / "stillhouse.db")
    return tmp_path


@pytest.fixture
def shell(home: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("STILLHOUSE_HOME", str(home))
    monkeypatch.setenv("STILLHOUSE_URL", "http://127.0.0.1:9")  # no server is needed for any of this

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, list(words))

    return run


def parsed(answer: Result) -> Any:
    assert answer.exit_code == 0, answer.stderr
    return json.loads(answer.stdout)


def record_in(home: Path) -> SqlRecord:
    return SqlRecord(connect(f"sqlite:///{home / 'stillhouse.db'}"))


def test_a_key_is_printed_once_and_opens_its_tenant(shell: Shell, tmp_path: Path) -> None:
    made = parsed(shell("keys", "create", "--tenant", "vision", "--scope", "submit", "--expires", "90d", "--json"))
    assert made["key"].startswith("sth_")
    assert len(made["key"]) == 4 + 43  # 256 bits in base64url
    found = record_in(tmp_path).holder(made["key"])
    assert found is not None
    assert (found.id, found.tenant, found.scope) == (made["id"], "vision", Scope.SUBMIT)
    assert found.expires_at is not None
    assert (found.expires_at - found.created_at).days == 90
    listed = shell("keys", "list", "--json")
    assert made["key"] not in listed.stdout
    assert digest_of(made["key"]) not in listed.stdout
    [key] = parsed(listed)["keys"]
    assert key["id"] == made["id"]
    revoked = parsed(shell("keys", "revoke", made["id"], "--json"))
    assert revoked["revoked_at"] is not None
    assert record_in(tmp_path).holder(made["key"]) is None
    assert "revoked" in shell("keys", "list").stdout


def test_without_json_the_key_alone_is_data(shell: Shell) -> None:
    answer = shell("keys", "create")
    assert answer.stdout.strip().startswith("sth_")
    assert len(answer.stdout.split()) == 1
    assert "shown this once" in answer.stderr
    [key] = parsed(shell("keys", "list", "--tenant", "default", "--json"))["keys"]
    assert (key["tenant"], key["scope"]) == ("default", "submit")


def test_tenants_and_their_limits(shell: Shell) -> None:
    assert parsed(shell("tenants", "create", "vision", "--json"))["tenant"] == "vision"
    assert "is there already" in shell("tenants", "create", "vision").stdout
    limits = ("--queued-jobs", "7", "--gpu-seconds-per-day", "1000", "--stored-bytes", "none", "--json")
    quotas = parsed(shell("tenants", "limits", "vision", *limits))["quotas"]
    assert {name: use["limit"] for name, use in quotas.items()} == {
        "queued_jobs": 7,
        "concurrent_trials": None,
        "cpu_seconds_per_day": None,
        "gpu_seconds_per_day": 1000,
        "stored_bytes": None,
    }
    assert "0 / 7" in shell("tenants", "list").stdout
    lifted = parsed(shell("tenants", "limits", "vision", "--queued-jobs", "none", "--json"))["quotas"]
    assert lifted["queued_jobs"]["limit"] is None
    assert [tenant["tenant"] for tenant in parsed(shell("tenants", "list", "--json"))["tenants"]] == [
        "default",
        "vision",
    ]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("keys", "create", "--expires", "soon"), Exit.USAGE, "such as 90d"),
        (("keys", "create", "--expires", "11000d"), Exit.USAGE, "at most 10 years"),
        (("keys", "create", "--tenant", "No Such"), Exit.USAGE, "cannot be the name"),
        (("keys", "create", "--scope", "root"), Exit.USAGE, "root"),
        (("keys", "revoke", "key_x"), Exit.NOT_FOUND, "stillhouse keys list"),
        (("tenants", "limits", "nobody", "--queued-jobs", "1"), Exit.NOT_FOUND, "stillhouse tenants list"),
        (("tenants", "limits", "default", "--queued-jobs", "-1"), Exit.USAGE, "whole number"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_remedy(shell: Shell, words: tuple[str, ...], code: Exit, said: str) -> None:
    answer = shell(*words)
    assert answer.exit_code == code
    assert said in answer.stderr


def test_a_server_lays_a_key_for_its_machine_and_keeps_to_it(home: Path) -> None:
    settings, shown = Settings(home=home), list[str]()
    record, *_ = _opened(settings)
    _lay_key(settings, record, shown.append)
    file = home / "api-key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert shown == [latchkey.kept_in(home)]
    found = record.holder(shown[0])
    assert found is not None
    assert (found.tenant, found.scope) == ("default", Scope.ADMIN)
    _lay_key(settings, record, shown.append)
    assert len(shown) == 1, "the next start finds it"
    file.unlink()
    _lay_key(settings, record, shown.append)
    assert len(shown) == 2, "whoever lost it gets another"
    assert record.holder(shown[1]) is not None


@pytest.mark.parametrize("given", [{"auth": "off"}, {"api_key": "k" * 32}, {"host": "0.0.0.0"}])  # noqa: S104
def test_no_key_is_laid_where_none_is_needed_or_others_come_in(home: Path, given: dict[str, Any]) -> None:
    settings = Settings(home=home, **given)
    record, *_ = _opened(settings)
    _lay_key(settings, record, pytest.fail)
    assert not (home / "api-key").exists()


def test_the_key_is_not_shown_to_what_may_be_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _made(Terminal(), Settings(home=tmp_path), "sth_canary")
    told = capsys.readouterr()
    assert "sth_canary" not in told.out + told.err
    assert str(tmp_path / "api-key") in told.err.replace("\n", "")


def test_the_key_is_shown_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.openpty()
    with os.fdopen(writer, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        _made(Terminal(), Settings(home=tmp_path), "sth_canary")
        screen.flush()
        assert b"sth_canary" in os.read(reader, 10_000)
    os.close(reader)


def test_clients_on_the_machine_find_the_key_and_send_it_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sth_a-key-that-nobody-types"
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    latchkey.keep_in(tmp_path, secret)
    with listening(make_app(tmp_path, api_key=secret)) as url, Client(url) as client:
        assert list(client.jobs.list()) == []
    sent = "Authorization"
    with Client("http://127.0.0.1:1") as here, Client("https://stillhouse.example") as elsewhere:
        assert here._wire._http.headers[sent] == f"Bearer {secret}"
        assert sent not in elsewhere._wire._http.headers
    (tmp_path / "other").write_text("another\n")
    monkeypatch.setenv("STILLHOUSE_API_KEY_FILE", str(tmp_path / "other"))
    with Client("https://stillhouse.example") as named:
        assert named._wire._http.headers[sent] == "Bearer another"
    monkeypatch.setenv("STILLHOUSE_API_KEY", "mine")
    with Client("http://127.0.0.1:1") as here:
        assert here._wire._http.headers[sent] == "Bearer mine"
