"""A finished student, as the files that its owner takes home."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from search.costs.measure import count
from search.export.bundle import write_bundle
from search.plugins import DatasetInfo
from search.spec import ExportSpec


@dataclass(frozen=True, slots=True)
class Written:
    """`cost` was counted on the network itself; `deviation` is how far logits, or scores, of exported forms differ."""

    files: Mapping[str, bytes]
    cost: Mapping[str, int]
    deviation: Mapping[str, float]


def write_student(student: nn.Module, info: DatasetInfo, export: ExportSpec) -> Written:
    """
    Raises:
        VerificationFailed: an exported form does not answer as the student does.
    """
    example = torch.randn(2, *info.shape, generator=torch.Generator().manual_seed(1))
    cost = count(student, example)
    with tempfile.TemporaryDirectory(prefix="sth-export-") as place:
        deviation = write_bundle(
            student, example, Path(place), onnx=export.onnx, classes=info.classes, mean=info.mean, std=info.std
        )
        files = {path.name: path.read_bytes() for path in sorted(Path(place).iterdir())}
    return Written(files, cost, deviation)
