"""
The header of a safetensors file: names, dtypes and shapes, judged before any weight is read, and without torch.

The format: eight bytes of length, little-endian; that many bytes of JSON; the tensors one behind the other. The JSON is
`{name: {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}}`, where `__metadata__` may hold texts by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from search.errors import WeightsError

MOST_HEADER = 4 * 2**20
"""Bytes."""
MOST_TENSORS = 20_000
FLOATS: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes by dtype."""
_WHOLE = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_BYTES = {**FLOATS, **_WHOLE}
_MOST_SIDES = 16
_LARGEST_SIDE = 2**40
_LONGEST_NAME = 512
_LENGTH = 8
"""Bytes in which the header's own length is written."""

CONVERT = (
    "convert it once, where you trust the file: "
    "`state = torch.load(FILE, weights_only=True)` and `safetensors.torch.save_file(state, 'weights.safetensors')`"
)


@dataclass(frozen=True, slots=True)
class Header:
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """Dtype and shape by name."""

    @classmethod
    def of(cls, start: bytes, size: int) -> Header:
        """
        From the first bytes of a file of `size` bytes, `extent` of them at least.

        Raises:
            WeightsError: it is no safetensors file, or not a whole one.
        """
        length = extent(start, size) - _LENGTH
        header = _decoded(start[_LENGTH : _LENGTH + length])
        _check_metadata(header.pop("__metadata__", None))
        if len(header) > MOST_TENSORS:
            raise _too_many(len(header))
        tensors = {name: _entry(name, entry) for name, entry in header.items()}
        _check_places({name: entry["data_offsets"] for name, entry in header.items()}, tensors, size - _LENGTH - length)
        return cls(tensors)


def extent(start: bytes, size: int) -> int:
    """
    With how many of its bytes the header of a file of `size` bytes ends, from its first ten.

    Raises:
        WeightsError: they are those of something else, or promise a header that is too large.
    """
    if start[:2] == b"PK":
        raise WeightsError(f"this is a zip file, as torch.save writes it; only safetensors are read: {CONVERT}")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:9] != b"{":
        raise WeightsError(f"this is a pickle, which can run any program; only safetensors are read: {CONVERT}")
    if len(start) < _LENGTH + 2 or start[8:9] != b"{":
        raise _not_safetensors("its header is missing")
    length = int.from_bytes(start[:_LENGTH], "little")
    if length > MOST_HEADER or length > size - _LENGTH:
        raise _not_safetensors(f"it announces a header of {length:,} bytes")
    return _LENGTH + length


def short(name: str) -> str:
    """A name as an error may show it."""
    return name if len(name) <= 120 else f"{name[:117]}..."


def _decoded(content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8")
        _check_brackets(text)
        header = json.loads(text, object_pairs_hook=_table, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _not_safetensors("its header is not JSON") from None
    if not isinstance(header, dict):
        raise _not_safetensors("its header is not a table of tensors")
    return header


def _check_brackets(text: str) -> None:
    """Before parsing: a tensor's entry is a table with two lists, and what is deeper or more would only cost memory."""
    depth, opened = 0, 0
    for bracket in _BRACKETS.finditer(text):
        match bracket[0][0]:
            case "[" | "{":
                depth, opened = depth + 1, opened + 1
            case "]" | "}":
                depth -= 1
        if depth > _DEEPEST:
            raise _not_safetensors("its header is nested deeper than a table of tensors is")
        if opened > 3 * MOST_TENSORS + 2:
            raise _too_many(opened // 3)


_DEEPEST = 3
_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise _not_safetensors("its header has a name twice")
    for name in table:
        if len(name) > _LONGEST_NAME or not _decent(name):
            raise _not_safetensors("its header has a name that no module of a network has")
    return table


def _decent(name: str) -> bool:
    return not any(character < " " or "\ud800" <= character <= "\udfff" for character in name)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _check_metadata(metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _not_safetensors("its metadata are not texts by name")


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _not_safetensors(f"its header has no dtype, shape and offsets for `{short(name)}`, or more than those")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _whole(shape, _LARGEST_SIDE) or len(shape) > _MOST_SIDES:
        raise _not_safetensors(f"its header has no valid shape for `{short(name)}`")
    if not _whole(place, 2**63) or len(place) != 2:
        raise _not_safetensors(f"its header has no valid offsets for `{short(name)}`")
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise WeightsError(
            f"`{short(name)}` has the dtype {short(str(dtype))}; weights are read as {', '.join(FLOATS)}"
        )
    return dtype, tuple(shape)


def _whole(numbers: object, below: int) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < below for number in numbers)


def _check_places(
    places: Mapping[str, list[int]], tensors: Mapping[str, tuple[str, tuple[int, ...]]], stored: int
) -> None:
    """Each tensor begins where another ends, the first at 0, and the last ends with the file."""
    promised = sum(_BYTES[dtype] * math.prod(shape) for dtype, shape in tensors.values())
    if promised != stored:
        raise WeightsError(
            f"the weights file is cut off or damaged: its header promises {promised:,} bytes of weights and "
            f"{stored:,} follow; save or copy it again"
        )
    reached = 0
    for name, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
        dtype, shape = tensors[name]
        if begin != reached or end - begin != _BYTES[dtype] * math.prod(shape):
            raise WeightsError(
                f"the weights file is damaged: `{short(name)}` does not lie where its header says, one tensor behind "
                "the other; save or copy it again"
            )
        reached = end


def _not_safetensors(why: str) -> WeightsError:
    return WeightsError(f"this is not a safetensors file: {why}; if it comes from torch.save, {CONVERT}")


def _too_many(tensors: int) -> WeightsError:
    return WeightsError(f"the weights file holds {tensors:,} tensors; at most {MOST_TENSORS:,} are read")
