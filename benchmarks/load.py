"""
What a server takes: jobs submitted by many clients at once, and for hours on end.

    python -m benchmarks.load [sqlite] [postgres] [--clients 16] [--seconds 20] [--servers 1] [--beside]
    python -m benchmarks.load [sqlite] [postgres] --soak 10 [--streams 50] [--rate 20]
    python -m benchmarks.load --disk [--seconds 20]

Every submission is on disk when its answer comes (`synchronous=FULL`, `fsync`), every one is another job, and its key
is looked up on record. A process of its own writes 8 KiB for good now and then meanwhile: while that takes long the
disk stalls, for the record too, and the last column leaves out the submissions that fell into it. With `--beside` a
process that trains without end has the same cores, as a search would. The soak submits at an even pace while clients
watch jobs live, and looks at the server's memory and open files. With `--disk` nothing is served: it says what the disk
takes to write 8 KiB for good, by itself. All is kept where TMPDIR says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

import httpx2

from benchmarks.served import AUTHORIZED, Served, serving
from tests.databases import new_postgres

SPEC = {"teacher": {"name": "small_resnet"}, "dataset": {"name": "digits"}, "budget": {"macs": "50%"}}
_CHECKED = 120.0
"""Seconds that the first submission may take: the child that checks jobs loads torch for it."""
_STALL = 0.05
"""Seconds for 8 KiB, of which most take less than a thousandth."""

Span = tuple[float, float]
"""From when to when, by the monotonic clock, which is one for all processes."""


def client(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, headers=AUTHORIZED, timeout=60)


def submit(http: httpx2.Client, number: int) -> str:
    """The id of a new job."""
    spec = SPEC | {"labels": {"number": str(number)}}
    answer = http.post("/v1/jobs", json=spec, timeout=_CHECKED)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def new_key(http: httpx2.Client) -> str:
    answer = http.post("/v1/keys", json={"name": "load", "scope": "submit"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key"])


def submissions(urls: Sequence[str], key: str, clients: int, seconds: float) -> list[Span]:
    """All that were made. The clients are as plain as can be, because they share the server's cores."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    made: list[list[Span]] = [[] for _ in range(clients)]
    began = time.monotonic()

    def go(place: int) -> None:
        connection = HTTPConnection(urlsplit(urls[place % len(urls)]).netloc)
        body = json.dumps(SPEC | {"labels": {"number": str(place)}})
        while time.monotonic() - began < seconds:
            since = time.monotonic()
            connection.request("POST", "/v1/jobs", body, headers)
            with connection.getresponse() as answer:
                told = answer.read()
                assert answer.status == 201, told
            made[place].append((since, time.monotonic()))
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(go, range(clients)))
    return [span for each in made for span in each]


def _train(_: int) -> None:
    """What a worker of a search does, as far as the cores are concerned; Ray starts its workers as nice as this."""
    import torch
    from torch import nn

    os.nice(15)
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
    images = torch.randn(32, 3, 32, 32)
    while True:
        network(images).square().mean().backward()


@contextmanager
def training() -> Iterator[None]:
    worker = multiprocessing.get_context("spawn").Process(target=_train, args=(0,), daemon=True)
    worker.start()
    try:
        yield
    finally:
        worker.kill()
        worker.join()


def _watch(folder: str, over: Event, told: Connection) -> None:
    """Sends the spans in which the disk stalled, once it is over."""
    stalls: list[Span] = []
    for began, ended in writes(folder):
        if ended - began > _STALL:
            stalls.append((began, ended))
        if over.wait(0.01):
            break
    told.send(stalls)


@contextmanager
def watching_the_disk(folder: Path) -> Iterator[Callable[[], list[Span]]]:
    """What is given ends the watch and says when the disk stalled."""
    context = multiprocessing.get_context("spawn")
    over, (here, there) = context.Event(), context.Pipe(duplex=False)
    watcher = context.Process(target=_watch, args=(str(folder), over, there), daemon=True)
    watcher.start()

    def stalls() -> list[Span]:
        over.set()
        found: list[Span] = here.recv()
        return found

    try:
        yield stalls
    finally:
        over.set()
        watcher.join()


def rates(name: str, home: Path, servers: Sequence[Served], clients: int, seconds: float, *, beside: bool) -> None:
    urls = [server.url for server in servers]
    for url in urls:
        with client(url) as http:
            submit(http, -1)
            key = new_key(http)
    submissions(urls, key, clients, 3.0)
    with training() if beside else nullcontext(), watching_the_disk(home) as stalls:
        time.sleep(8.0 if beside else 2.0)  # they load torch, or what this program needs
        spent = sum(server.seconds for server in servers)
        made = submissions(urls, key, clients, seconds)
        spent = 1000 * (sum(server.seconds for server in servers) - spent) / len(made)
        stalled = stalls()
    took = [1000 * (end - start) for start, end in made]
    free = [1000 * (end - start) for start, end in made if not any(a < end and start < b for a, b in stalled)]
    cuts = quantiles(took, n=100)
    what = "a training" if beside else "nothing"
    cells = (
        name,
        len(servers),
        what,
        clients,
        f"{len(made) / (max(end for _, end in made) - min(start for start, _ in made)):.0f}",
        f"{spent:.1f}",
        f"{cuts[49]:.0f}",
        f"{cuts[98]:.0f}",
        f"{max(took):.0f}",
        f"{len(stalled)}, {1000 * max((end - start for start, end in stalled), default=0):.0f}",
        f"{quantiles(free, n=100)[98]:.0f} ({len(made) - len(free)} left out)",
    )
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def writes(folder: str) -> Iterator[Span]:
    """Of 8 KiB each, on disk when they end, as long as anybody asks."""
    block = os.urandom(8192)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        while True:
            began = time.monotonic()
            os.pwrite(file.fileno(), block, 0)
            os.fdatasync(file.fileno())
            yield began, time.monotonic()


