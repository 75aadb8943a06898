"""A network as torch runs it, call by call, timed as a whole and block by block."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from search.errors import UserError
from search.limits import Measurement

_PROFILED_RUNS = 40
_WARM_RUNS = 5


class EagerNetwork:
    """
    One network with a batch of images to answer.

    On a GPU the images lie there already and a call lasts until the logits do too.
    """

    def __init__(self, network: nn.Module, images: Tensor, wait: Callable[[], None]) -> None:
        self._network, self._images, self._wait = network, images, wait

    def run(self) -> None:
        """Answers the batch."""
        with torch.inference_mode():
            self._network(self._images)
        self._wait()

    def profile(self, blocks: Collection[str]) -> dict[str, float]:
        """Nanoseconds of one batch by block, "" for what belongs to none; a block's time is without inner ones'."""
        stopwatch = _Stopwatch(self._wait)
        hooks: list[RemovableHandle] = []
        for name, module in self._network.named_modules():
            if name in blocks and name:
                hooks.append(module.register_forward_pre_hook(stopwatch.entering(name)))
                hooks.append(module.register_forward_hook(stopwatch.leaving))
        laps: dict[str, list[int]] = {name: [] for name in [*blocks, ""]}
        try:
            for run in range(_WARM_RUNS + _PROFILED_RUNS):
                spent = stopwatch.lap(self.run)
                if run >= _WARM_RUNS:
                    for name, times in laps.items():
                        times.append(spent.get(name, 0))
        finally:
            for hook in hooks:
                hook.remove()
        return {name: float(np.median(times)) for name, times in laps.items()}


class _Stopwatch:
    """Where the time goes, by the innermost block that is running; blocks may be nested and called more than once."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self._inside: list[str] = []
        self._spent: dict[str, int] = {}
        self._since = 0

    def lap(self, call: Callable[[], None]) -> dict[str, int]:
        self._inside, self._spent, self._since = [""], {}, time.perf_counter_ns()
        call()
        self._note()
        return self._spent

    def entering(self, name: str) -> Callable[[nn.Module, object], None]:
        def enter(module: nn.Module, args: object) -> None:
            self._note()
            self._inside.append(name)

        return enter

    def leaving(self, module: nn.Module, args: object, output: object) -> None:
        self._note()
        self._inside.pop()

    def _note(self) -> None:
        self._wait()
        now = time.perf_counter_ns()
        self._spent[self._inside[-1]] = self._spent.get(self._inside[-1], 0) + now - self._since
        self._since = now


@contextmanager
def opened(network: nn.Module, shape: tuple[int, int, int], measurement: Measurement) -> Iterator[EagerNetwork]:
    """
    A network in eval mode that takes images `[n, *shape]`, with the threads asked for, which are put back afterwards.

    Raises:
        UserError: this machine has no such device.
    """
    device = torch.device(measurement.device if measurement.runtime == "torch-cuda" else "cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"torch finds no GPU `{measurement.device}` here; measure with `torch-cpu`, or on workers that have one",
            pointer="/runtime",
            allowed=["onnxruntime-cpu", "torch-cpu"],
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(measurement.batch, *shape, generator=generator).to(device)
    home = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    threads = torch.get_num_threads()
    network.to(device)
    torch.set_num_threads(measurement.threads)
    try:
        yield EagerNetwork(network, images, torch.cuda.synchronize if device.type == "cuda" else _nothing)
    finally:
        torch.set_num_threads(threads)
        network.to(home)


def _nothing() -> None:
    """A processor is done when the call returns."""
