"""The header of weights is judged without torch, and before anything is read that it promises."""

from __future__ import annotations

import time
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from search.errors import WeightsError
from search.header import MOST_HEADER, Header, extent
from tests.search.headers import CORPUS, F32, good, safetensors


def judged(content: bytes) -> Header:
    return Header.of(content[: MOST_HEADER + 8], len(content))


@pytest.mark.parametrize("label", CORPUS)
def test_what_is_no_weights_is_refused_soon_and_for_little(label: str) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(WeightsError) as caught:
        judged(CORPUS[label])
    assert time.process_time() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()
    assert len(caught.value.message) < 600
    assert ";" in caught.value.message, "what is wrong; what to do"


def test_what_is_said_of_the_tensors_comes_back() -> None:
    state = {"a": torch.zeros(2, 3, dtype=torch.float16), "b": torch.zeros(0), "c": torch.tensor(1)}
    content = save(state, {"format": "pt", "note": "brackets in a text [[[{{{ are no nesting"})
    assert dict(judged(content).tensors) == {"a": ("F16", (2, 3)), "b": ("F32", (0,)), "c": ("I64", ())}
    assert extent(content[:10], len(content)) == len(content) - 12 - 8
    assert judged(good(400)).tensors["fc.weight"] == ("F32", (100,))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_passes_is_read_by_the_library_as_well(data: st.DataObject) -> None:
    content = bytearray(
        safetensors({"a": F32, "b": {"dtype": "U8", "shape": [2, 2], "data_offsets": [4, 8]}}, bytes(8))
    )
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 9))] = data.draw(st.integers(0, 255))
    try:
        tensors = judged(bytes(content)).tensors
    except WeightsError:
        return
    try:
        found = load(bytes(content))
    except SafetensorError as error:
        pytest.fail(f"{bytes(content)!r} passed: {error}")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {n: s for n, (_, s) in tensors.items()}
