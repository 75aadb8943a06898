"""Teachers and datasets from registering to deleting; uploads, and both, from Python and from the shell."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from rich.console import Console, RenderableType
from sqlalchemy import Engine

from search.errors import UserError, WeightsError
from search.files import Files
from search.teachers.small import SmallResNet
from search.teachers.weights import save_weights
from service import wire
from service.app import create_app
from service.checker import DirectChecker
from service.client import Client
from service.holdings import DatasetReport
from service.screens.holdings import report_screen
from service.screens.words import UNICODE
from service.settings import Settings
from service.store.engine import latest_revision
from service.store.record import SqlRecord
from tests.search.headers import CORPUS, good
from tests.service.served import SPEC, digest, listening
from tests.service.test_cli import stillhouse
from tests.service.test_client import Asked, Reply, problem, serving
from workers.artifacts import FolderArtifacts
from workers.uploads import Uploaded

pytestmark = pytest.mark.timeout(30)

ASKED = {"name": "digits, small", "teacher": SPEC["teacher"], "dataset": SPEC["dataset"]}
NOBODYS = "0" * 26


@pytest.fixture
def server(sqlite: Engine, tmp_path: Path) -> Iterator[str]:
    """Its address. Below its data root there are pets, one of them broken."""
    for number in range(24):
        path = tmp_path / "data" / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number * 9, 7, 99)).save(path)
    (tmp_path / "data" / "pets" / "dog" / "=cmd|'!A0.png").write_bytes(b"PK\3\4 no picture")
    artifacts, roots = FolderArtifacts(tmp_path / "artifacts"), (tmp_path / "data",)
    checker = DirectChecker(Files(tmp_path / "cache", roots, Uploaded(artifacts)))
    settings = Settings(home=tmp_path, auth="off", data_roots=roots)
    app = create_app(settings, SqlRecord(sqlite), artifacts, checker, schema_version=latest_revision())
    with listening(app) as url:
        yield url


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server) as client:
        yield client


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for the teacher of `SPEC`."""
    network = SmallResNet(SmallResNet.Options(**SPEC["teacher"]["options"])).build((3, 16, 16), 10)
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    path.write_bytes(save_weights(network))
    return path


def test_what_was_registered_stands_in_a_job_as_it_is(client: Client, weights: Path) -> None:
    seen: list[tuple[int, int]] = []
    upload = client.uploads.send(weights, on_bytes=lambda *told: seen.append(told))
    assert seen[-1] == (weights.stat().st_size,) * 2
    assert (upload.sha256, upload.completed_at is None) == (digest(weights.read_bytes()), False)
    dataset = client.datasets.create("digits", SPEC["dataset"])
    given = SPEC["teacher"] | {"weights": upload.weights}
    teacher = client.teachers.create("digits, small", given, dataset.spec)
    assert teacher.spec == given
    assert dataset.spec == SPEC["dataset"]
    assert (teacher.facts.sha256, teacher.facts.classes) == (upload.sha256, 10)
    plan = client.plan({"teacher": teacher.spec, "dataset": dataset.spec, "budget": SPEC["budget"]})
    assert plan.trials == 24
    with pytest.raises(wire.Conflict, match=teacher.id):
        client.uploads.delete(upload.id)
    client.teachers.delete(teacher.id)
    client.uploads.delete(upload.id)
    client.datasets.delete(dataset.id)
    assert [*client.uploads.list(), *client.teachers.list(), *client.datasets.list()] == []


def test_a_report_that_an_earlier_version_kept_does_not_say_what_a_job_would_do() -> None:
    files = {"images": 3, "opened": 3, "others": 0, "corrupt": 1, "suspicious": 0, "faults": []}
    facts = {"task": "classification", "shape": [3, 8, 8], "images": {"train": 3}, "classes": [], "files": files}
    found = DatasetReport.of(facts)
    assert found.files is not None
    assert found.files.refusal is None
    assert "a job would" not in drawn(report_screen(found, signs=UNICODE))
    refused = DatasetReport.of(facts | {"files": files | {"refusal": "1 of 3 images cannot be used"}})
    assert "a job would fail: 1 of 3 images cannot be used" in drawn(report_screen(refused, signs=UNICODE))
    skipping = DatasetReport.of(facts | {"files": files | {"refusal": ""}})
    assert "a job would skip what is corrupt" in drawn(report_screen(skipping, signs=UNICODE))
    assert DatasetReport.of(facts | {"files": None}).files is None


