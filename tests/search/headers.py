"""Files that are called weights and are none, or are not whole: what every door that takes weights must refuse."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from typing import Any

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def safetensors(entries: Any, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """`entries` are JSON to be written, or bytes as they are; `length` is what the file says of its header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def good(bytes_of_weights: int = 4) -> bytes:
    shape = [bytes_of_weights // 4]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, bytes_of_weights]}
    return safetensors({"__metadata__": {"format": "pt"}, "fc.weight": entry}, bytes(bytes_of_weights))


def _entry(**changes: Any) -> dict[str, Any]:
    return {"fc.weight": {**F32, **changes}}


def _two(first: list[int], second: list[int]) -> dict[str, Any]:
    return {"a": {**F32, "data_offsets": first}, "b": {**F32, "data_offsets": second}}


def _zipped(names: int = 1) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(names):
            archive.writestr(f"archive/data-{number}.pkl", bytes(100_000))
    return file.getvalue()


class _Bad:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit",))


CORPUS: dict[str, bytes] = {
    "one byte": b"\0",
    "seven bytes": bytes(7),
    "zeros": bytes(64),
    "length 2^63": safetensors(b"{}", length=2**63),
    "length 2^64 - 1": safetensors(b"{}" * 9, length=2**64 - 1),
    "length beyond the file": safetensors(b"{}", length=1000),
    "length of one too many": safetensors(_entry(), bytes(4), length=len(json.dumps(_entry())) + 5),
    "length too short": safetensors(_entry(), bytes(4), length=10),
    "length of nothing": safetensors(b"{}", length=0),
    "header of 5 MiB": safetensors(b"{" + b" " * (5 * 2**20), b""),
    "header of blanks": safetensors(b" " * 1000),
    "no header": safetensors(b""),
    "header is a list": safetensors(b"[]"),
    "header is a text": safetensors(b'"fc.weight"'),
    "header is null": safetensors(b"null"),
    "header is not JSON": safetensors(b"{'fc': 1}"),
    "header with a comment": safetensors(b"{/**/}"),
    "header with a trailing comma": safetensors(b'{"a":1,}'),
    "two headers": safetensors(b"{}{}"),
    "header in UTF-16": safetensors("{}".encode("utf-16")),
    "header of no encoding": safetensors(b'{"\xff": 1}'),
    "deep tables": safetensors(b'{"a":' * 100_000),
    "deep lists": safetensors(b'{"a":' + b"[" * 1_000_000),
    "a million lists": safetensors(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"),
    "20,001 tensors": safetensors({f"w{number}": F32 for number in range(20_001)}, bytes(4)),
    "20,001 empty tensors": safetensors(
        {f"w{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(20_001)}
    ),
    "a name twice": safetensors(f'{{"a":{json.dumps(F32)},"a":{json.dumps(F32)}}}'.encode(), bytes(4)),
    "a field twice": safetensors(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "a name with NUL": safetensors({"a\0b": F32}, bytes(4)),
    "a name with half a pair": safetensors(b'{"\\ud800":' + json.dumps(F32).encode() + b"}", bytes(4)),
    "a name with a line break": safetensors({"a\nb": F32}, bytes(4)),
    "a name of 100,000 letters": safetensors({"a" * 100_000: F32}, bytes(4)),
    "an entry is a number": safetensors({"fc.weight": 5}),
    "an entry is a list": safetensors({"fc.weight": [1]}),
    "an entry without offsets": safetensors({"fc.weight": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "an entry with more": safetensors(_entry(code="import os"), bytes(4)),
    "an unknown dtype": safetensors(_entry(dtype="PICKLE"), bytes(4)),
    "a dtype that is a list": safetensors(_entry(dtype=["F32"]), bytes(4)),
    "a negative side": safetensors(_entry(shape=[-1, -1]), bytes(4)),
    "a side that is a fraction": safetensors(_entry(shape=[1.0]), bytes(4)),
    "a side that is true": safetensors(_entry(shape=[True]), bytes(4)),
    "a side of 2^64": safetensors(_entry(shape=[2**64]), bytes(4)),
    "a side of 5,000 digits": safetensors(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', bytes(4)
    ),
    "sides whose product wraps round": safetensors(_entry(shape=[2**32, 2**32, 1]), bytes(4)),
    "a hundred sides": safetensors(_entry(shape=[1] * 100), bytes(4)),
    "a side that is NaN": safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "a shape that is a number": safetensors(_entry(shape=1), bytes(4)),
    "more shape than bytes": safetensors(_entry(shape=[2]), bytes(4)),
    "less shape than bytes": safetensors(_entry(dtype="F16"), bytes(4)),
    "negative offsets": safetensors(_entry(data_offsets=[-4, 0]), bytes(4)),
    "offsets backwards": safetensors(_entry(data_offsets=[4, 0]), bytes(4)),
    "offsets beyond the file": safetensors(_entry(data_offsets=[4, 8]), bytes(4)),
    "offsets of 2^63": safetensors(_entry(data_offsets=[0, 2**63]), bytes(4)),
    "offsets that are fractions": safetensors(_entry(data_offsets=[0.0, 4.0]), bytes(4)),
    "three offsets": safetensors(_entry(data_offsets=[0, 4, 4]), bytes(4)),
    "no offsets": safetensors(_entry(data_offsets=None), bytes(4)),
    "tensors that overlap": safetensors(_two([0, 4], [2, 6]), bytes(8)),
    "tensors in one place": safetensors(_two([0, 4], [0, 4]), bytes(8)),
    "a gap between tensors": safetensors(_two([0, 4], [8, 12]), bytes(12)),
    "a gap before the first": safetensors(_entry(data_offsets=[4, 8]), bytes(8)),
    "bytes behind the last": safetensors(_entry(), bytes(5)),
    "a byte missing": safetensors(_entry(), bytes(3)),
    "a file of tensors cut off": good(4096)[:-100],
    "metadata that are a list": safetensors({"__metadata__": [1], **_entry()}, bytes(4)),
    "metadata that are numbers": safetensors({"__metadata__": {"a": 1}, **_entry()}, bytes(4)),
    "metadata that are tables": safetensors({"__metadata__": {"a": {"b": "c"}}, **_entry()}, bytes(4)),
    **{f"a pickle of protocol {protocol}": pickle.dumps(_Bad(), protocol) for protocol in range(6)},
    "a pickle as torch saved it once": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(_Bad(), 2),
    "a zip": _zipped(),
    "a zip of many files": _zipped(500),
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a zip behind a header": good() + _zipped(),
    "a header before a pickle": good() + pickle.dumps(_Bad()),
    "gzip": gzip.compress(good()),
    "gzip of a gigabyte's first megabytes": gzip.compress(bytes(4 * 2**20)),
    "xz": b"\xfd7zXZ\0" + bytes(100),
    "tar": b"weights/\0".ljust(257, b"\0") + b"ustar\0" + bytes(249),
    "ELF": b"\x7fELF\x02\x01\x01" + bytes(200),
    "a Windows program": b"MZ" + bytes(200),
    "a script": b"#!/bin/sh\nrm -rf /\n",
    "a web page": b"<!doctype html><script>alert(1)</script>",
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "NumPy": b"\x93NUMPY\x01\x00" + bytes(100),
    "GGUF": b"GGUF\x03\0\0\0" + bytes(100),
    "ONNX": b"\x08\x07\x12\x07pytorch" + bytes(100),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4\n",
    "JSON alone": json.dumps(_entry()).encode(),
    "text": "weights ⚖\n".encode() * 20,
}
