"""Every wrong request gets an answer that says what is wrong, where, and what to do."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from search.errors import StillhouseError, StorageFull, StoreUnavailable
from search.files import Files
from service.checker import CachedChecker, CheckerBusy, DirectChecker
from service.deps import DEEPEST, read_json
from service.problems import KINDS, MEDIA_TYPE, Refusal
from tests.service.served import SPEC, client_of, make_app
from workers.memory import MemoryLedger


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a data root that holds a folder of images, one without, and a way out."""
    home = tmp_path_factory.mktemp("home")
    for name in ("cat", "dog"):
        folder = home / "data" / "pets" / name
        folder.mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (8, 8), (number * 9, 90 if name == "cat" else 200, 7)).save(folder / f"{number}.png")
    (home / "data" / "mixed" / "cat").mkdir(parents=True)
    (home / "data" / "mixed" / "cat" / "broken.txt").write_bytes(b"not a picture")
    (home / "data" / "weights.safetensors").write_bytes(b"\x80\x04pickle")
    (home / "secret").mkdir()
    (home / "data" / "way-out").symlink_to(home / "secret")
    return home


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[TestClient]:
    with client_of(make_app(home, data_roots=(home / "data",))) as client:
        yield client


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good spec with one value set; `path` is a JSON pointer."""
    spec: dict[str, Any] = copy.deepcopy(SPEC)
    *parents, name = path.strip("/").split("/")
    place = spec
    for parent in parents:
        place = place.setdefault(parent, {})
    place[name] = value
    return spec


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in SPEC.items() if key != name}


PICTURES = {"name": "image_folder", "options": {"path": "pets", "size": 8}}

WRONG: list[tuple[str, Any, str, str]] = [
    # what is wrong, the spec, the pointer of the first error, words of its remedy
    ("unknown field", changed("/serach", {}), "/serach", 'did you mean "search"?'),
    ("unknown field deeper", changed("/search/trails", 3), "/search/trails", 'did you mean "trials"?'),
    ("no teacher", without("teacher"), "/teacher", "required; add it"),
    ("no dataset", without("dataset"), "/dataset", "required; add it"),
    ("no budget", without("budget"), "/budget", "required; add it"),
    ("empty budget", changed("/budget", {}), "/budget", "at least 1"),
    ("budget unit", changed("/budget/macs", "20X"), "/budget/macs", "use k, M, G, T or %"),
    ("budget milli", changed("/budget/macs", "20m"), "/budget/macs", "M is million"),
    ("budget zero", changed("/budget/macs", 0), "/budget/macs", "above zero"),
    ("budget negative", changed("/budget/macs", -5), "/budget/macs", "write a number with k, M, G or T"),
    ("budget over the teacher", changed("/budget/macs", "120%"), "/budget/macs", "write at most 100%"),
    ("budget of words", changed("/budget/macs", "small"), "/budget/macs", "a share such as 20%"),
    ("budget of another shape", changed("/budget/macs", {"at": 1}), "/budget/macs", "a number or a text"),
    ("flops for macs", changed("/budget/macs", "1.5 GFLOPs"), "/budget/macs", 'write "0.75 GMACs" here'),
    ("macs for flops", changed("/budget/flops", "1.5 GMACs"), "/budget/flops", 'write "3 GFLOPs" here'),
    ("a unit of bytes", changed("/budget/weight_bytes", "3M"), "/budget/weight_bytes", "use B, kB, MB"),
    ("a time without a unit", changed("/budget/latency", 4), "/budget/latency", "write a time such as"),
    (
        "a wrong setting",
        changed("/budget/latency", {"limit": "4 ms", "runtime": "tvm"}),
        "/budget/latency/runtime",
        "'torch-cpu'",
    ),
    ("a rate as a share", changed("/budget/throughput", "50%"), "/budget/throughput", "2x faster"),
    ("a ladder that rises", changed("/budget/macs", ["20%", "30%"]), "/budget/macs/1", "must fall"),
    (
        "an uneven ladder",
        changed("/budget", {"macs": ["90%", "80%", "70%"], "params": ["90%", "80%"]}),
        "/budget/params",
        "has 2 levels and `macs` has 3",
    ),
    ("an impossible level", changed("/budget/macs", ["90%", "10"]), "/budget/macs/1", "the smallest reachable is"),
    ("a level that does not fall", changed("/budget/macs", ["50%", "101280"]), "/budget/macs/1", "must fall"),
    ("a unit in a ladder", changed("/budget/macs", ["90%", "80m"]), "/budget/macs/1", "M is million"),
    ("two goals", changed("/budget/accuracy", {"max_drop": 1, "at_least": "90%"}), "/budget/accuracy", "exactly one"),
    (
        "a goal for no cost",
        changed("/budget/accuracy", {"max_drop": 1, "cheapest": "mac"}),
        "/budget/accuracy/cheapest",
        "mac",
    ),
    ("unknown cost", changed("/budget/mac", "20%"), "/budget/mac", 'did you mean "macs"?'),
    ("impossible budget", changed("/budget/macs", 10), "/budget/macs", "the smallest reachable is"),
    ("impossible second limit", changed("/budget/params", 3), "/budget/params", "Loosen the budget"),
    ("unknown teacher", changed("/teacher/name", "small_resnt"), "/teacher/name", 'did you mean "small_resnet"?'),
    ("unknown dataset", changed("/dataset/name", "digit"), "/dataset/name", 'did you mean "digits"?'),
    ("unknown strategy", changed("/search/strategy", {"name": "tpee"}), "/search/strategy/name", 'mean "tpe"?'),
    ("unknown distiller", changed("/distill", {"name": "hintn"}), "/distill/name", 'did you mean "hinton"?'),
    ("unknown option", changed("/teacher/options/dept", 2), "/teacher/options/dept", 'did you mean "depth"?'),
    ("option too large", changed("/teacher/options/width", 4096), "/teacher/options/width", "less than or equal to"),
    ("option of a wrong type", changed("/teacher/options/width", "wide"), "/teacher/options/width", "valid integer"),
    ("name of a wrong type", changed("/teacher/name", 7), "/teacher/name", "valid string"),
    ("part of a wrong type", changed("/teacher", "small_resnet"), "/teacher", "valid dictionary"),
    ("rungs that do not rise", changed("/search/rungs", [40, 40]), "/search/rungs", "must rise, for example"),
    ("no rungs", changed("/search/rungs", []), "/search/rungs", "at least 1"),
    ("no trials", changed("/search/trials", 0), "/search/trials", "greater than or equal to 1"),
    ("half a trial", changed("/search/trials", 1.5), "/search/trials", "valid integer"),
    ("another version", changed("/version", 2), "/version", "must be 1"),
    ("label too long", changed("/labels", {"note": "x" * 257}), "/labels/note", "at most 256 characters"),
    (
        "path outside",
        changed("/dataset", PICTURES | {"options": {"path": "../secret"}}),
        "/dataset/options/path",
        "ROOTS",
    ),
    ("absolute path", changed("/dataset", PICTURES | {"options": {"path": "/etc"}}), "/dataset/options/path", "ROOTS"),
    (
        "link outside",
        changed("/dataset", PICTURES | {"options": {"path": "way-out"}}),
        "/dataset/options/path",
        "ROOTS",
    ),
    ("no such path", changed("/dataset", PICTURES | {"options": {"path": "pests"}}), "/dataset/options/path", "a path"),
    ("no images", changed("/dataset", PICTURES | {"options": {"path": "mixed"}}), "/dataset", "at least two classes"),
    ("weights outside", changed("/teacher/weights", "/etc/passwd"), "/teacher/weights", "STILLHOUSE_DATA_ROOTS"),
    (
        "weights that are a pickle",
        changed("/teacher/weights", "weights.safetensors"),
        "/teacher/weights",
        "safetensors",
    ),
    ("a list", [SPEC], "", "valid dictionary"),
    ("a number", 7, "", "valid dictionary"),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("spec", "pointer", "remedy"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_spec_is_told_where_and_how_to_mend_it(
    client: TestClient, spec: Any, pointer: str, remedy: str
) -> None:
    answer = client.post("/v1/jobs", json=spec)
    found = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (422, MEDIA_TYPE)
    assert found["errors"][0]["pointer"] == pointer
    assert remedy in found["errors"][0]["message"]
    assert found["errors"][0]["location"] == "body"
    assert (found["retryable"], found["instance"]) == (False, answer.headers["x-request-id"])
    assert client.get(found["type"]).json()["code"] == found["code"]
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_all_mistakes_are_told_at_once(client: TestClient) -> None:
    spec = changed("/teacher/name", "nobody") | {"distill": {"name": "nobody"}, "dataset": {"name": "nobody"}}
    found = client.post("/v1/jobs", json=spec).json()
    assert {error["pointer"] for error in found["errors"]} == {"/teacher/name", "/distill/name", "/dataset/name"}
    assert all(error["allowed"] for error in found["errors"])


HOSTILE: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("no JSON", b"teacher: small_resnet"),
    ("cut off", b'{"teacher": {"name"'),
    ("two documents", b"{}{}"),
    ("NaN", b'{"search": {"training": {"clip": NaN}}}'),
    ("Infinity", b'{"search": {"training": {"clip": Infinity}}}'),
    ("-Infinity", b"[-Infinity]"),
    ("too large to be finite", b'{"search": {"training": {"clip": 1e400}}}'),
    ("five thousand digits", b'{"priority": ' + b"9" * 5000 + b"}"),
    ("half a pair", rb'{"labels": {"a": "\ud800"}}'),
    ("half a pair as a name", rb'{"\udfff": 1}'),
    ("NUL", rb'{"labels": {"a": "x\u0000"}}'),
    ("raw NUL", b'{"labels": {"a": "x\x00"}}'),
    ("not UTF-8", b'{"labels": {"a": "\xff\xfe"}}'),
    ("UTF-16", '{"a": 1}'.encode("utf-16")),
    ("a mark of byte order", "\ufeff{}".encode()),
    ("deep lists", b"[" * 100_000),
    ("deep objects", b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    ("one level too deep", b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1)),
    ("the same name twice", b'{"budget": {"macs": "20%"}, "budget": {"macs": "90%"}}'),
    ("forty thousand names", b"{" + b",".join(b'"%d":1' % n for n in range(20_000)) + b',"1":2}'),
    ("unclosed text", b'"' + b"\\" * 100_000),
]


@pytest.mark.parametrize("body", [row[1] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_json_that_nobody_should_send(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED_JSON")
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert len(answer.json()["detail"]) < 300


def test_brackets_inside_texts_are_no_depth() -> None:
    assert read_json(json.dumps({"a": "[" * 100 + '"\\' + "{" * 100}).encode()) == {"a": "[" * 100 + '"\\' + "{" * 100}
    assert read_json(b"[" * DEEPEST + b"]" * DEEPEST)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(_JSON)
@settings(max_examples=60, deadline=None)
def test_decent_json_is_read_as_everyone_reads_it(document: Any) -> None:
    text = json.dumps(document, ensure_ascii=False)
    if "\0" in json.dumps(document, ensure_ascii=False) or "\\u0000" in text:
        with pytest.raises(Refusal):
            read_json(text.encode())
    else:
        assert read_json(text.encode()) == json.loads(text)


@given(st.binary(max_size=200) | st.text('{}[]":,0123456789.eE+-truefalsn\\ud80', max_size=60).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_whatever_comes_is_read_or_refused(body: bytes) -> None:
    with suppress(Refusal):
        json.dumps(read_json(body), allow_nan=False).encode("utf-8")


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json; charset=utf-16"],
)
def test_only_what_is_declared_as_json_is_read(client: TestClient, content_type: str) -> None:
    answer = client.post("/v1/jobs", content=json.dumps(SPEC), headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_before_it_is_read_in_full(client: TestClient, chunked: bool) -> None:
    sent = []

    def pieces() -> Iterator[bytes]:
        for number in range(64):
            sent.append(number)
            yield b" " * 16_384

    body: Any = pieces() if chunked else b" " * (256 * 1024 + 1)
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")
    assert answer.headers["content-type"] == MEDIA_TYPE


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "/v1", 404, None),
        ("GET", "/v1/jobs/", 404, None),
        ("GET", "/docs", 404, None),
        ("GET", "/v1/jobs/job_01ke7bq8k0f7m2s5v9x3y6z1ab", 404, None),
        ("POST", "/v1/jobs/job_01ke7bq8k0f7m2s5v9x3y6z1ab:cancel", 404, None),
        ("POST", "/v1/jobs/nope:cancel", 404, None),
        ("GET", "/v1/jobs/nope/events", 404, None),
        ("GET", "/v1/jobs/nope/trials", 404, None),
        ("GET", "/v1/jobs/nope/artifacts", 404, None),
        ("GET", "/problems/nope", 404, None),
        ("PUT", "/v1/jobs", 405, "GET, POST"),
        ("PUT", "/v1/jobs/x", 405, "DELETE, GET, PATCH"),
        ("HEAD", "/healthz", 405, "GET"),
        ("POST", "/readyz", 405, "GET"),
        ("GET", "/v1/jobs?page_size=0", 422, None),
        ("GET", "/v1/jobs?page_size=x", 422, None),
        ("GET", "/v1/jobs?state=DONE", 422, None),
        ("GET", "/v1/jobs?nope=1", 422, None),
        ("GET", "/v1/jobs/job_01ke7bq8k0f7m2s5v9x3y6z1ab?wait=NaN", 422, None),
        ("GET", "/v1/jobs/job_01ke7bq8k0f7m2s5v9x3y6z1ab?wait=-1", 422, None),
        ("GET", "/v1/jobs/job_01ke7bq8k0f7m2s5v9x3y6z1ab/events?after=-1", 422, None),
    ],
)
def test_every_other_error_is_a_problem_too(
    client: TestClient, method: str, path: str, status: int, allow: str | None
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, MEDIA_TYPE)
    assert answer.headers.get("allow") == allow
    if method != "HEAD":
        found = answer.json()
        assert (found["status"], KINDS[found["code"]].status) == (status, status)
        assert set(found) == {"type", "title", "status", "detail", "instance", "code", "errors", "retryable"}


class BrokenLedger(MemoryLedger):
    """The record on a bad day."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def jobs(self, *_: Any, **__: Any) -> Any:
        raise self.error

    submit = job = trials = events = request_cancel = counts = ping = jobs  # type: ignore[assignment]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StoreUnavailable("canary at 10.1.2.3"), 503, "STORE_UNAVAILABLE"),
        (StorageFull("canary on /dev/sda1"), 507, "STORAGE_FULL"),
        (RuntimeError("canary in a traceback"), 500, "INTERNAL"),
        (StillhouseError("canary of our own"), 500, "INTERNAL"),
        (KeyError("canary"), 500, "INTERNAL"),
    ],
)
def test_trouble_on_our_side_says_nothing_of_the_inside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, status: int, code: str
) -> None:
    job = "/v1/jobs/job_01ke7bq8k0f7m2s5v9x3y6z1ab"
    with client_of(make_app(tmp_path, BrokenLedger(error))) as client:
        answers = [client.post("/v1/jobs", json=SPEC), client.post(f"{job}:cancel")]
        answers += [
            client.get(path)
            for path in ("/v1/jobs", job, f"{job}/trials", f"{job}/events", f"{job}/artifacts", "/readyz")
        ]
        answers.append(client.get(f"{job}/events", headers={"Accept": "text/event-stream"}))
        assert client.get("/healthz").status_code == 200
    for answer in answers:
        found = answer.json()
        assert (answer.status_code, found["code"], answer.headers["content-type"]) == (status, code, MEDIA_TYPE)
        assert "canary" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert ("retry-after" in answer.headers) == found["retryable"] == (status == 503)
        assert found["instance"] == answer.headers["x-request-id"]
        assert found["instance"] in caplog.text, "whoever has the id finds the cause"
    assert "canary" in caplog.text


