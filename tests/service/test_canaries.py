"""Secrets that a server is given and gives out, looked for afterwards wherever something may have been written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import Engine, make_url, text

from service.store.tables import metadata
from tests.workers.small_job import small_spec

BEARER = "canary-of-the-api-key-0123456789"
PASSWORD = "canary-of-the-database-0123456789"
MISTYPED = "sth_canary-of-a-mistyped-key-0123456789"
TOKEN = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ.eyJzdWIiOiJzYW0ifQ.canary-of-a-token-0123456789"
COOKIE = "canary-of-a-cookie-0123456789"


@contextmanager
def serving(home: Path, database: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server with a secret in every place for one; its address and its process."""
    said = {
        "HOME": str(home),
        "DATABASE_URL": make_url(database).set(password=PASSWORD).render_as_string(hide_password=False),
        "API_KEY": BEARER,
        "OIDC_ISSUER": "http://127.0.0.1:1",
        "OIDC_AUDIENCE": "stillhouse",
        "WEBHOOK_HOSTS": "127.0.0.1",
        "WEBHOOK_INSECURE": "true",
        "LOG_LEVEL": "debug",
    }
    environment = os.environ | {f"STILLHOUSE_{name}": value for name, value in said.items()}
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--backend", "inline", "--json"]
    with (home / "err").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        assert process.stdout is not None
        told = ""
        while not told.endswith("}\n"):
            line = process.stdout.readline()
            assert line, (home / "err").read_text()
            told += line
        yield json.loads(told)["url"], process
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=30)
        (home / "out").write_text(told + rest)


@pytest.mark.timeout(120)
def test_no_secret_is_anywhere_but_with_its_bearer(postgres: Engine, postgres_server: str, tmp_path: Path) -> None:
    bearing = {"Authorization": f"Bearer {BEARER}"}
    with serving(tmp_path, postgres_server) as (url, process), httpx2.Client(base_url=url, timeout=60) as http:
        told: list[str] = []

        def ask(method: str, path: str, expected: int, **options: object) -> httpx2.Response:
            options = {"headers": bearing} | options
            answer: httpx2.Response = http.request(method, path, **options)  # type: ignore[arg-type]
            assert answer.status_code == expected, answer.text
            told.append(f"{answer.headers} {answer.text}")
            return answer

        key = ask("POST", "/v1/keys", 201, json={"name": "canary", "scope": "admin"}).json()["key"]
        wanted = {"url": "http://127.0.0.1:1/", "kinds": ["JOB_QUEUED", "JOB_SUCCEEDED"]}
        secret = ask("POST", "/v1/webhooks", 201, json=wanted).json()["secret"]
        told.clear()  # each is shown this once
        known = {"Authorization": f"Bearer {key}", "Cookie": f"session={COOKIE}"}
        job = ask("POST", "/v1/jobs", 201, json=small_spec().model_dump(mode="json"), headers=known).json()
        ask("GET", "/v1/jobs", 401, headers={"Authorization": f"Bearer {MISTYPED}"})
        ask("GET", "/v1/jobs", 503, headers={"Authorization": f"Bearer {TOKEN}"})
        ask("GET", "/v1/jobs", 401, headers={"X-Api-Key": BEARER, "Cookie": f"key={BEARER}"})
        ask("GET", f"/v1/jobs?api_key={BEARER}&token={key}", 422)
        ask("GET", f"/v1/nothing/{key}", 404, headers=known)
        told.pop()  # who puts it into an address is told that there is nothing at that address
        ask("POST", "/v1/jobs", 422, json={"teacher": {"name": "x"}}, headers=known)
        ask("POST", "/v1/jobs", 415, content=b"x", headers=known | {"Content-Type": "text/plain"})
        ask("POST", "/v1/jobs", 400, content=b"{", headers=known | {"Content-Type": "application/json"})
        ask("GET", "/v1/jobs", 400, headers=known | {"Host": "evil.example"})
        with http.stream("GET", job["links"]["events"], headers=known | {"Accept": "text/event-stream"}) as stream:
            told += stream.iter_lines()
        assert ask("GET", job["links"]["self"], 200).json()["state"] == "SUCCEEDED"
        for path in ("logs", "timeline", "trials", "artifacts"):
            ask("GET", f"{job['links']['self']}/{path}", 200)
        for path in ("/v1/keys", "/v1/webhooks", "/v1/audit", "/v1/usage", "/v1/server", "/metrics", "/openapi.json"):
            ask("GET", path, 200)
    assert process.returncode == 0

    places = {"answers": "\n".join(told)}
    places |= {str(path): path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()}
    with postgres.connect() as connection:
        for table in metadata.tables:
            rows = connection.execute(text(f"SELECT * FROM {table}")).all()  # noqa: S608 - a table of ours
            places[f"table {table}"] = str(rows)
    assert "JOB_SUCCEEDED" in places["answers"], "the stream came to its end"
    assert any("/logs/" in place for place in places), "the driver has written a log"
    canaries = (BEARER, PASSWORD, MISTYPED, TOKEN, COOKIE, key, secret)
    found = {(place, canary) for place, words in places.items() for canary in canaries if canary in words}
    assert found == {("table webhooks", secret)}, "where it is needed to sign letters"
