"""
Stillhouse from Python:

    client = Client()                # STILLHOUSE_URL, STILLHOUSE_API_KEY; on the server's machine it finds its key
    job = client.jobs.create({"teacher": {"name": "small_resnet"}, "dataset": {"name": "digits"},
                              "budget": {"macs": "25%"}})
    job = client.jobs.wait(job.id)
    client.jobs.pull(job.id, "student")

    upload = client.uploads.send("teacher.safetensors")
    teacher = client.teachers.create("pets", {"name": "small_resnet", "weights": upload.weights}, dataset)
    client.jobs.create({"teacher": teacher.spec, "dataset": dataset, "budget": {"macs": "25%"}})

Answers are the documents of `service.documents` and `service.holdings`; fields that a newer server adds are passed
over. Errors are those of `service.wire`.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from search.spec import JobSpec
from service.documents import ArtifactDocument, EventDocument, JobDocument, LogLine, TrialDocument
from service.pictures import CurveDocument, ParetoDocument, SensitivityDocument
from service.registers import CHECKING, Datasets, Teachers, Uploads
from service.schemas import CatalogEntry, DeliveryDocument, NewWebhook, Plan, Server, Usage, WebhookDocument
from service.store.values import DeliveryState
from service.takehome import placing, safe_name, student_file
from service.timeline import TimelineDocument
from service.wire import (
    ApiError,
    Backoff,
    Damaged,
    JobFailed,
    ServerUnavailable,
    TimedOut,
    Unreachable,
    Wire,
    document,
    parsed,
)
from workers.ports import JobState

Spec = JobSpec | Mapping[str, Any]

LONG_POLL = 20.0
"""Seconds that one request waits for a job to end."""
SILENCE = 45.0
"""Seconds without a byte after which a stream counts as broken; the server sends a ping every 15."""


class Client:
    """One Stillhouse server. May be used as a context manager; threads may share it."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._wire = Wire(url, api_key, timeout=timeout, backoff=backoff)
        self.jobs, self.webhooks = Jobs(self._wire), Webhooks(self._wire)
        self.uploads, self.teachers, self.datasets = Uploads(self._wire), Teachers(self._wire), Datasets(self._wire)

    @property
    def url(self) -> str:
        return self._wire.url

    def plan(self, spec: Spec) -> Plan:
        """
        What the job would be, worked out without training anything.

        Raises:
            Invalid: the spec has mistakes, or its budget cannot be reached.
        """
        answer = self._wire.post("/v1/jobs", _body(spec), params={"validate_only": "true"}, timeout=CHECKING)
        return document(Plan, answer)

    def catalog(self, kind: str) -> Sequence[CatalogEntry]:
        """Plugins of a kind: `teachers`, `datasets`, `distillers`, `strategies` or `costs`."""
        page = self._wire.get(f"/v1/catalog/{quote(kind, safe='')}", timeout=CHECKING)
        return [document(CatalogEntry, entry) for entry in page["entries"]]

    def server(self) -> Server:
        """Version and limits of the server."""
        return document(Server, self._wire.get("/v1/server"))

    def usage(self) -> Usage:
        """What the key's tenant uses, and what it may."""
        return document(Usage, self._wire.get("/v1/usage"))

    def ready(self) -> bool:
        """Whether the server is there and takes jobs; asks once."""
        return self._wire.alive("/readyz")

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Jobs:
    """The jobs of a server. Every method raises `NotFound` for an id that nobody has."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, spec: Spec, idempotency_key: str | None = None) -> JobDocument:
        """
        Submits a job. The same `idempotency_key` with the same spec gives the same job; without one a fresh key is
        made, so that a request which had to be sent twice still makes one job.

        Raises:
            Invalid: one entry in `errors` for every mistake.
            KeyReused: the key came before with another spec.
        """
        key = idempotency_key or str(uuid.uuid4())
        return document(JobDocument, self._wire.post("/v1/jobs", _body(spec), key=key, timeout=CHECKING))

    def get(self, job_id: str) -> JobDocument:
        return document(JobDocument, self._wire.get(_path(job_id)))

    def list(
        self,
        *,
        state: JobState | str | None = None,
        filter: str = "",  # noqa: A002 - the API's own name for it
        order_by: str = "",
        page_size: int = 50,
    ) -> Iterator[JobDocument]:
        """
        All jobs, newest first, the next page asked for when it is needed; or those that `filter` means, in the order of
        `order_by`, both as docs/guide/filters.md has them.

        Raises:
            Invalid: filter or order cannot be read; says where and why.
        """
        params = _given(state=state, filter=filter, order_by=order_by) | {"page_size": page_size}
        return (document(JobDocument, job) for job in self._wire.paged("/v1/jobs", "jobs", params))

    def wait(self, job_id: str, timeout: float | None = None) -> JobDocument:
        """
        The job when it has succeeded. `timeout` is in seconds; None waits as long as it takes.

        Raises:
            JobFailed: it ended otherwise; `reason` is in the message, the document in `job`.
            TimedOut: it has not ended in time. It goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LONG_POLL if deadline is None else min(LONG_POLL, max(0.0, deadline - time.monotonic()))
            answer = self._wire.get(_path(job_id), params={"wait": f"{left:.3f}"}, timeout=left + 30)
            job = document(JobDocument, answer)
            if job.state is JobState.SUCCEEDED:
                return job
            if job.state.terminal:
                raise JobFailed(f"job {job.id} ended as {job.state}: {job.reason}", job)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimedOut(f"job {job.id} is still {job.state} after {timeout:g} s; it goes on")

    def stream(self, job_id: str, after: int = 0, *, patience: float = 60.0) -> Iterator[EventDocument]:
        """
        The job's events after number `after`, as they happen, until the job's last.

        A broken connection is taken up again where it broke; no event comes twice and none is left out.

        Raises:
            Unreachable, ServerUnavailable: the server stayed away for longer than `patience` seconds.
        """
        away_since: float | None = None
        attempt = 0
        while True:
            try:
                with self._wire.events(_path(job_id, "events"), after=after, silence=SILENCE) as arriving:
                    if arriving is None:
                        return
                    for found in arriving:
                        if not found.data:
                            continue
                        event = document(EventDocument, parsed(found.data))
                        if event.seq <= after:
                            continue
                        yield event
                        after, away_since, attempt = event.seq, None, 0
                        if event.kind in LAST:
                            return
            except (Unreachable, TimedOut, ServerUnavailable):
                now = time.monotonic()
                away_since = away_since or now
                if now - away_since > patience:
                    raise
            time.sleep(self._wire.backoff.pause(attempt))
            attempt += 1

    def events(self, job_id: str, after: int = 0, limit: int = 500) -> Sequence[EventDocument]:
        """Events on record after number `after`, at most `limit` (and never more than 500)."""
        page = self._wire.get(_path(job_id, "events"), params={"after": after, "limit": limit})
        return [document(EventDocument, event) for event in page["events"]]

    def cancel(self, job_id: str) -> JobDocument:
        """Asks for the job's end; a job that has ended stays as it is."""
        return document(JobDocument, self._wire.post(f"{_path(job_id)}:cancel"))

    def pause(self, job_id: str) -> JobDocument:
        """Asks that nothing be done for the job until it is resumed. Raises `Conflict` when it has ended."""
        return document(JobDocument, self._wire.post(f"{_path(job_id)}:pause"))

    def resume(self, job_id: str) -> JobDocument:
        """Lets a paused job go on where it was. Raises `Conflict` when it has ended."""
        return document(JobDocument, self._wire.post(f"{_path(job_id)}:resume"))

    def update(
        self,
        job_id: str,
        *,
        labels: Mapping[str, str | None] | None = None,
        priority: int | None = None,
        trials: int | None = None,
        budget: Mapping[str, Any] | None = None,
        revision: int | None = None,
    ) -> JobDocument:
        """
        Changes a job. Of `labels` and `budget` what is named is set, or taken off with None, and the rest stays. With
        `revision`, that of the document on which you decided, a job that has been changed since is left as it is.

        Raises:
            Invalid: there is a mistake in what is wanted.
            Conflict: the job has come too far for that.
            StatusError: of status 412, it is at another revision.
        """
        spec: dict[str, Any] = {"search": {"trials": trials}} if trials is not None else {}
        spec |= {"budget": dict(budget)} if budget is not None else {}
        patch: dict[str, Any] = {"spec": spec} if spec else {}
        patch |= {"labels": dict(labels)} if labels is not None else {}
        patch |= {"priority": priority} if priority is not None else {}
        headers = {"If-Match": f'"{revision}"'} if revision is not None else {}
        answer = self._wire.send("PATCH", _path(job_id), body=patch, headers=headers, timeout=CHECKING)
        return document(JobDocument, answer)

    def retry(self, job_id: str, idempotency_key: str | None = None) -> JobDocument:
        """Submits a job that failed or was cancelled once more; the new one. Raises `Conflict` for any other job."""
        key = idempotency_key or str(uuid.uuid4())
        return document(JobDocument, self._wire.post(f"{_path(job_id)}:retry", key=key, timeout=CHECKING))

    def clone(
        self, job_id: str, changes: Mapping[str, Any] | None = None, idempotency_key: str | None = None
    ) -> JobDocument:
        """
        Submits a job like this one; the new one. `changes` is a merge patch of its spec: None takes a field off.

        Raises:
            Invalid: with those changes it is no job.
        """
        body, key = {"spec": dict(changes or {})}, idempotency_key or str(uuid.uuid4())
        return document(JobDocument, self._wire.post(f"{_path(job_id)}:clone", body, key=key, timeout=CHECKING))

    def delete(self, job_id: str) -> None:
        """Takes out a job that has ended, with its files. Raises `Conflict` while it goes on."""
        self._wire.send("DELETE", _path(job_id))

    def trials(self, job_id: str, *, filter: str = "", order_by: str = "") -> Sequence[TrialDocument]:  # noqa: A002
        """All trials by number, or those that `filter` means in the order of `order_by`. Raises as `list` does."""
        params = _given(filter=filter, order_by=order_by) | {"page_size": 500}
        trials = self._wire.paged(_path(job_id, "trials"), "trials", params)
        return [document(TrialDocument, trial) for trial in trials]

    def trial(self, job_id: str, trial_id: str) -> TrialDocument:
        return document(TrialDocument, self._wire.get(_path(job_id, "trials", trial_id)))

    def curve(self, job_id: str, trial_id: str) -> CurveDocument:
        """The learning curve of a trial."""
        return document(CurveDocument, self._wire.get(_path(job_id, "trials", trial_id, "curve")))

    def pareto(self, job_id: str, x: str = "macs", y: str = "accuracy", *, rung: int | None = None) -> ParetoDocument:
        """Two numbers of every scored trial against each other; the front is whole, of the others there is a sample."""
        params = {"x": x, "y": y} | _given(rung=rung)
        return document(ParetoDocument, self._wire.get(_path(job_id, "pareto"), params=params))

    def sensitivity(self, job_id: str, *, rung: int = 0) -> SensitivityDocument:
        """What each choice at each site goes with."""
        found = self._wire.get(_path(job_id, "sensitivity"), params={"rung": rung})
        return document(SensitivityDocument, found)

    def timeline(self, job_id: str, after: int = 0) -> TimelineDocument:
        """Phases, and when and where trials were worked on: those that began after event number `after`, up to 2000."""
        return document(TimelineDocument, self._wire.get(_path(job_id, "timeline"), params={"after": after}))

    def logs(
        self, job_id: str, after: int = 0, *, trial: str | None = None, level: str = "DEBUG", limit: int = 500
    ) -> Sequence[LogLine]:
        """Lines of the job's log after number `after`, at most `limit`, of this level and above."""
        params = {"after": after, "level": level, "limit": limit} | _given(trial=trial)
        page = self._wire.get(_path(job_id, "logs"), params=params)
        return [document(LogLine, line) for line in page["lines"]]

    def artifacts(self, job_id: str) -> Sequence[ArtifactDocument]:
        page = self._wire.get(_path(job_id, "artifacts"))
        return [document(ArtifactDocument, artifact) for artifact in page["artifacts"]]

    def pull(
        self, job_id: str, out: str | Path, *, on_bytes: Callable[[int, int], None] | None = None
    ) -> Sequence[Path]:
        """
        Writes the student to the folder `out`, whole or not at all, and returns its files; those of a ladder go to
        `out/student-1`, `out/student-2`, ... Earlier students that lie there are replaced. `on_bytes` is told the bytes
        written so far and in all.

        Raises:
            Damaged: a file has another SHA-256 than the server recorded, or a name that is not safe to write.
            ApiError: the job has no student.
            UserError: `out` holds something other than students.
        """
        found = [(file, place) for file in self.artifacts(job_id) if (place := student_file(file.name)) is not None]
        if not found:
            job = self.get(job_id)
            raise ApiError(f"job {job.id} has no student to pull: it is {job.state}")
        for file, (_, name) in found:
            if not safe_name(name):
                raise Damaged(f"the server lists a file called {file.name!r}; such a name is not written to disk")
        total, before = sum(file.bytes for file, _ in found), 0
        with placing(Path(out)) as folder:
            for file, (level, name) in found:
                (folder / level).mkdir(exist_ok=True)
                written = before
                for written in self._fetch(job_id, file, folder / level / name, before):
                    if on_bytes is not None:
                        on_bytes(written, total)
                before = written
        return [Path(out) / level / name for _, (level, name) in found]

    def _fetch(self, job_id: str, file: ArtifactDocument, path: Path, before: int) -> Iterator[int]:
        """Bytes written so far, after each piece. Begins anew when the connection breaks."""
        attempt = 0
        while True:
            digest, written = hashlib.sha256(), 0
            try:
                with (
                    self._wire.download(_path(job_id, "artifacts", file.name, "content")) as pieces,
                    path.open("wb") as target,
                ):
                    for piece in pieces:
                        written += len(piece)
                        if written > file.bytes:
                            break
                        digest.update(piece)
                        target.write(piece)
                        yield before + written
            except (Unreachable, TimedOut, ServerUnavailable):
                if attempt >= self._wire.backoff.retries:
                    raise
                time.sleep(self._wire.backoff.pause(attempt))
                attempt += 1
                continue
            if written != file.bytes or digest.hexdigest() != file.sha256:
                raise Damaged(f"{file.name} did not arrive as the server recorded it (SHA-256 or length differs)")
            return


