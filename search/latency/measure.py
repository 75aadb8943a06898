"""How long networks take, measured in the runtime that was asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from torch import nn

from search.errors import UserError
from search.latency import eager, onnx
from search.latency.machine import environment
from search.latency.reading import Comparison, Reading, bursts, comparison, reading
from search.limits import Measurement

Network = nn.Module | Path
"""A module, or an exported ONNX file (`onnxruntime` runtimes only)."""
Shape = tuple[int, int, int]


class Warm(Protocol):
    """A network that a runtime has loaded, with a batch of images to answer."""

    def run(self) -> None:
        """Answers the batch; returns when the logits are there."""
        ...

    def profile(self, blocks: Collection[str]) -> Mapping[str, float]:
        """
        Nanoseconds of one batch spent in each of `blocks`, names of modules; "" is the rest. Watching costs time: the
        sum is more than an unwatched call takes.
        """
        ...


@contextmanager
def warm(network: Network, shape: Shape, measurement: Measurement) -> Iterator[Warm]:
    """
    Loads `network`, which takes images `[n, *shape]`, in evaluation mode; afterwards a module is in the mode it was in.

    Raises:
        UserError: this machine lacks what the measurement asks for; the pointer is a field of the measurement.
        Unsupported: the network cannot be written for the runtime.
    """
    on_gpu = measurement.runtime.endswith("-cuda")
    if on_gpu != measurement.device.startswith("cuda"):
        device = "cuda" if on_gpu else "cpu"
        raise UserError(
            f"the runtime `{measurement.runtime}` does not run on `{measurement.device}`; write `device: {device}`",
            pointer="/device",
            allowed=[device],
        )
    with _evaluating(network), _opened(network, shape, measurement) as ready:
        yield ready


def measure(network: Network, shape: Shape, measurement: Measurement) -> Reading:
    """
    The latency of one batch of images `[measurement.batch, *shape]`. Raises as `warm` does.

    The network is loaded once and called until there are enough samples; loading and warming up are not counted.
    """
    return measured([network], shape, measurement)[0]


def measured(networks: Sequence[Network], shape: Shape, measurement: Measurement) -> list[Reading]:
    """The same of several networks that take turns in one process."""
    with _all_warm(networks, shape, measurement) as ready:
        found = bursts([one.run for one in ready])
        return [reading(turns, measurement.statistic, environment(measurement)) for turns in found]


def compare(first: Network, second: Network, shape: Shape, measurement: Measurement) -> Comparison:
    """
    Two networks measured in turns. Raises as `warm` does.

    On a machine that others use too, times drift together and their ratio does not: "2x faster" is judged by this.
    """
    with _all_warm([first, second], shape, measurement) as ready:
        turns = bursts([one.run for one in ready], seconds=1.0)
        return comparison(turns[0], turns[1], measurement.statistic, environment(measurement))


def _opened(network: Network, shape: Shape, measurement: Measurement) -> AbstractContextManager[Warm]:
    if measurement.runtime.startswith("onnxruntime"):
        return onnx.opened(network, shape, measurement)
    if isinstance(network, Path):
        raise TypeError(f"{measurement.runtime} runs modules, not files")
    return eager.opened(network, shape, measurement)


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()} if isinstance(network, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _all_warm(networks: Sequence[Network], shape: Shape, measurement: Measurement) -> Iterator[list[Warm]]:
    with ExitStack() as stack:
        yield [stack.enter_context(warm(network, shape, measurement)) for network in networks]
