"""
How training uses a device: memory layout, precision, and what is kept there.

What is best on a CPU was measured (docs/decisions/0004, `benchmarks/layouts.py`). On CUDA, where nothing was, it is
what its libraries are made for.

Nothing is compiled or captured. A trial trains a network that was never trained before, for some hundred steps:
`torch.compile` would work for minutes to make a tenth of them faster, and a CUDA graph, captured anew for every network
and stretch, saves launches that do not matter once several trials share a GPU (`gpus_per_trial` below 1) and one's
launches go on beside another's computing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_RESIDENT_SHARE = 0.25
"""Of the memory that is free: the rest is for the network, and for the other trials of a shared GPU."""


@dataclass(frozen=True, slots=True)
class Usage:
    """
    `layout` of networks and images while they are trained; `autocast`: the precision of the forward pass where it is
    not float32. Loss, weights, optimiser and every score are float32 everywhere.
    """

    layout: torch.memory_format
    autocast: torch.dtype | None


def usage(kind: str, *, bf16: bool) -> Usage:
    """For a kind of device ("cpu", "cuda"), which computes in bfloat16 or does not."""
    if kind != "cuda":
        return Usage(torch.contiguous_format, None)
    return Usage(torch.channels_last, torch.bfloat16 if bf16 else None)


def usage_of(device: torch.device) -> Usage:
    """As `usage`, for a device of this machine."""
    return usage(device.type, bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))


def worth_keeping(data: int, free: int) -> bool:
    """Whether `data` bytes are kept on a device with `free` bytes, or copied there batch by batch."""
    return data <= _RESIDENT_SHARE * free


def free_bytes(device: str) -> int:
    """Memory of a CUDA device that nobody uses now."""
    return torch.cuda.mem_get_info(device)[0]
