"""A Ray cluster that is there already, as `ray start` makes it: who shows its token has work done, others have not."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(240)

WORK = """
import sys
from pathlib import Path
from workers.backends.ray import RayBackend

def sevenfold(item):
    yield 7 * item

address, token = sys.argv[1:]
backend = RayBackend(address, token_file=Path(token), cpus=1)
print(list(backend.map(sevenfold, [6], cpus=1, gpus=0, stopping=lambda: False)))
backend.close()
"""

LOSE = """
import os, signal, time
import ray
from workers.backends.ray import RayBackend

backend = RayBackend("local", cpus=1)
(raylet,) = ray._private.worker._global_node.all_processes["raylet"]
os.kill(raylet.process.pid, signal.SIGKILL)
try:
    while True:
        backend._footing.check()
        time.sleep(0.1)
except ConnectionError as error:
    print(error, flush=True)
os.killpg(0, signal.SIGKILL)
"""


def environment(**given: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | given


def running(program: str, *arguments: str, session: bool = False, **given: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**given),
        start_new_session=session,
    )


def intruding(address: str, **given: str) -> subprocess.Popen[str]:
    """What `ray.init` does first; that would try again for twenty seconds."""
    return running("import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1])", address, **given)


def refuses_strangers(address: str) -> bool:
    """Those without a token, and those with another one."""
    strangers = [
        intruding(address, RAY_AUTH_MODE="disabled"),
        intruding(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)),
    ]
    told = [stranger.communicate()[1] for stranger in strangers]
    return all("InvalidAuthToken" in why for why in told) and all(one.returncode == 1 for one in strangers)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(secrets.token_hex(32))
    return file


def address_in(head: subprocess.Popen[str]) -> str:
    said = ""
    assert head.stdout is not None
    for line in head.stdout:
        said += line
        if found := re.search(r"address='?([\d.]+:\d+)", line):
            return found[1]
    raise AssertionError(said)


@pytest.fixture
def cluster(token: Path) -> Iterator[str]:
    """The address of a head that asks for the token."""
    with tempfile.TemporaryDirectory(prefix="sth-h-", ignore_cleanup_errors=True) as folder:
        command = ["start", "--head", "--block", "--port=0", "--num-cpus=1", "--include-dashboard=false"]
        head = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *command, f"--temp-dir={folder}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)),
            start_new_session=True,
        )
        with head:
            try:
                yield address_in(head)
            finally:
                os.killpg(head.pid, signal.SIGKILL)


def test_a_cluster_works_for_those_who_show_its_token(cluster: str, token: Path) -> None:
    welcome = running(WORK, cluster, str(token))
    assert refuses_strangers(cluster)
    said, why = welcome.communicate()
    assert (welcome.returncode, said) == (0, "[(0, 42)]\n"), why


def test_a_node_that_is_gone_is_missed() -> None:
    """Tune would wait for ever for trials that are to start through it."""
    impatient = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "2"}
    program = running(LOSE, session=True, RAY_health_check_timeout_ms="1000", **impatient)
    said, why = program.communicate(timeout=120)
    assert "given up the node of this machine" in said, why
