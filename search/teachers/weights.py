"""
State dicts from and to safetensors, the only format read or written. Nothing is ever unpickled.

A file is judged by its header before any weight is read: the header says names, dtypes and shapes, so that a file
which does not fit the architecture is refused without spending the memory it asks for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from search.errors import WeightsError
from search.header import FLOATS, MOST_HEADER, Header, short

_SHOWN = 3


def load_weights(model: nn.Module, source: Path | bytes) -> None:
    """
    Copies every weight of a safetensors file into `model`; either all of them or, when it raises, none.

    Floating-point weights of another precision are converted. Counters of batch norms (`num_batches_tracked`), which no
    output depends on, may be missing.

    Raises:
        WeightsError: not a safetensors file, damaged, not those of this architecture, or not finite.
    """
    content = source if isinstance(source, bytes) else _read(source, model)
    _check(Header.of(content[: MOST_HEADER + 8], len(content)), model)
    try:
        found = load(content)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"the weights file is damaged: {error}; save or copy it again") from None
    expected = model.state_dict()
    ready = {name: tensor.to(expected[name].dtype) for name, tensor in found.items()}
    for name, tensor in ready.items():
        _check_values(name, tensor)
    model.load_state_dict(ready, strict=False)


def save_weights(model: nn.Module) -> bytes:
    """The state dict of `model` as a safetensors file; equal weights give equal bytes."""
    state: Mapping[str, Tensor] = model.state_dict()
    # copies, because safetensors refuses tensors that share memory
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})


def _read(path: Path, model: nn.Module) -> bytes:
    """The file's bytes, once its header has been found to fit `model`."""
    try:
        # a named pipe would block the open for ever, hence O_NONBLOCK before it is known to be a file
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise WeightsError(f"{path.name} is not a file; name a .safetensors file")
            _check(Header.of(_beginning(file), status.st_size), model)
            file.seek(0)
            return file.read()
    except OSError as error:
        raise WeightsError(f"{path.name} cannot be read: {error.strerror}") from None


def _beginning(file: BinaryIO) -> bytes:
    start = file.read(8)
    return start + file.read(min(int.from_bytes(start, "little"), MOST_HEADER))


def _check(header: Header, model: nn.Module) -> None:
    expected: Mapping[str, Tensor] = model.state_dict()
    found = header.tensors
    unexpected = sorted(found.keys() - expected.keys())
    missing = [name for name in expected if name not in found and not name.endswith(".num_batches_tracked")]
    shapes = [
        f"{name} is {list(shape)} in the file and {list(expected[name].shape)} in the network"
        for name, (_, shape) in found.items()
        if name in expected and shape != tuple(expected[name].shape)
    ]
    dtypes = [
        f"{name} is {dtype}"
        for name, (dtype, _) in found.items()
        if name in expected and (dtype in FLOATS) != expected[name].dtype.is_floating_point
    ]
    faults = [
        f"{len(names)} {what}: {_first(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another kind of number", dtypes),
        )
        if names
    ]
    if faults:
        raise WeightsError(
            f"the weights are not those of this network ({'; '.join(faults)}). {_remedy(found, missing, shapes)}"
        )


def _remedy(found: Mapping[str, object], missing: Sequence[str], shapes: Sequence[str]) -> str:
    for prefix in ("module.", "_orig_mod.", "model.", "state_dict."):
        if found and missing and all(name.startswith(prefix) for name in found):
            return f"Every name in the file begins with `{prefix}`: save the inner network's state dict instead."
    if shapes and not missing:
        return "Set the teacher's options, and the dataset's classes, to those the weights were trained with."
    return "Name the teacher and the options that the weights were trained with."


def _check_values(name: str, tensor: Tensor) -> None:
    if not tensor.dtype.is_floating_point:
        return
    if not bool(torch.isfinite(tensor).all()):
        raise WeightsError(f"`{name}` holds NaN or infinite values; the training that wrote it has diverged")
    if name.endswith("running_var") and bool((tensor < 0).any()):
        raise WeightsError(f"`{name}` holds a negative variance; the file is damaged")


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(short(name) for name in names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown
