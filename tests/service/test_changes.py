"""What is asked of jobs on record, over HTTP: pauses, changes, repeats, variants, and that they be gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from search.errors import StoreUnavailable
from service.client import Client
from service.routes.changes import merged
from service.wire import Conflict, Invalid, StatusError
from tests.service.served import SPEC, claimed, client_of, listening, make_app, searched, submitted, succeeded, taught
from workers.memory import MemoryArtifacts, MemoryLedger
from workers.ports import JobState

pytestmark = pytest.mark.timeout(30)  # the first budget that is checked builds a teacher


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def artifacts() -> MemoryArtifacts:
    return MemoryArtifacts()


@pytest.fixture
def client(tmp_path: Path, ledger: MemoryLedger, artifacts: MemoryArtifacts) -> Iterator[TestClient]:
    with client_of(make_app(tmp_path, ledger, artifacts)) as client:
        yield client


def change(client: TestClient, job_id: str, patch: Any, **headers: str) -> Any:
    kind = {"Content-Type": "application/merge-patch+json"}
    return client.patch(f"/v1/jobs/{job_id}", json=patch, headers=kind | headers)


def pointers(answer: Any) -> list[str]:
    return [error["pointer"] for error in answer.json()["errors"]]


def test_a_pause_and_the_way_on(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger)
    for _ in range(2):
        answer = client.post(f"/v1/jobs/{job_id}:pause")
        assert (answer.status_code, answer.json()["paused"], answer.headers["etag"]) == (200, True, '"1"')
    found = client.post(f"/v1/jobs/{job_id}:resume")
    assert (found.json()["pause_requested"], found.json()["paused"], found.headers["etag"]) == (False, False, '"2"')
    claim = claimed(ledger)
    under_way = client.post(f"/v1/jobs/{job_id}:pause").json()
    assert (under_way["pause_requested"], under_way["paused"]) == (True, False), "a driver still has it"
    ledger.rest(claim)
    assert client.get(f"/v1/jobs/{job_id}").json()["paused"]
    client.post(f"/v1/jobs/{job_id}:cancel")
    answer = client.post(f"/v1/jobs/{job_id}:resume")
    assert (answer.status_code, answer.json()["code"]) == (409, "ILLEGAL_TRANSITION")


def test_a_change_of_everything_that_may_change(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger, labels={"team": "vision", "old": "yes"})
    patch = {
        "labels": {"old": None, "new": "✓"},
        "priority": 5,
        "spec": {"budget": {"macs": "40%", "params": "60%"}, "search": {"trials": 7}},
    }
    answer = change(client, job_id, patch)
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert (job["labels"], job["priority"], job["revision"]) == ({"team": "vision", "new": "✓"}, 5, 1)
    assert (job["spec"]["budget"], job["spec"]["search"]["trials"]) == ({"macs": "40%", "params": "60%"}, 7)
    assert claimed(ledger).spec == job["spec"], "and that is what its driver is given"


@pytest.mark.parametrize(
    ("patch", "at"),
    [
        ({"state": "SUCCEEDED"}, "/state"),
        ({"spec": {"teacher": {"name": "small_mobilenet"}}}, "/spec/teacher/name"),
        ({"spec": {"search": {"rungs": [1, 2]}}}, "/spec/search/rungs"),
        ({"spec": None}, "/spec"),
        ({"priority": None}, "/priority"),
        ({"spec": {"budget": None}}, "/spec/budget"),
        ({"spec": {"search": {"trials": None}}}, "/spec/search/trials"),
        ({"spec": {"search": {"trials": 0}}}, "/spec/search/trials"),
        ({"spec": {"search": []}}, "/spec/search"),
        ({"spec": {"budget": {"mac": "10%"}}}, "/spec/budget/mac"),
        ({"spec": {"budget": {"macs": "0.0001%"}}}, "/spec/budget/macs"),
        ({"priority": 1001}, "/priority"),
        ({"labels": {"team": 3}}, "/labels/team"),
        ({"labels": [1]}, "/labels"),
        ({"labels/x": 1}, "/labels~1x"),
        ({"spec": {"search": {"trials": {"a": 1}}}}, "/spec/search/trials"),
        ([], ""),
    ],
)
def test_a_mistake_in_a_change_is_told_where_it_stands(
    client: TestClient, ledger: MemoryLedger, patch: Any, at: str
) -> None:
    job_id = submitted(ledger)
    before = ledger.job(job_id)
    answer = change(client, job_id, patch)
    assert answer.status_code == 422, answer.text
    assert at in pointers(answer)
    assert ledger.job(job_id) == before


def test_nothing_to_change(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger)
    for patch in ({}, {"labels": {}}, {"labels": {"no": None}}, {"priority": 0}, {"spec": {}}):
        assert change(client, job_id, patch).headers["etag"] == '"0"'
    assert change(client, job_id, {"labels": {"a": "b"}}).json()["labels"] == {"a": "b"}
    assert change(client, job_id, {"labels": None}).json()["labels"] == {}


@pytest.mark.parametrize(
    ("tags", "status"),
    [('"0"', 200), ("*", 200), ('"7", "0"', 200), ('"1"', 412), ('W/"0"', 412), ('"x"', 412), ("0", 422), ('"', 422)],
)
def test_a_change_of_what_was_seen(client: TestClient, ledger: MemoryLedger, tags: str, status: int) -> None:
    job_id = submitted(ledger)
    answer = change(client, job_id, {"priority": 3}, **{"If-Match": tags})
    assert answer.status_code == status
    assert answer.json().get("code") == {200: None, 412: "OUTDATED", 422: "INVALID_PARAMETER"}[status]
    assert ledger.job(job_id).spec["priority"] == (3 if status == 200 else 0)


def test_two_at_one_moment(client: TestClient, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is between our look at the job and our change of it."""
    job_id, really = submitted(ledger), ledger.change

    def slower(job: str, spec: Any, *, revision: int) -> Any:
        ledger.request_pause(job)
        return really(job, spec, revision=revision)

    monkeypatch.setattr(ledger, "change", slower)
    answer = change(client, job_id, {"priority": 3})
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")
    ledger.resume(job_id)
    answer = change(client, job_id, {"priority": 3}, **{"If-Match": '"2"'})
    assert (answer.status_code, answer.json()["code"]) == (412, "OUTDATED")
    assert ledger.job(job_id).spec["priority"] == 0