def disk(seconds: float) -> None:
    took: list[float] = []
    until = time.monotonic() + seconds
    for began, ended in writes(tempfile.gettempdir()):
        took.append(1000 * (ended - began))
        if ended > until:
            break
        time.sleep(0.003)  # some three hundred a second, as many as are submitted
    cuts = quantiles(took, n=1000)
    print("| written | p50, ms | p99, ms | p99.9, ms | worst, ms |")
    print("|---:|---:|---:|---:|---:|")
    print(f"| {len(took):,} | {cuts[499]:.1f} | {cuts[989]:.1f} | {cuts[998]:.0f} | {max(took):.0f} |")


def soak(name: str, server: Served, minutes: float, streams: int, rate: float) -> None:
    over = threading.Event()
    told = [0] * streams

    def watch(place: int, job: str) -> None:
        while not over.is_set():
            with client(server.url) as http, http.stream("GET", f"/v1/jobs/{job}/events", headers=_LIVE) as answer:
                assert answer.status_code == 200, answer.status_code
                for line in answer.iter_lines():
                    told[place] += line.startswith("id:")
                    if over.is_set():
                        return

    with client(server.url) as http:
        jobs = [submit(http, number) for number in range(streams)]
    threads = [threading.Thread(target=watch, args=found, daemon=True) for found in enumerate(jobs)]
    for thread in threads:
        thread.start()
    submitted, failed, began = 0, 0, time.monotonic()
    first: tuple[float, int] | None = None
    print("minute  submitted  failed  streams that were told  MB  open files  CPU s", flush=True)
    with client(server.url) as http:
        while (now := time.monotonic() - began) < 60 * minutes:
            if submitted < rate * now:
                try:
                    submit(http, submitted)
                except (AssertionError, httpx2.TransportError):
                    failed += 1
                submitted += 1
                if submitted % round(60 * rate) == 0:
                    first = first or (server.megabytes, server.descriptors)
                    _report(now / 60, submitted, failed, told, server)
            else:
                time.sleep(0.005)
    over.set()
    assert first is not None
    grown = server.megabytes / first[0] - 1
    print(f"{name}: memory {grown:+.1%} and open files {server.descriptors - first[1]:+d} since the first minute")


_LIVE = {"Accept": "text/event-stream"}


def _report(minute: float, submitted: int, failed: int, told: Sequence[int], server: Served) -> None:
    hearing = sum(count > 0 for count in told)
    print(
        f"{minute:6.1f}  {submitted:9,}  {failed:6}  {hearing:22}  {server.megabytes:.1f}  {server.descriptors:10}  "
        f"{server.seconds:5.0f}",
        flush=True,
    )


@contextmanager
def database(name: str, home: Path) -> Iterator[str]:
    if name == "sqlite":
        yield f"sqlite:///{home / 'stillhouse.db'}"
        return
    postgres = new_postgres(durable=True)
    try:
        postgres.start()
        yield postgres.url
    finally:
        postgres.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("databases", nargs="*", default=["sqlite", "postgres"])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--servers", type=int, default=1, help="processes that share Postgres")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--beside", action="store_true", help="a process that trains has the same cores")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--rate", type=float, default=20.0, help="submissions a second while soaking")
    parser.add_argument("--disk", action="store_true", help="only time the disk")
    given = parser.parse_args()
    if given.disk:
        disk(given.seconds)
        return
    unhindered = {
        "KEY_RATE": 100_000,
        "KEY_BURST": 100_000,
        "KEY_STREAMS": given.streams,
        "EVENT_STREAMS": given.streams,
    }
    if given.soak is None:
        print(
            "| database | servers | beside it | clients | submits/s | CPU each, ms | p50, ms | p99, ms | worst, ms "
            "| stalls, longest, ms | p99 but for them, ms |"
        )
        print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in given.databases:
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            with database(name, home) as url, ExitStack() as stack:
                count = given.servers if name == "postgres" else 1
                servers = [stack.enter_context(serving(url, home, **unhindered)) for _ in range(count)]
                if given.soak is None:
                    rates(name, home, servers, given.clients, given.seconds, beside=given.beside)
                else:
                    soak(name, servers[0], given.soak, given.streams, given.rate)


if __name__ == "__main__":
    main()
