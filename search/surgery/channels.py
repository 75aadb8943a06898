"""
Which channels of a network are the same channel.

torch-pruning's dependency graph says what else must be cut when a channel of a layer is cut. Here that becomes plain
numbers: every channel of every layer's inputs and outputs gets an address, addresses that stand and fall together get
one label. Nothing outside this file knows torch-pruning.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch_pruning.dependency.node import Node
from torch_pruning.ops import _OutputOp

from search.errors import Unsupported
from search.surgery.layers import Cut, Layer, Side, layer_of, multiplications

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Axis:
    """The channels of one side of a layer; channel i has the address `start + i`."""

    layer: str
    side: Side
    start: int
    size: int

    @property
    def addresses(self) -> slice:
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Channels:
    """
    All channels of a network.

    `layers` are in order of execution; a parameter that belongs to no layer torch knows (a layer scale) is one of its
    own, called by the parameter's name. `labels [addresses]` are equal where channels are one; `frozen` says of a label
    why its channels must all stay. `positions` is `layers.multiplications`, summed over the calls of a layer.
    """

    layers: Mapping[str, Layer]
    axes: Mapping[tuple[str, Side], Axis]
    labels: Indices
    frozen: Mapping[int, str]
    positions: Mapping[str, int]


def channels_of(model: nn.Module, example: Tensor, *, deadline: float) -> Channels:
    """
    Traces `model` (in evaluation mode, all parameters requiring gradients) on one image `[1, c, h, w]`.

    Raises:
        Unsupported: the network cannot be traced, or not before `deadline` (by `time.thread_time`).
    """
    layers, positions = _executed(model, example)
    graph = _traced(model, example, deadline)
    layers |= {
        name: Layer({"out": parameter.shape[dim]}, (Cut("", dim, "out"),))
        for name, parameter, dim in _loose_parameters(graph)
    }
    axes: dict[tuple[str, Side], Axis] = {}
    start = 0
    for name, layer in layers.items():
        for side, size in layer.channels.items():
            axes[name, side] = Axis(name, side, start, size)
            start += size
    _bound(graph, max((axis.size for axis in axes.values()), default=0), deadline)
    return _Labeller(model, graph, layers, axes, start, deadline).channels(positions)


def connected(size: int, edges: Sequence[tuple[Indices, Indices]]) -> Indices:
    """The component of each of `size` points, given edges between them; components are numbered by first point."""
    starts = np.concatenate([edge[0] for edge in edges]) if edges else np.zeros(0, dtype=np.int64)
    ends = np.concatenate([edge[1] for edge in edges]) if edges else np.zeros(0, dtype=np.int64)
    matrix = coo_array((np.ones(len(starts), dtype=np.int8), (starts, ends)), shape=(size, size))
    found = connected_components(matrix, directed=False)[1]
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    numbered: Indices = rank[inverse]
    return numbered


def _executed(model: nn.Module, example: Tensor) -> tuple[dict[str, Layer], dict[str, int]]:
    """The layers that a forward pass calls, in that order, and how much they multiply."""
    layers: dict[str, Layer] = {}
    positions: dict[str, int] = {}

    def note(name: str, layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            layers[name] = layer
            positions[name] = positions.get(name, 0) + multiplications(module, output)

        return hook

    hooks = []
    for name, module in model.named_modules():
        layer = layer_of(module)
        if layer is not None:
            hooks.append(module.register_forward_hook(note(name, layer)))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return layers, positions


class _Graph(torch_pruning.DependencyGraph):  # type: ignore[misc]
    """The dependency graph, given up when time runs out: its shape inference is exponential on some networks."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline
        self._asked = 0

    def get_out_channels(self, module_or_node: Any) -> Any:
        self._look_at_the_clock()
        return super().get_out_channels(module_or_node)

    def get_in_channels(self, module_or_node: Any) -> Any:
        self._look_at_the_clock()
        return super().get_in_channels(module_or_node)

    def _look_at_the_clock(self) -> None:
        self._asked += 1
        if self._asked % 64 == 0:  # asking the system costs more than the answer does
            _check(self._deadline)


class _Settled(dict[Any, Node]):
    """
    Nodes by module, once the graph is built.

    torch-pruning works out all index maps anew for every group, because something may have been pruned since; here
    nothing ever is. It goes through `items` for that, and finds none (170 groups of a DenseNet: 22 s less).
    """

    def items(self) -> Any:
        return ()


class _Tangled(Exception):
    """Following a channel leads to more channels than any layer has: the graph is wrong here."""


@dataclass(frozen=True, slots=True)
class _Bounded:
    """An index map that is not followed for ever, as torch-pruning would where tensors are reshaped back and forth."""

    map: Callable[[Any], Any]
    largest: int
    deadline: float

    def __call__(self, indices: Any) -> Any:
        if len(indices) > self.largest:
            raise _Tangled
        _check(self.deadline)
        return self.map(indices)


