"""Jobs over HTTP, as those who submit them see them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from search.spec import JobSpec
from service.asking import CHECKS_AT_ONCE, CHECKS_WAITING
from tests.service.served import (
    HERE,
    SPEC,
    WEIGHTS,
    claimed,
    client_of,
    digest,
    in_threads,
    listening,
    make_app,
    searched,
    submitted,
    succeeded,
    taught,
)
from workers.memory import MemoryArtifacts, MemoryLedger
from workers.ports import JobState

NO_LIMITS = httpx2.Limits(max_connections=None)


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def artifacts() -> MemoryArtifacts:
    return MemoryArtifacts()


@pytest.fixture
def app(tmp_path: Path, ledger: MemoryLedger, artifacts: MemoryArtifacts) -> FastAPI:
    return make_app(tmp_path, ledger, artifacts)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with client_of(app) as client:
        yield client


@pytest.mark.timeout(60)
def test_a_submitted_job_is_on_record_when_its_address_comes_back(client: TestClient, ledger: MemoryLedger) -> None:
    answer = client.post("/v1/jobs", json=SPEC)
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert ledger.job(job["id"]).state is JobState.QUEUED
    assert client.get(answer.headers["location"]).json()["id"] == job["id"]
    assert job["spec"]["budget"] == SPEC["budget"]


@pytest.mark.timeout(60)
def test_validate_only_gives_the_plan_and_submits_nothing(client: TestClient, ledger: MemoryLedger) -> None:
    answer = client.post("/v1/jobs?validate_only=true", json=SPEC)
    assert answer.status_code == 200
    plan = answer.json()
    assert plan["limits"] == {"macs": plan["teacher"]["cost"]["macs"] // 2}
    assert plan["smallest"]["macs"] <= plan["limits"]["macs"]
    assert plan["dataset"] | {"images": None} == {"name": "digits", "classes": 10, "shape": [3, 16, 16], "images": None}
    assert sum(plan["dataset"]["images"].values()) == 1797
    [level] = plan["levels"]
    assert level["witness"]["cost"]["macs"] <= level["limits"]["macs"]
    phases = ["teacher", "survey", "library", "search", "finalists"]
    assert [phase["phase"] for phase in plan["estimate"]["phases"]] == phases
    assert ledger.jobs(limit=10) == []


def test_a_misspelt_parameter_does_not_submit_a_job(client: TestClient, ledger: MemoryLedger) -> None:
    answer = client.post("/v1/jobs?valdate_only=true", json=SPEC)
    assert answer.status_code == 422
    found = answer.json()["errors"][0]
    assert (found["location"], found["pointer"], found["code"]) == ("query", "/valdate_only", "UNKNOWN_PARAMETER")
    assert 'did you mean "validate_only"?' in found["message"]
    assert ledger.jobs(limit=10) == []


@pytest.mark.timeout(60)
def test_the_same_key_and_body_give_the_same_job(client: TestClient, ledger: MemoryLedger) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/jobs", json=SPEC, headers=headers)
    again = client.post("/v1/jobs", json={"version": 1, **SPEC}, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    other = client.post("/v1/jobs", json=SPEC | {"priority": 1}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert len(ledger.jobs(limit=10)) == 1


@pytest.mark.timeout(60)
def test_fifty_equal_submissions_at_once_make_one_job(app: FastAPI, ledger: MemoryLedger) -> None:
    with listening(app) as url, httpx2.Client(base_url=url, timeout=25, limits=NO_LIMITS) as http:

        def submit(_: int) -> tuple[int, str, bool]:
            answer = http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"})
            return answer.status_code, answer.json()["id"], "idempotency-replayed" in answer.headers

        answers = in_threads(50, submit)
    assert {status for status, _, _ in answers} == {201}
    assert len({job_id for _, job_id, _ in answers}) == 1
    assert sum(replayed for _, _, replayed in answers) == 49
    assert len(ledger.jobs(limit=10)) == 1


@pytest.mark.parametrize("key", ["", "x" * 129, "two words", "é".encode()])
def test_a_key_that_cannot_be_kept_is_refused(client: TestClient, key: Any) -> None:
    answer = client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["location"] == "header"


def test_two_keys_are_refused(client: TestClient) -> None:
    answer = client.post("/v1/jobs", json=SPEC, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED_REQUEST")


def test_pages_of_jobs_hold_each_job_once_although_jobs_arrive(client: TestClient, ledger: MemoryLedger) -> None:
    made = [submitted(ledger) for _ in range(7)]
    seen: list[str] = []
    token = ""
    while True:
        page = client.get("/v1/jobs", params={"page_size": 3} | ({"page_token": token} if token else {})).json()
        seen += [job["id"] for job in page["jobs"]]
        submitted(ledger)
        token = page["next_page_token"]
        if not token:
            break
    assert seen == made[::-1]


def test_the_last_page_may_be_exactly_full(client: TestClient, ledger: MemoryLedger) -> None:
    for _ in range(2):
        submitted(ledger)
    page = client.get("/v1/jobs?page_size=2").json()
    assert (len(page["jobs"]), page["next_page_token"]) == (2, "")


def test_jobs_by_state(client: TestClient, ledger: MemoryLedger) -> None:
    under_way, *_ = [submitted(ledger) for _ in range(3)]
    claimed(ledger)
    assert [job["id"] for job in client.get("/v1/jobs?state=PREPARING").json()["jobs"]] == [under_way]
    token = client.get("/v1/jobs?state=QUEUED&page_size=1").json()["next_page_token"]
    answer = client.get(f"/v1/jobs?state=PREPARING&page_token={token}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/page_token")


@pytest.mark.parametrize("token", ["x", "####", "W10", "bnVsbA", "WzEsMiwzXQ", "A" * 513, "é", "W251bGwsMSwxXQ"])
def test_a_forged_page_token_is_refused(client: TestClient, token: str) -> None:
    answer = client.get("/v1/jobs", params={"page_token": token})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/page_token")


def test_cancelling_is_idempotent_and_leaves_an_end_as_it_is(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger)
    for _ in range(2):
        answer = client.post(f"/v1/jobs/{job_id}:cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "CANCELLED")
    submitted(ledger)
    claim = claimed(ledger)
    found = client.post(f"/v1/jobs/{claim.job_id}:cancel").json()
    assert (found["state"], found["cancel_requested"]) == ("PREPARING", True)
    ledger.close(claim, JobState.SUCCEEDED)
    assert client.post(f"/v1/jobs/{claim.job_id}:cancel").json()["state"] == "SUCCEEDED"


def test_trials_are_paged_by_number_and_found_by_id(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger)
    ids = searched(ledger, claimed(ledger))
    first = client.get(f"/v1/jobs/{job_id}/trials?page_size=1").json()
    second = client.get(f"/v1/jobs/{job_id}/trials?page_size=1&page_token={first['next_page_token']}").json()
    assert [trial["id"] for page in (first, second) for trial in page["trials"]] == ids
    assert second["next_page_token"] == ""
    completed = client.get(f"/v1/jobs/{job_id}/trials?state=COMPLETED").json()["trials"]
    assert [trial["id"] for trial in completed] == ids[1:]
    assert client.get(f"/v1/jobs/{job_id}/trials/{ids[0]}").json()["scores"][0]["accuracy"] == 0.5
    assert client.get(f"/v1/jobs/{job_id}/trials/trial_nope").status_code == 404
    assert client.get(f"/v1/jobs/{job_id}/trials?page_token=-1").status_code == 422


@pytest.mark.timeout(20)
def test_waiting_ends_with_the_job_or_with_the_time(app: FastAPI, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger)
    with listening(app) as url, httpx2.Client(base_url=url, timeout=15, limits=NO_LIMITS) as http:
        began = time.monotonic()
        assert http.get(f"/v1/jobs/{job_id}?wait=0.5").json()["state"] == "QUEUED"
        assert time.monotonic() - began >= 0.5

        def wait_or_cancel(number: int) -> Any:
            if number:
                time.sleep(0.3)
                return http.post(f"/v1/jobs/{job_id}:cancel").json()["state"]
            return http.get(f"/v1/jobs/{job_id}?wait=10").json()["state"]

        began = time.monotonic()
        assert in_threads(2, wait_or_cancel) == ["CANCELLED", "CANCELLED"]
        assert time.monotonic() - began < 5
        assert http.get(f"/v1/jobs/{job_id}?wait=31").status_code == 422


@pytest.mark.timeout(20)
def test_those_who_wait_do_not_keep_others_waiting(app: FastAPI, ledger: MemoryLedger) -> None:
    """More of them than there are threads."""
    job_id = submitted(ledger)
    with listening(app) as url, httpx2.Client(base_url=url, timeout=15, limits=NO_LIMITS) as http:

        def wait_or_look(number: int) -> float:
            """When the answer came."""
            if number == 0:
                time.sleep(0.5)
            answer = http.get(f"/v1/jobs/{job_id}", params={"wait": 4} if number else {})
            assert answer.status_code == 200
            return time.monotonic()

        looked, *waited = in_threads(61, wait_or_look)
    assert looked < min(waited)


class Slow:
    """A checker that thinks until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def known(self, spec: JobSpec) -> None:
        """Nothing."""

    def check(self, spec: JobSpec) -> dict[str, Any]:
        self.let_go.wait(25)
        return {}

    def catalog(self, kind: str) -> list[dict[str, Any]]:
        return []

    def close(self) -> None:
        self.let_go.set()