def test_what_is_past_stays(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger)
    claim = claimed(ledger)
    taught(ledger, claim)
    answer = change(client, job_id, {"spec": {"budget": {"macs": "60%"}}})
    assert (answer.status_code, answer.json()["code"]) == (409, "ILLEGAL_TRANSITION")
    assert "clone" in answer.json()["detail"]
    searched(ledger, claim)
    assert change(client, job_id, {"spec": {"search": {"trials": 5}}}).status_code == 409
    assert change(client, job_id, {"spec": {"search": {"trials": 50}}}).status_code == 200
    ledger.close(claim, JobState.FAILED)
    assert change(client, job_id, {"priority": 2}).status_code == 409
    assert change(client, job_id, {"labels": {"why": "disk"}}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_patch_is_declared_as_one(client: TestClient, ledger: MemoryLedger, kind: str) -> None:
    job_id = submitted(ledger)
    assert client.patch(f"/v1/jobs/{job_id}", content=b"{}", headers={"Content-Type": kind}).status_code == 415


def test_a_failed_job_is_retried_once_for_each_key(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger, labels={"team": "vision"})
    refused = client.post(f"/v1/jobs/{job_id}:retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "ILLEGAL_TRANSITION")
    ledger.close(claimed(ledger), JobState.FAILED, "why")
    key = {"Idempotency-Key": "k1"}
    first, again = (client.post(f"/v1/jobs/{job_id}:retry", headers=key) for _ in range(2))
    assert (first.status_code, first.json()["parent"], first.json()["state"]) == (201, job_id, "QUEUED")
    assert first.json()["spec"] == ledger.job(job_id).spec
    assert first.headers["location"] == f"/v1/jobs/{first.json()['id']}"
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (first.json()["id"], "true")
    assert "idempotency-replayed" not in first.headers
    cloned = client.post(f"/v1/jobs/{job_id}:clone", headers=key).json()
    submitted_anew = client.post("/v1/jobs", json=SPEC, headers=key).json()
    assert len({first.json()["id"], cloned["id"], submitted_anew["id"], job_id}) == 4, "each route has keys of its own"


def test_a_clone_differs_in_what_it_says(client: TestClient, ledger: MemoryLedger, artifacts: MemoryArtifacts) -> None:
    job_id = succeeded(ledger, artifacts)
    patch = {"spec": {"budget": {"macs": None, "params": "60%"}, "search": {"trials": 3}, "labels": {"of": "clone"}}}
    answer = client.post(f"/v1/jobs/{job_id}:clone", json=patch)
    assert (answer.status_code, answer.json()["parent"], answer.headers["etag"]) == (201, job_id, '"0"')
    former, spec = ledger.job(job_id).spec, answer.json()["spec"]
    assert (spec["budget"], spec["search"]["trials"], spec["labels"]) == ({"params": "60%"}, 3, {"of": "clone"})
    assert spec | {"budget": 0, "search": 0, "labels": 0} == dict(former) | {"budget": 0, "search": 0, "labels": 0}
    for wrong, at in (({"budget": {}}, "/budget"), ({"spec": {"search": {"trails": 3}}}, "/spec/search/trails")):
        answer = client.post(f"/v1/jobs/{job_id}:clone", json=wrong)
        assert (answer.status_code, pointers(answer)) == (422, [at])


def test_what_is_deleted_is_gone_with_its_files(
    client: TestClient, ledger: MemoryLedger, artifacts: MemoryArtifacts
) -> None:
    job_id, waiting = succeeded(ledger, artifacts), submitted(ledger)
    [file] = ledger.job(job_id).files
    answer = client.delete(f"/v1/jobs/{waiting}")
    assert (answer.status_code, answer.json()["code"]) == (409, "ILLEGAL_TRANSITION")
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert not artifacts.has(file.artifact.key)
    for method, path in (("GET", ""), ("GET", "/events"), ("GET", "/trials"), ("DELETE", ""), ("POST", ":clone")):
        assert client.request(method, f"/v1/jobs/{job_id}{path}").status_code == 404


def test_a_file_that_cannot_be_taken_out_does_not_bring_its_job_back(
    client: TestClient, ledger: MemoryLedger, artifacts: MemoryArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(key: str) -> None:
        raise StoreUnavailable("the bucket is away")

    job_id = succeeded(ledger, artifacts)
    monkeypatch.setattr(artifacts, "delete", away)
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert client.get(f"/v1/jobs/{job_id}").status_code == 404


def test_from_python(tmp_path: Path, ledger: MemoryLedger) -> None:
    with listening(make_app(tmp_path, ledger)) as url, Client(url) as client:
        job = client.jobs.create(SPEC)
        assert client.jobs.pause(job.id).paused
        assert not client.jobs.resume(job.id).paused
        changed = client.jobs.update(job.id, labels={"a": "b"}, trials=3, budget={"params": "70%"}, revision=2)
        assert (changed.labels, changed.spec["budget"]) == ({"a": "b"}, {"macs": "50%", "params": "70%"})
        with pytest.raises(StatusError) as refused:
            client.jobs.update(job.id, priority=1, revision=2)
        assert refused.value.status == 412
        with pytest.raises(Invalid):
            client.jobs.update(job.id, priority=1001)
        assert client.jobs.clone(job.id, {"search": {"trials": 2}}).parent == job.id
        with pytest.raises(Conflict):
            client.jobs.retry(job.id)
        client.jobs.cancel(job.id)
        again = client.jobs.retry(job.id, "key")
        assert client.jobs.retry(job.id, "key").id == again.id
        client.jobs.delete(job.id)
        assert {found.id for found in client.jobs.list()}.isdisjoint({job.id})


DOCUMENTS = st.recursive(
    st.none() | st.integers(-2, 2) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(document=DOCUMENTS, patch=DOCUMENTS)
def test_a_merge_patch_is_what_its_rfc_says(document: Any, patch: Any) -> None:
    result = merged(document, patch)
    assert merged(result, patch) == result, "again changes nothing"
    if not isinstance(patch, Mapping):
        assert result == patch
        return
    for name in patch.keys() | (document.keys() if isinstance(document, Mapping) else set()):
        before = document.get(name) if isinstance(document, Mapping) else None
        if name not in patch:
            assert result[name] == before
        elif patch[name] is None:
            assert name not in result
        else:
            assert result[name] == merged(before, patch[name])


@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_examples_of_rfc_7396(document: Any, patch: Any, result: Any) -> None:
    """Its appendix A."""
    assert merged(document, patch) == result
