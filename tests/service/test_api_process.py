"""The server as a process of its own: what it loads, how it starts, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from search.errors import UserError
from service import latchkey
from service.serve import serve, serve_api
from service.settings import InvalidSettings, Settings, read_settings
from tests.service.served import SPEC

SERVE = """
import sys
from service.serve import serve_api
from service.settings import read_settings

def ready(url):
    print(url, flush=True)

serve_api(read_settings(), on_ready=ready)
print(sorted(name for name in ("torch", "ray", "torchvision", "sklearn", "optuna") if name in sys.modules), flush=True)
"""


@contextmanager
def server(home: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and its address; killed at the end if it is still there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STILLHOUSE_")}
    environment |= {"STILLHOUSE_HOME": str(home), "STILLHOUSE_PORT": "0", **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), process.communicate()[1]
        yield process, url
    finally:
        process.kill()
        process.communicate()


@pytest.mark.timeout(120)
def test_a_server_from_start_to_end(tmp_path: Path) -> None:
    with server(tmp_path) as (process, url), httpx2.Client(base_url=url, timeout=90) as http:
        http.headers["Authorization"] = f"Bearer {latchkey.kept_in(tmp_path)}"
        assert httpx2.get(f"{url}/v1/jobs").status_code == 401
        ready = http.get("/readyz").json()
        assert (ready["status"], len(ready["schema_version"]) > 0) == ("ready", True)
        created = http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "one"})
        assert created.status_code == 201, created.text
        address = created.headers["location"]
        assert http.get("/v1/catalog/teachers").status_code == 200
        assert http.post("/v1/jobs", json=SPEC | {"budget": {"macs": 3}}).json()["code"] == "BUDGET_IMPOSSIBLE"

        told: list[str] = []

        def listen() -> None:
            with http.stream("GET", f"{address}/events", headers={"Accept": "text/event-stream"}) as answer:
                told.extend(answer.iter_lines())

        listener = threading.Thread(target=listen)
        listener.start()
        deadline = time.monotonic() + 10
        while "event: JOB_QUEUED" not in told:
            assert time.monotonic() < deadline, told
            time.sleep(0.02)

        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, log = process.communicate(timeout=30)
        listener.join()
        assert process.returncode == 0, log
        assert time.monotonic() - began < 10, "an open stream does not hold up the end"
        assert json.loads(output.replace("'", '"')) == [], "the API loads none of these"
        assert "Traceback" not in log
        assert latchkey.kept_in(tmp_path) not in output + log

    with server(tmp_path) as (process, url):
        found = httpx2.get(f"{url}{address}", headers={"Authorization": f"Bearer {latchkey.kept_in(tmp_path)}"})
        assert found.json()["state"] == "QUEUED", "what was acknowledged is still there, and so is the key"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 0


@pytest.mark.timeout(60)
def test_one_home_serves_one_server(tmp_path: Path) -> None:
    with server(tmp_path), pytest.raises(UserError, match="another server is using"):
        serve_api(read_settings(home=tmp_path, port=0))


def test_a_port_in_use_is_told_by_its_number(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSettings, match=f"STILLHOUSE_PORT: cannot listen on 127.0.0.1:{port}"):
            serve_api(Settings(home=tmp_path, port=port))


@pytest.mark.parametrize("start", [serve, serve_api])
def test_nobody_is_served_from_elsewhere_without_a_key(tmp_path: Path, start: Any) -> None:
    with pytest.raises(InvalidSettings, match="STILLHOUSE_API_KEY"):
        start(Settings(home=tmp_path / "home", host="0.0.0.0", port=0))  # noqa: S104 - refused
    with pytest.raises(InvalidSettings, match="STILLHOUSE_AUTH"):
        start(Settings(home=tmp_path / "home", host="0.0.0.0", port=0, auth="off", api_key="k" * 32))  # noqa: S104
    assert not (tmp_path / "home").exists(), "refused before anything is made"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("module", ["service.serve", "service.app", "service.client", "service.documents"])
def test_what_the_api_imports_loads_neither_torch_nor_ray(module: str) -> None:
    heavy = ("torch", "torchvision", "ray", "optuna", "sklearn", "scipy", "onnx")
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
