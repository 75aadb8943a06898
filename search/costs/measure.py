"""The cost of a network that exists: counted while it runs, knowing nothing of polynomials."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def count(model: nn.Module, example: Tensor) -> dict[str, int]:
    """
    The costs of one image through `model` in evaluation mode, by metric; `example` is a batch `[n, c, h, w]`.

    macs and flops are those of `torch.utils.flop_counter` (convolutions and matrix products; 1 MAC = 2 FLOPs), params
    is the number of elements of all parameters, weight_bytes what all parameters and buffers take in a file, without
    its header. activation_bytes is the most that is alive at once: every operation writes memory of its own unless it
    works in place, and memory is given back after it is read last; weights, what follows from weights alone, what
    nothing reads and the operation's own scratch space are not counted. The model is left as it was.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    memory, image = _Memory(model), example[:1].clone()
    memory.given(image)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            counter = stack.enter_context(FlopCounterMode(display=False))
            stack.enter_context(memory)
            outputs = model(image)
    finally:
        for module, training in modes.items():
            module.training = training
    flops = int(counter.get_total_flops())
    return {
        "macs": flops // 2,
        "flops": flops,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "weight_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "activation_bytes": memory.peak(outputs),
    }


class _Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which memory every operation reads and writes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._bytes: dict[int, int] = {}
        self._born: dict[int, int] = {}
        self._read: dict[int, int] = {}
        self._now = 0
        self._held: list[Any] = []
        """Nothing is given back while we look, so that no memory is used twice."""

    def given(self, image: Tensor) -> None:
        self._note([image], -1)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        read = {_storage(tensor) for tensor in _tensors((args, kwargs))} - self._weights
        if not read:
            self._weights |= {_storage(tensor) for tensor in _tensors(output)} - self._bytes.keys()
            self._held += [tensor.untyped_storage() for tensor in _tensors(output)]
            return output
        self._read |= dict.fromkeys(read, self._now)
        self._note(_tensors(output), self._now)
        self._now += 1
        return output

    def peak(self, outputs: Any) -> int:
        self._read |= dict.fromkeys((_storage(tensor) for tensor in _tensors(outputs)), self._now)
        changes = [0] * (self._now + 2)
        for memory, born in self._born.items():
            if memory in self._read:
                changes[max(born, 0)] += self._bytes[memory]
                changes[self._read[memory] + 1] -= self._bytes[memory]
        most = alive = 0
        for change in changes:
            alive += change
            most = max(most, alive)
        return most

    def _note(self, tensors: Iterable[Tensor], now: int) -> None:
        for tensor in tensors:
            memory = _storage(tensor)
            if memory not in self._weights and memory not in self._bytes:
                self._bytes[memory] = tensor.untyped_storage().nbytes()
                self._born[memory] = now
                self._held.append(tensor.untyped_storage())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