@pytest.mark.timeout(30)
def test_slow_checks_keep_only_those_waiting_who_asked_for_them(tmp_path: Path, ledger: MemoryLedger) -> None:
    checker, refused = Slow(), 8
    count = CHECKS_AT_ONCE + CHECKS_WAITING + refused
    app = make_app(tmp_path, ledger, checker=checker)
    with listening(app) as url, httpx2.Client(base_url=url, timeout=20, limits=NO_LIMITS) as http:
        turned_away = threading.Semaphore(0)

        def submit_or_look(number: int) -> int:
            if number:
                status = http.post("/v1/jobs", json=SPEC).status_code
                if status == 503:
                    turned_away.release()
                return status
            assert all(turned_away.acquire(timeout=15) for _ in range(refused)), "all others are inside by now"
            assert not checker.let_go.is_set()
            statuses = {http.get(path).status_code for path in ("/healthz", "/readyz", "/v1/jobs", "/metrics")}
            assert statuses == {200}
            checker.let_go.set()
            return 200

        looked, *submitted = in_threads(count + 1, submit_or_look)
    assert looked == 200
    assert (submitted.count(201), submitted.count(503)) == (count - refused, refused)


def test_a_downloaded_artifact_is_what_was_put_there(
    client: TestClient, ledger: MemoryLedger, artifacts: MemoryArtifacts
) -> None:
    job_id = succeeded(ledger, artifacts)
    listed = client.get(f"/v1/jobs/{job_id}/artifacts").json()["artifacts"]
    assert [(found["name"], found["bytes"], found["sha256"]) for found in listed] == [
        ("student/weights.safetensors", len(WEIGHTS), digest(WEIGHTS))
    ]
    answer = client.get(listed[0]["href"])
    assert answer.content == WEIGHTS
    assert answer.headers["etag"] == f'"{digest(WEIGHTS)}"'
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''weights.safetensors"
    assert answer.headers["repr-digest"].startswith("sha-256=:")
    again = client.get(listed[0]["href"], headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    part = client.get(listed[0]["href"], headers={"Range": "bytes=0-1,2-3"})
    assert (part.status_code, part.content) == (200, WEIGHTS), "no ranges, so none that cost"


def test_an_artifact_that_has_rotted_is_not_served(
    client: TestClient, ledger: MemoryLedger, artifacts: MemoryArtifacts
) -> None:
    job_id = succeeded(ledger, artifacts)
    artifacts.put(f"jobs/{job_id}/student/weights.safetensors", WEIGHTS[::-1])
    answer = client.get(f"/v1/jobs/{job_id}/artifacts/student/weights.safetensors/content")
    assert (answer.status_code, answer.json()["code"]) == (500, "VERIFICATION_FAILED")


TRAVERSALS = [
    "../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%252e%252e%252fetc%252fpasswd",
    "..%5c..%5cetc%5cpasswd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "student/../../../settings",
    "student//weights.safetensors",
    "student/weights.safetensors%00.txt",
    "student/weights.safetensors%23",
    "student/weights.safetensors%3fx",
    "student/weights.safetensors/",
    "STUDENT/WEIGHTS.SAFETENSORS",
    "%ef%bc%8e%ef%bc%8e/passwd",
    "student",
    "%",
    "jobs/x/student/weights.safetensors",
    "a" * 5000,
]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_name_leads_to_another_file(
    client: TestClient, ledger: MemoryLedger, artifacts: MemoryArtifacts, name: str
) -> None:
    job_id = succeeded(ledger, artifacts)
    for path in (f"/v1/jobs/{job_id}/artifacts/{name}/content", f"/v1/jobs/{name}", f"/v1/jobs/{name}/events"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert WEIGHTS not in answer.content


@pytest.mark.timeout(60)
def test_the_catalog_says_what_a_job_may_name(client: TestClient) -> None:
    kinds = client.get("/v1/catalog").json()["kinds"]
    assert set(kinds) == {"teachers", "datasets", "distillers", "strategies", "costs"}
    for href in kinds.values():
        entries = client.get(href).json()["entries"]
        assert entries, href
        assert all(entry["summary"] and entry["options"]["type"] == "object" for entry in entries), href
    teachers = {entry["name"]: entry for entry in client.get(kinds["teachers"]).json()["entries"]}
    assert "width" in teachers["small_resnet"]["options"]["properties"]
    assert client.get("/v1/catalog/teacher").json()["detail"].count('did you mean "teachers"?') == 1


def test_probes(client: TestClient, app: FastAPI, ledger: MemoryLedger) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "schema_version": "memory"}
    submitted(ledger)
    metrics = client.get("/metrics").text
    assert 'stillhouse_jobs{state="QUEUED"} 1.0' in metrics
    assert 'stillhouse_http_seconds_count{method="GET",route="/healthz",status="2xx"} 1.0' in metrics
    assert client.get("/v1/server").json()["limits"]["body_bytes"] == 262144
    app.state.draining.set()
    assert (client.get("/readyz").status_code, client.get("/healthz").status_code) == (503, 200)


@pytest.mark.parametrize("found", [None, "0001"])
def test_tables_of_an_earlier_version_are_not_ready(
    client: TestClient, app: FastAPI, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    app.state.schema_version = "0002"
    monkeypatch.setattr(ledger, "schema_version", lambda: found)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "NOT_READY")
    assert "stillhouse migrate" in answer.json()["detail"]
    assert "stillhouse_ready 0.0" in client.get("/metrics").text


def test_tables_of_a_later_version_are_ready(
    client: TestClient, app: FastAPI, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the servers of a version would all be taken out of service by the migration to the next."""
    app.state.schema_version = "0002"
    monkeypatch.setattr(ledger, "schema_version", lambda: "0003")
    assert client.get("/readyz").json() == {"status": "ready", "schema_version": "0003"}
    assert "stillhouse_ready 1.0" in client.get("/metrics").text


def test_metrics_have_no_label_that_a_caller_can_invent(client: TestClient) -> None:
    for number in range(3):
        client.request(f"ODD{number}", f"/nowhere/{number}")
    lines = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("stillhouse_http_seconds_count")
    ]
    assert lines == ['stillhouse_http_seconds_count{method="other",route="none",status="4xx"} 3.0']


def test_a_request_id_comes_back_and_a_strange_one_does_not(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client.get("/nope", headers={"X-Request-Id": "mine-2"}).json()["instance"] == "mine-2"
    for strange in ("x" * 65, "a b", "<script>"):
        assert client.get("/healthz", headers={"X-Request-Id": strange}).headers["x-request-id"].startswith("req_")


def test_every_answer_is_protected(client: TestClient) -> None:
    for path in ("/healthz", "/nope", "/v1/jobs"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


KEY = "correct-horse-battery"


def test_with_a_key_only_its_bearer_comes_in(tmp_path: Path) -> None:
    with client_of(make_app(tmp_path, api_key=KEY)) as client:
        guarded = ["/v1/jobs", "/v1/server", "/metrics", "/v1/catalog", "/v1/jobs/job_x/events"]
        for header in ({}, {"Authorization": KEY}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
            for path in guarded:
                answer = client.get(path, headers=header)
                assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHENTICATED"), path
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert KEY not in answer.text
            assert client.post("/v1/jobs", json=SPEC, headers=header).status_code == 401
        assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_sites_and_other_names_are_refused_whatever_the_method(client: TestClient, method: str) -> None:
    for path in ("/v1/jobs", "/healthz", "/nope"):
        for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1@evil.example", "169.254.169.254"):
            answer = client.request(method, path, headers={"Host": host})
            assert (answer.status_code, answer.json()["code"]) == (400, "UNKNOWN_HOST"), host
        for origin in (
            "http://evil.example",
            "null",
            "http://localhost:1",
            "file://",
            "http://[",
            HERE + ".evil.example",
        ):
            answer = client.request(method, path, headers={"Origin": origin})
            assert (answer.status_code, answer.json()["code"]) == (403, "FOREIGN_ORIGIN"), origin
        assert client.request(method, path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.get("/healthz", headers={"Origin": HERE, "Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_a_finished_job_over_http_is_the_document(
    client: TestClient, ledger: MemoryLedger, artifacts: MemoryArtifacts
) -> None:
    job = client.get(f"/v1/jobs/{succeeded(ledger, artifacts)}").json()
    assert job["student"]["metrics"]["accuracy"] == 0.87
    assert all(client.get(job["links"][name]).status_code == 200 for name in ("self", "trials", "events", "artifacts"))
    assert client.post(job["links"]["cancel"]).status_code == 200


def test_a_job_under_way_shows_its_teacher_as_soon_as_it_is_there(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger)
    claim = claimed(ledger)
    taught(ledger, claim)
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["phase"], job["teacher"]["source"], job["student"]) == ("survey", "trained", None)