def drawn(screen: RenderableType) -> str:
    console = Console(width=120, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(screen)
    return capture.get()


def test_the_report_names_what_is_broken_relative_to_its_folder(client: Client, tmp_path: Path) -> None:
    pets: dict[str, Any] = {"name": "image_folder", "options": {"path": "pets", "size": 16}}
    dataset = client.datasets.create("pets", pets)
    assert (dataset.classes, dataset.faults, sum(dataset.images.values())) == (2, 1, 25)
    report = client.datasets.report(dataset.id)
    assert report.files is not None
    assert [fault.file for fault in report.files.faults] == ["dog/=cmd|'!A0.png"]
    assert report.files.refusal is not None
    assert report.files.refusal.startswith("1 of 25 images cannot be used (4.00%, and `max_bad_fraction` is 0.10%): ")
    assert str(tmp_path) not in report.model_dump_json()
    tolerant = client.datasets.create("pets", {**pets, "options": {**pets["options"], "max_bad_fraction": 0.04}})
    files = client.datasets.report(tolerant.id).files
    assert files is not None
    assert (files.corrupt, files.refusal) == (1, "")
    for path in ("/etc", "../artifacts", "pets/../../artifacts"):
        with pytest.raises(wire.Invalid) as caught:
            client.datasets.create("x", {"name": "image_folder", "options": {"path": path}})
        assert caught.value.errors[0].pointer == "/dataset/options/path"


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("teachers", ASKED | {"name": ""}, "/name"),
        ("teachers", ASKED | {"name": "x" * 101}, "/name"),
        ("teachers", ASKED | {"owner": "bob"}, "/owner"),
        ("teachers", ASKED | {"teacher": {"name": "nobody"}}, "/teacher/name"),
        ("teachers", ASKED | {"teacher": {"name": "os.system"}}, "/teacher/name"),
        ("teachers", ASKED | {"teacher": SPEC["teacher"] | {"weights": "/etc/passwd"}}, "/teacher/weights"),
        ("teachers", ASKED | {"teacher": SPEC["teacher"] | {"weights": f"upload:upl_{NOBODYS}"}}, "/teacher/weights"),
        ("teachers", ASKED | {"teacher": SPEC["teacher"] | {"weights": "upload:../x"}}, "/teacher/weights"),
        ("teachers", ASKED | {"dataset": {"name": "image_folder", "options": {}}}, "/dataset/options/path"),
        ("datasets", {"name": "d", "dataset": {"name": "nothing"}}, "/dataset/name"),
        ("datasets", {"name": "d", "dataset": "digits"}, "/dataset"),
        ("datasets", {"name": "d"}, "/dataset"),
        ("datasets", [], ""),
    ],
)
def test_what_cannot_be_registered_is_pointed_at(server: str, path: str, body: Any, pointer: str) -> None:
    answer = httpx2.post(f"{server}/v1/{path}", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert httpx2.get(f"{server}/v1/{path}").json()[path] == []


def test_the_same_request_twice_registers_once(server: str) -> None:
    for path, body in (("teachers", ASKED), ("datasets", {"name": "d", "dataset": SPEC["dataset"]})):
        headers = {"Idempotency-Key": "once"}
        first, second = (httpx2.post(f"{server}/v1/{path}", json=body, headers=headers) for _ in range(2))
        assert first.json() == second.json()
        assert ("idempotency-replayed" in first.headers, second.headers["idempotency-replayed"]) == (False, "true")
        assert first.headers["location"] == f"/v1/{path}/{first.json()['id']}"
        assert httpx2.get(f"{server}{first.headers['location']}").json() == first.json()
        other = httpx2.post(f"{server}/v1/{path}", json=body | {"name": "other"}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


def test_a_file_that_is_none_is_not_sent(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    for content in (CORPUS["a zip"], CORPUS["a pickle of protocol 4"], b""):
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            client.uploads.send(path)
    with pytest.raises(UserError, match="cannot be read"):
        client.uploads.send(tmp_path / "nowhere")
    assert list(client.uploads.list()) == []


def test_an_upload_is_sent_again_to_the_same_place(tmp_path: Path) -> None:
    """After a refusal that passes, and when the answer was lost: the server says it is complete."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(good(3_000_000))
    declared = {
        "id": "upl_1",
        "weights": "upload:upl_1",
        "bytes": path.stat().st_size,
        "sha256": digest(path.read_bytes()),
        "created_at": "2026-01-05T09:30:00Z",
        "completed_at": None,
    }
    complete = declared | {"completed_at": "2026-01-05T09:30:01Z"}
    puts: list[bytes] = []

    def reply(asked: Asked) -> Reply:
        if asked.method == "POST":
            return Reply(201, declared)
        if asked.method == "GET":
            return Reply(200, complete)
        puts.append(asked.body)
        return problem(503, "BUSY") if len(puts) == 1 else problem(409, "CONFLICT")

    with serving(reply) as (client, _):
        assert client.uploads.send(path).completed_at is not None
    assert puts == [path.read_bytes()] * 2


def test_from_the_shell(server: str, weights: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps(SPEC))

    def told(*arguments: str) -> Any:
        result = stillhouse(*arguments, "--url", server, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    upload = stillhouse("upload", str(weights), "--url", server)
    assert upload.stdout.strip().startswith("upload:upl_")
    assert told("uploads", "list")["uploads"][0]["weights"] == upload.stdout.strip()
    teacher = told("teachers", "create", "digits, small", str(job), "--weights", str(weights))
    assert teacher["spec"]["weights"].startswith("upload:upl_")
    assert told("teachers", "show", teacher["id"]) == teacher == told("teachers", "list")["teachers"][0]
    dataset = told("datasets", "create", "digits", str(job))
    assert told("datasets", "show", dataset["id"]) == dataset == told("datasets", "list")["datasets"][0]
    assert len(told("datasets", "report", dataset["id"])["classes"]) == 10
    for group, made in (("teachers", teacher), ("datasets", dataset)):
        for command in (("list",), ("show", made["id"])):
            assert made["id"] in stillhouse(group, *command, "--url", server).stdout
        assert told(group, "delete", made["id"]) == {"id": made["id"]}
        assert stillhouse(group, "show", made["id"], "--url", server).exit_code == 4
    assert (
        "training"
        in stillhouse("datasets", "report", told("datasets", "create", "d", str(job))["id"], "--url", server).stdout
    )
    assert told("uploads", "delete", told("uploads", "list")["uploads"][0]["id"])
    wrong = stillhouse("teachers", "create", "x", str(weights), "--url", server)
    assert wrong.exit_code == 2