class BusyChecker(DirectChecker):
    def check(self, spec: Any) -> Any:
        raise CheckerBusy("too many jobs are being checked")

    def catalog(self, kind: str) -> Any:
        raise CheckerBusy("too many jobs are being checked")


def test_a_busy_checker_asks_to_come_back(tmp_path: Path) -> None:
    checker = CachedChecker(BusyChecker(Files(tmp_path)))
    with client_of(make_app(tmp_path, checker=checker)) as client:
        for answer in (client.post("/v1/jobs", json=SPEC), client.get("/v1/catalog/teachers")):
            assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "BUSY", "2")
            assert answer.json()["detail"] == "too many jobs are being checked"


def test_every_kind_of_problem_has_its_page_and_a_remedy(client: TestClient) -> None:
    for code, kind in KINDS.items():
        page = client.get(f"/problems/{code.lower().replace('_', '-')}").json()
        assert page == {
            "code": code,
            "status": kind.status,
            "title": kind.title,
            "remedy": kind.remedy,
            "retryable": kind.status in (408, 429, 503),
        }
        assert kind.remedy


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("priority", "5", 'a number, not "5"'),
        ("priority", False, "a number, not false"),
        ("search", {"rungs": [10, "20"]}, 'a number, not "20"'),
        ("search", {"deterministic": 1}, "true or false, not 1"),
        ("search", {"training": {"learning_rate": "0.1"}}, 'a number, not "0.1"'),
        ("export", {"onnx": "yes"}, 'true or false, not "yes"'),
    ],
)
def test_nothing_is_taken_for_what_it_is_not(client: TestClient, field: str, value: Any, wanted: str) -> None:
    answer = client.post("/v1/jobs", json=SPEC | {field: value})
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_SPEC")
    [found] = answer.json()["errors"]
    assert found["message"] == f"must be {wanted}"
    assert found["pointer"].startswith(f"/{field}")
