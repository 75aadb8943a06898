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
START_AND_SAY_WHERE = """
from workers.backends.ray import RayBackend
import ray
backend = RayBackend(cpus=1)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
backend.close()
"""


def environment(**given: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | given


def running(program: str, *arguments: str, **given: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**given),
    )


def intruding(address: str, **given: str) -> subprocess.Popen[str]:
    """What `ray.init` does first; that would try again for twenty seconds."""
    return running("import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1])", address, **given)


def refused(intruder: subprocess.Popen[str]) -> bool:
    _, why = intruder.communicate()
    return intruder.returncode == 1 and "InvalidAuthToken" in why


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
    assert refused(intruding(cluster, RAY_AUTH_MODE="disabled"))
    assert refused(intruding(cluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)))
    said, why = welcome.communicate()
    assert (welcome.returncode, said) == (0, "[(0, 42)]\n"), why


def test_a_cluster_of_ours_asks_for_a_token_that_only_we_have() -> None:
    ours = running(START_AND_SAY_WHERE)
    try:
        assert ours.stdout is not None
        address = ours.stdout.readline().strip()
        assert refused(intruding(address, RAY_AUTH_MODE="disabled"))
        assert refused(intruding(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)))
    finally:
        ours.communicate("\n")