class Webhooks:
    """
    Where the key's tenant is told of its jobs; for keys of scope `admin`. Every method that takes an id raises
    `NotFound` for one that nobody has. What a receiver does with what it is sent is `service.signing.verify`.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, url: str, kinds: Sequence[str] | None = None, idempotency_key: str | None = None) -> NewWebhook:
        """
        Has the ends of jobs, or events of those `kinds`, told to `url`. The `secret` of the answer is shown this once.

        Raises:
            PermissionDenied: the server sends nothing to webhooks.
            Invalid: nothing may be sent there.
        """
        body = {"url": url} | ({"kinds": list(kinds)} if kinds else {})
        return document(NewWebhook, self._wire.post("/v1/webhooks", body, key=idempotency_key or str(uuid.uuid4())))

    def get(self, webhook_id: str) -> WebhookDocument:
        return document(WebhookDocument, self._wire.get(_hook(webhook_id)))

    def list(self) -> Iterator[WebhookDocument]:
        """All of them, newest first."""
        return (document(WebhookDocument, each) for each in self._wire.paged("/v1/webhooks", "webhooks", {}))

    def delete(self, webhook_id: str) -> None:
        """Nothing more is sent to it."""
        self._wire.send("DELETE", _hook(webhook_id))

    def test(self, webhook_id: str) -> DeliveryDocument:
        """Sends a letter of kind `WEBHOOK_TEST`; `deliveries` says what became of it."""
        return document(DeliveryDocument, self._wire.post(f"{_hook(webhook_id)}:test"))

    def deliveries(
        self, webhook_id: str, *, state: DeliveryState | str | None = None, page_size: int = 50
    ) -> Iterator[DeliveryDocument]:
        """What was to be sent, newest first; the next page is asked for when it is needed."""
        params = {"page_size": page_size} | ({"state": str(state)} if state else {})
        found = self._wire.paged(_hook(webhook_id, "deliveries"), "deliveries", params)
        return (document(DeliveryDocument, each) for each in found)

    def replay(self, webhook_id: str, delivery_id: str) -> DeliveryDocument:
        """Has a letter that was delivered or given up sent again."""
        return document(DeliveryDocument, self._wire.post(f"{_hook(webhook_id, 'deliveries', delivery_id)}:replay"))


LAST = frozenset(f"JOB_{state}" for state in JobState if state.terminal)
"""Kinds of event after which a job has no more."""


def _hook(webhook_id: str, *parts: str) -> str:
    return "/v1/webhooks/" + "/".join(quote(part, safe="") for part in (webhook_id, *parts))


def _path(job_id: str, *parts: str) -> str:
    return "/v1/jobs/" + "/".join(quote(part, safe="/" if index else "") for index, part in enumerate((job_id, *parts)))


def _given(**params: object) -> dict[str, Any]:
    """Without those that say nothing."""
    return {name: str(value) for name, value in params.items() if value not in (None, "")}


def _body(spec: Spec) -> Any:
    return spec.model_dump(mode="json") if isinstance(spec, JobSpec) else dict(spec)