def _check(deadline: float) -> None:
    if time.thread_time() > deadline:
        raise Unsupported(
            "the network could not be surveyed in time: its channels are coupled in ways that tracing does not end on "
            "(attention over windows is one). Choose a convolutional network"
        )


def _traced(model: nn.Module, example: Tensor, deadline: float) -> _Graph:
    graph = _Graph(deadline)
    image = nn.Parameter(example)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(
                model,
                image,
                # One multiplication, so that the image may be changed in place; another, so that the logits are a node.
                forward_fn=lambda network, images: network(images * 1.0) * 1.0,
                unwrapped_parameters=[(image, 1)],  # so that what is coupled to the image's channels is known
                verbose=False,
            )
    except Unsupported:
        raise
    except Exception as error:
        raise Unsupported(
            f"the network's channels cannot be traced ({type(error).__name__}: {error}). Networks that reorder "
            "channels by reshaping, as ShuffleNet does, are among these; choose another network"
        ) from error
    graph.image = image
    graph.module2node = _Settled(graph.module2node)
    return graph


def _loose_parameters(graph: _Graph) -> list[tuple[str, nn.Parameter, int]]:
    """Parameters used directly, by name, and the dimension that follows a layer's channels."""
    found = []
    for name, parameter in graph.model.named_parameters():
        if parameter in graph.module2node and parameter is not graph.image:
            found.append((name, parameter, int(graph.module2node[parameter].pruning_dim)))
    return found


def _bound(graph: _Graph, largest: int, deadline: float) -> None:
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.index_mapping = [
                None if step is None else _Bounded(step, largest, deadline) for step in dependency.index_mapping
            ]


class _Labeller:
    """Follows the graph from every layer that makes channels, and gathers what was found into labels."""

    def __init__(
        self,
        model: nn.Module,
        graph: _Graph,
        layers: Mapping[str, Layer],
        axes: Mapping[tuple[str, Side], Axis],
        size: int,
        deadline: float,
    ) -> None:
        self._graph, self._layers, self._axes, self._size, self._deadline = graph, layers, axes, size, deadline
        self._names: dict[Any, str] = {module: name for name, module in model.named_modules() if name in layers}
        self._names |= {parameter: name for name, parameter in model.named_parameters() if name in layers}
        self._edges: list[tuple[Indices, Indices]] = []
        self._touched = np.zeros(size, dtype=bool)
        self._reasons: list[tuple[Indices, str]] = []

    def channels(self, positions: Mapping[str, int]) -> Channels:
        for name, layer in self._layers.items():
            if layer.mixes or layer.bundle is not None:
                _check(self._deadline)
                self._follow(name)
        labels = connected(self._size, self._edges)
        frozen: dict[int, str] = {}
        for addresses, reason in self._reasons:
            for label in np.unique(labels[addresses]):
                frozen.setdefault(int(label), reason)
        return Channels(self._layers, self._axes, labels, frozen, positions)

    def _follow(self, name: str) -> None:
        axis = self._axes[name, "out"]
        module = self._graph.model.get_submodule(name)
        if self._touched[axis.addresses].all():
            return
        if module not in self._graph.module2node:
            self._reasons.append((np.arange(axis.start, axis.start + axis.size), "does not lead to the logits"))
            return
        handler = self._graph.get_pruner_of_module(module).prune_out_channels
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                group = self._graph.get_pruning_group(module, handler, list(range(axis.size)))
        except _Tangled:
            reason = "how its channels are reordered by reshaping is not understood"
            self._reasons.append((np.arange(axis.start, axis.start + axis.size), reason))
            return
        for item in group:
            roots = np.asarray(item.root_idxs, dtype=np.int64) + axis.start
            self._couple(item.dep.target, item.dep.handler, roots, np.asarray(item.idxs, dtype=np.int64))

    def _couple(self, node: Node, handler: Any, roots: Indices, indices: Indices) -> None:
        target = node.module
        if isinstance(target, _OutputOp):
            self._reasons.append((roots, "its channels are the logits"))
        elif target is self._graph.image:
            self._reasons.append((roots, "its channels are added to those of the image"))
        elif target in self._names:
            side: Side = "out" if self._graph.is_out_channel_pruning_fn(handler) else "in"
            axis = self._axes.get((self._names[target], side))
            if axis is None or len(indices) != len(roots) or indices.min() < 0 or indices.max() >= axis.size:
                self._reasons.append((roots, f"how it is coupled to {self._names[target]} is not understood"))
                return
            self._edges.append((roots, indices + axis.start))
            self._touched[indices + axis.start] = True
        elif isinstance(target, nn.Module) and any(True for _ in target.parameters()):
            self._reasons.append((roots, f"it is coupled to a {type(target).__name__}, which is not understood"))
