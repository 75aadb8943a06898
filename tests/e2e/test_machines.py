"""
Several machines: a job on a Ray cluster that loses one of them, and what a stranger on the network finds open.

The cluster is made only with STILLHOUSE_TEST_MACHINES=1, for it takes minutes.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.store.engine import connect, migrate
from tests.databases import WholeLedger
from tests.machines import Machine, Switch, why_not
from tests.workers.small_job import small_spec
from workers.events import Event
from workers.ports import JobState

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.timeout(400)]

BUSY = {"RAY_raylet_start_wait_time_s": "180"}
"""For nodes that start on a machine which is busy; ray gives up after half a minute."""
SCAN = """
import json, socket, sys
found = []
for port in range(1, 65536):
    with socket.socket() as probe:
        probe.settimeout(5)
        if probe.connect_ex((sys.argv[1], port)) == 0:
            found.append(port)
print(json.dumps(found))
"""
INTRUDE = "import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1])"
"""What `ray.init` does first."""


@dataclass
class House:
    """The folders of an installation, and the record of it; `home` is for the server's machine alone."""

    folder: Path

    def __post_init__(self) -> None:
        for path in (self.home, self.artifacts, self.secrets, self.logs):
            path.mkdir()
        self.token.write_text(secrets.token_hex(32))
        engine = connect(f"sqlite:///{self.home / 'stillhouse.db'}")
        migrate(engine)
        self.record = WholeLedger(engine)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    @property
    def token(self) -> Path:
        return self.secrets / "token"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def submit(self, **changes: Any) -> str:
        return self.record.submit(small_spec(**changes), idempotency_key=None, fingerprint=None)[0].id

    def events(self, job: str, kind: str) -> list[Event]:
        return [event for event in self.record.events(job, after=0, limit=10_000) if event.kind == kind]

    def scored(self, job: str, *, after: int = 0) -> list[tuple[str, str]]:
        """Trial and machine of every score `after` that event."""
        found = [event for event in self.events(job, "TRIAL_SCORED") if event.seq > after]
        return [(event.data["trial"], event.data["worker"].partition(":")[0]) for event in found]

    def until(self, job: str, reached: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            found = self.record.job(job)
            assert found.state is not JobState.FAILED, found.reason + self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        logs = [*self.logs.iterdir(), *self.home.glob("logs/*")]
        return "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def serve(self, machine: Machine, *command: str, **environment: str) -> None:
        machine.start(
            *("python", "-m", "service.cli", *command),
            log=self.logs / "server",
            STILLHOUSE_HOME=str(self.home),
            STILLHOUSE_ARTIFACTS=str(self.artifacts),
            **environment,
        )

    def node(self, machine: Machine, *options: str) -> subprocess.Popen[str]:
        """Makes it one of a cluster; the program is there as long as the node."""
        return machine.start(
            *("ray", "start", "--block", "--object-store-memory=100000000", "--include-log-monitor=false", *options),
            log=self.logs / machine.name,
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=str(self.token),
            RAY_USAGE_STATS_ENABLED="0",
            **BUSY,
        )


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def switch() -> Iterator[Switch]:
    with Switch() as switch:
        yield switch


@pytest.mark.skipif("STILLHOUSE_TEST_MACHINES" not in os.environ, reason="takes minutes; set STILLHOUSE_TEST_MACHINES")
@pytest.mark.parametrize("fate", ["killed", "cut off"])
def test_a_job_outlives_a_node_of_its_cluster_and_strangers_stay_outside(
    house: House, switch: Switch, fate: str
) -> None:
    """Nodes share nothing but the token and the artifacts."""
    server = switch.machine("server", house.home, house.artifacts, house.secrets)
    steady, doomed = (switch.machine(name, house.artifacts, house.secrets) for name in ("steady", "doomed"))
    head = f"{server.address}:6379"
    house.node(server, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false")
    _, lost = (house.node(machine, f"--address={head}", "--num-cpus=1") for machine in (steady, doomed))
    search = {"strategy": {"name": "random"}, "weights": "slice", "trials": 10, "rungs": [60, 120], "repeats": 0}
    job = house.submit(
        search=search | {"views": 1, "calibration_batches": 1},
        finalists={"count": 1, "steps": 4, "checkpoint_every": 2},
        resources={"concurrent_trials": 2},
    )
    house.serve(server, "dispatcher", STILLHOUSE_RAY_ADDRESS=head, STILLHOUSE_RAY_TOKEN_FILE=str(house.token))

    house.until(job, lambda: any(machine == "doomed" for _, machine in house.scored(job)), 200)
    if fate == "killed":
        doomed.lose()
    else:
        switch.cut(doomed)
    house.until(job, lambda: bool(house.events(job, "TRIAL_RETURNED")), 200)
    if fate == "cut off":
        switch.join(doomed)
    stranger = switch.machine("stranger").start(
        "python", "-c", INTRUDE, head, log=(told := house.logs / "stranger"), RAY_AUTH_MODE="disabled"
    )
    house.until(job, lambda: house.record.job(job).state is JobState.SUCCEEDED, 200)

    (returned,) = house.events(job, "TRIAL_RETURNED")
    later = house.scored(job, after=returned.seq)
    assert (returned.data["trial"], "steady") in later
    assert {machine for _, machine in later} == {"steady"}
    assert house.record.job(job).claims == 1
    assert lost.wait() != 0, "the rest of the cluster has given it up, so it ends itself"
    assert stranger.wait() == 1
    assert "InvalidAuthToken" in told.read_text()


def test_a_stranger_finds_nothing_open_on_a_server_but_its_api(house: House, switch: Switch) -> None:
    """While a job is under way, on the Ray that its driver has started there."""
    server, stranger = switch.machine("server", house.home, house.artifacts), switch.machine("stranger")
    job = house.submit(teacher={"name": "small_resnet", "options": {"width": 4, "depth": 1}, "epochs": 1000})
    house.serve(
        server, "serve", STILLHOUSE_HOST=server.address, STILLHOUSE_PORT="8431", STILLHOUSE_API_KEY="k" * 32, **BUSY
    )
    house.until(job, lambda: bool(house.events(job, "PHASE_ENTERED")), 200)

    inside = server.start("python", "-c", SCAN, "127.0.0.1", log=-1)
    outside = stranger.start("python", "-c", SCAN, server.address, log=-1)
    assert json.loads(outside.communicate()[0]) == [8431]
    assert len(json.loads(inside.communicate()[0])) >= 4, "Ray was there, and would have been seen"
