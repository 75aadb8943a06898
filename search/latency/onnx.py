"""A network as onnxruntime runs it, timed as a whole and node by node."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from search.errors import UserError
from search.export.onnx import Origin, write_onnx
from search.latency.parts import home
from search.limits import Measurement

_PROFILED_RUNS = 40
_WARM_RUNS = 5
_KERNEL = "_kernel_time"
_BLOCKED = "_nchwc"
"""What onnxruntime adds to the name of a convolution that it runs in its own channel-blocked layout."""
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_CUDA = "CUDAExecutionProvider"


class OnnxNetwork:
    """
    One ONNX file, open in onnxruntime, with a batch of images to answer.

    On a GPU the images lie there already and a call lasts until the logits do too.
    """

    def __init__(
        self, path: Path, images: NDArray[np.float32], measurement: Measurement, origins: Mapping[str, Origin]
    ) -> None:
        self._path, self._images, self._measurement, self._origins = path, images, measurement, origins
        self._session = self._opened()
        self._call = self._bound(self._session)

    def run(self) -> None:
        """Answers the batch."""
        self._call()

    def profile(self, blocks: Collection[str]) -> dict[str, float]:
        """Nanoseconds of one batch by block, "" for what belongs to none; more in sum than an unwatched call takes."""
        with tempfile.TemporaryDirectory(prefix="sth-profile-") as folder:
            session = self._opened(profile=Path(folder) / "nodes")
            call = self._bound(session)
            for _ in range(_WARM_RUNS + _PROFILED_RUNS):
                call()
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        found = dict.fromkeys([*blocks, ""], 0.0)
        for (name, kind), microseconds in _nodes(events).items():
            origin = self._origins.get(name, Origin("", ""))
            # A convolution that took the next activation into itself is called after the activation.
            module = origin.weights if any(word in kind for word in _WEIGHTED) else origin.module
            found[home(module, blocks)] += 1e3 * _trimmed_mean(microseconds[_WARM_RUNS:])
        return found

    def _opened(self, profile: Path | None = None) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._measurement.threads
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._on_gpu:
            providers = [(_CUDA, {"device_id": _gpu(self._measurement)})]
        return onnxruntime.InferenceSession(self._path, options, providers=providers)

    def _bound(self, session: Any) -> Callable[[], object]:
        if not self._on_gpu:
            return lambda: session.run(["logits"], {"images": self._images})
        device = _gpu(self._measurement)
        binding = session.io_binding()
        binding.bind_ortvalue_input("images", onnxruntime.OrtValue.ortvalue_from_numpy(self._images, "cuda", device))
        binding.bind_output("logits", "cuda", device)

        def call() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call

    @property
    def _on_gpu(self) -> bool:
        return self._measurement.runtime == "onnxruntime-cuda"


@contextmanager
def opened(network: nn.Module | Path, shape: tuple[int, int, int], measurement: Measurement) -> Iterator[OnnxNetwork]:
    """
    A network in eval mode, written as a student is exported, or an exported file itself; takes images `[n, *shape]`.

    Raises:
        UserError: this machine's onnxruntime has no such device.
        Unsupported: the network cannot be written as ONNX.
    """
    if measurement.runtime == "onnxruntime-cuda" and _CUDA not in onnxruntime.get_available_providers():
        raise UserError(
            "onnxruntime finds no GPU here (onnxruntime-gpu is not installed, or CUDA is missing); "
            "measure with `onnxruntime-cpu`, or on workers that have one",
            pointer="/runtime",
            allowed=["onnxruntime-cpu", "torch-cpu"],
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(measurement.batch, *shape, generator=generator)
    if isinstance(network, Path):
        yield OnnxNetwork(network, images.numpy(), measurement, {})
        return
    with tempfile.TemporaryDirectory(prefix="sth-latency-") as folder:
        path = Path(folder) / "network.onnx"
        origins = write_onnx(network, images, path)
        yield OnnxNetwork(path, images.numpy(), measurement, origins)


def _nodes(events: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Microseconds of every node, by its name and kind of operation, run after run."""
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            name = event["name"].removesuffix(_KERNEL).removesuffix(_BLOCKED)
            found.setdefault((name, event["args"]["op_name"]), []).append(event["dur"])
    return found


def _trimmed_mean(values: list[float]) -> float:
    """Of the middle half: whole microseconds are averaged, interruptions left out."""
    low, high = len(values) // 4, -(-3 * len(values) // 4)
    return float(np.mean(sorted(values)[low:high]))


def _gpu(measurement: Measurement) -> int:
    return torch.device(measurement.device).index or 0
