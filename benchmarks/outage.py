"""
What clients see while Postgres crashes and comes back under load.

    python -m benchmarks.outage --rounds 3

A server of its own (`stillhouse api`) over a Postgres of its own. Clients submit and read without a retry of their own;
in the middle of each round the database is stopped as a crash would stop it (`pg_ctl -m immediate`), is away for some
seconds, and is started again.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.served import AUTHORIZED, serving
from tests.databases import Postgres, new_postgres

SPEC = {"teacher": {"name": "small_resnet"}, "dataset": {"name": "digits"}, "budget": {"macs": "50%"}}
BROKEN = 0
"""In place of a status: no answer came."""


@dataclass
class Seen:
    """What clients saw, each answer with the moment (of `time.monotonic`) at which it had come."""

    answers: list[tuple[float, str, int]] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    longest: float = 0.0

    def statuses(self, since: float, until: float, name: str | None = None) -> Counter[int]:
        return Counter(
            status for moment, asked, status in self.answers if since <= moment < until and name in (None, asked)
        )

    def first_success(self, since: float) -> float:
        """Seconds after `since`; infinite when there was none."""
        good = (moment for moment, asked, status in self.answers if asked == "submit" and status == 201)
        return min((moment for moment in good if moment >= since), default=float("inf")) - since


@contextmanager
def load(url: str, clients: int, spec: dict[str, Any] | None = None) -> Iterator[Seen]:
    """Clients of which half submit and half read, and one that asks whether the server is alive, until the end."""
    seen, over = Seen(), threading.Event()

    def go(name: str, ask: Callable[[httpx2.Client], httpx2.Response]) -> None:
        with httpx2.Client(base_url=url, timeout=30, headers=AUTHORIZED) as http:
            while not over.is_set():
                began = time.monotonic()
                try:
                    answer = ask(http)
                    status = answer.status_code
                except httpx2.TransportError:
                    status = BROKEN
                moment = time.monotonic()
                seen.answers.append((moment, name, status))
                seen.longest = max(seen.longest, moment - began)
                if name == "submit" and status == 201:
                    seen.acknowledged.append(answer.json()["id"])
                over.wait(0.05 if name == "alive" or status != 201 else 0.0)

    asked: list[tuple[str, Callable[[httpx2.Client], httpx2.Response]]] = [("alive", lambda http: http.get("/healthz"))]
    for number in range(clients):
        if number % 2:
            asked.append(("read", lambda http: http.get("/v1/jobs")))
        else:
            asked.append(("submit", lambda http: http.post("/v1/jobs", json=spec or SPEC)))
    threads = [threading.Thread(target=go, args=one) for one in asked]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def crash(database: Postgres, away_seconds: float) -> tuple[float, float]:
    """Stops the database without a word and starts it again: when it went, and when it was back."""
    gone = time.monotonic()
    database.stop()
    time.sleep(away_seconds)
    database.start()
    return gone, time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--away", type=float, default=2.0, help="seconds between stop and start")
    given = parser.parse_args()
    database = new_postgres()
    try:
        database.start()
        with tempfile.TemporaryDirectory() as home, serving(database.url, Path(home)) as server:
            with load(server.url, 2):
                time.sleep(20)  # the child that checks jobs loads torch, and the first plan is made
            print("round  answers  201/200    503    500  broken  not alive  longest s  first success s  lost")
            for number in range(given.rounds):
                _round(number, server.url, database, given.clients, given.away)
    finally:
        database.remove()


def _round(number: int, url: str, database: Postgres, clients: int, away: float) -> None:
    with load(url, clients) as seen:
        time.sleep(3)
        _, back = crash(database, away)
        time.sleep(8)
    told = seen.statuses(0, float("inf"))
    alive = seen.statuses(0, float("inf"), "alive")
    with httpx2.Client(base_url=url, headers=AUTHORIZED) as http:
        lost = sum(http.get(f"/v1/jobs/{job}").status_code != 200 for job in seen.acknowledged)
    print(
        f"{number + 1:5}  {told.total():7}  {told[200] + told[201]:7}  {told[503]:5}  {told[500]:5}  {told[BROKEN]:6}  "
        f"{alive.total() - alive[200]:9}  {seen.longest:9.1f}  {seen.first_success(back):15.2f}  "
        f"{lost} of {len(seen.acknowledged)}"
    )


if __name__ == "__main__":
    main()
