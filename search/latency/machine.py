"""What a measured time depends on besides the network."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnxruntime
import torch

from search.limits import Measurement


def environment(measurement: Measurement) -> dict[str, str | int]:
    """The processor, how many cores of it this process may use, and the versions of what runs the network."""
    found: dict[str, str | int] = {
        "runtime": measurement.runtime,
        "threads": measurement.threads,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    }
    if measurement.runtime.startswith("onnxruntime"):
        found["onnxruntime"] = onnxruntime.__version__
    found["torch"] = torch.__version__  # it writes the ONNX file as well
    if measurement.runtime.endswith("-cuda"):
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """Linux tells the model by file only; its vector width stands there too, which decides more than the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vector = next((name for name in ("avx512f", "avx2") if name in facts.get("flags", "").split()), "")
    return " ".join(filter(None, (facts.get("model name") or platform.machine(), vector)))
