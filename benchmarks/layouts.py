"""
Milliseconds a training step by memory layout and precision, one thread.

    python -m benchmarks.layouts

`small_resnet` has channel counts in multiples of 8, so channels-last is safe to time here (docs/decisions/0004).
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from search.catalog import Catalog
from search.spec import Pick

LAYOUTS = {"plain": torch.contiguous_format, "channels-last": torch.channels_last}


def step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, bf16: bool) -> float:
    began = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    torch.set_num_threads(1)
    labels = torch.randint(0, 10, (64,))
    for layout, memory_format in LAYOUTS.items():
        model = Catalog().make("teachers", Pick(name="small_resnet")).build((3, 32, 32), 10)
        model = model.to(memory_format=memory_format)
        images = torch.randn(64, 3, 32, 32).contiguous(memory_format=memory_format)
        for bf16 in (False, True):
            step(model, images, labels, bf16=bf16)
            median = statistics.median(step(model, images, labels, bf16=bf16) for _ in range(5))
            print(f"{layout:15}{'bfloat16' if bf16 else 'float32':10}{median:8.0f} ms a step")


if __name__ == "__main__":
    main()
