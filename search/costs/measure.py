"""The cost of a network that exists: counted while it runs, knowing nothing of polynomials."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count(model: nn.Module, example: Tensor) -> dict[str, int]:
    """
    `{macs, flops, params}` of one image through `model` in evaluation mode; `example` is a batch `[n, c, h, w]`.

    macs and flops are those of `torch.utils.flop_counter` (convolutions and matrix products; 1 MAC = 2 FLOPs), params
    is the number of elements of all parameters. The model is left as it was.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(example[:1])
    finally:
        for module, training in modes.items():
            module.training = training
    flops = int(counter.get_total_flops())
    return {"macs": flops // 2, "flops": flops, "params": sum(parameter.numel() for parameter in model.parameters())}
