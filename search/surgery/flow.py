"""
Where channels flow: a network is run once on numbers, and beside every tensor goes one of the same shape that tells
which channel each of its elements belongs to.

An operation that moves numbers moves these labels alike; one that works element by element says that the channels it
meets are the same; a layer of `search.surgery.layers` ends the channels it reads and begins new ones. What is not
understood freezes the channels that go in: partly understood networks are cut where they are understood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from search.errors import Unsupported
from search.surgery.labels import (
    FLAT,
    FRESH,
    MOVES,
    REDUCTIONS,
    RESHAPES,
    SAME,
    Mark,
    changes,
    compact,
    is_pointwise,
    once,
    with_rank,
)
from search.surgery.layers import Layer, Side, layer_of, multiplications

Indices = NDArray[np.int64]

_LARGEST_PARAMETER = 1 << 16
"""Elements of a parameter used outside of layers that are looked at one by one."""


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


@dataclass(slots=True)
class Value:
    """A piece of memory that an operation filled, and the labels of its float32 elements where they are known."""

    bytes: int
    labels: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, by the innermost module that it belongs to, and the values that it reads and writes."""

    module: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass
class Flow:
    """
    All that one run told.

    `edges` are pairs of addresses of one channel, `bonds` of channels that can only be kept or cut together, `reasons`
    say of addresses why they must all stay. `layers` are in order of execution; `loose` are parameters and buffers used
    outside of any layer, with the address of their first element. `positions` is `layers.multiplications`, summed over
    the calls of a layer; `macs` are multiplications outside of layers, by module.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    axes: dict[tuple[str, Side], Axis] = field(default_factory=dict)
    loose: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    edges: list[tuple[Indices, Indices]] = field(default_factory=list)
    bonds: list[tuple[Indices, Indices]] = field(default_factory=list)
    reasons: list[tuple[Indices, str]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    values: dict[int, Value] = field(default_factory=dict)
    outputs: frozenset[int] = frozenset()
    size: int = 0


def flow_of(model: nn.Module, image: Tensor, *, deadline: float = math.inf) -> Flow:
    """
    Runs `model` (in evaluation mode) on one image `[1, c, h, w]`; its outputs may be tensors in any nesting.

    Raises:
        Unsupported: not before `deadline`, by `time.thread_time`.
    """
    follower = _Follower(model, deadline)
    hooks = [hook for name, module in model.named_modules() for hook in follower.hooks(name, module)]
    try:
        with torch.no_grad(), follower:
            follower.begin(image)
            outputs = model(image)
    finally:
        for hook in hooks:
            hook.remove()
    follower.end(_tensors(outputs))
    return follower.flow


def break_of(model: nn.Module, image: Tensor) -> tuple[int, str] | None:
    """
    Where a run of `model` ends before its time: the number of steps it has taken, which are those of `Flow.steps` in a
    network that takes the same ones, and what went wrong. None when it comes through.
    """
    watcher = _Watcher(model)
    try:
        with torch.no_grad(), watcher:
            watcher.begin(image)
            model(image)
    except Exception as error:  # whatever a network does when it is cut wrongly
        return len(watcher.flow.steps), f"{type(error).__name__}: {str(error)[:200]}"
    return None


def check(deadline: float) -> None:
    """Raises `Unsupported` when the thread has computed for longer than `deadline` allows."""
    if time.thread_time() > deadline:
        raise Unsupported("the network could not be surveyed in time; give the dataset a smaller `size`")


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a network, and which memory it reads and writes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Flow()
        self._weights = {_memory(tensor) for tensor in (*model.parameters(), *model.buffers())}
        """Memory of weights and of what follows from weights alone."""
        self._kept: list[Any] = []
        """Memory is not given back before the end, so that its address names it."""
        self._path: list[str] = [""]

    def begin(self, image: Tensor) -> None:
        self.flow.values[_memory(image)] = Value(image.untyped_storage().nbytes())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._remember(_tensors((args, kwargs)), _tensors(output))
        return output

    def _remember(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        reads = {_memory(tensor) for tensor in inputs} - self._weights
        writes = {_memory(tensor): tensor for tensor in outputs}
        if not reads:
            self._weights |= writes.keys() - self.flow.values.keys()
            self._kept += [tensor.untyped_storage() for tensor in outputs]
            return
        for memory, tensor in writes.items():
            if memory not in self.flow.values and memory not in self._weights:
                self.flow.values[memory] = Value(tensor.untyped_storage().nbytes())
                self._kept.append(tensor.untyped_storage())
        known = self.flow.values.keys()
        self.flow.steps.append(Step(self._path[-1], tuple(sorted(reads & known)), tuple(sorted(writes.keys() & known))))


class _Follower(_Watcher):  # type: ignore[no-untyped-call]
    """Follows channels through every operation below the layers of a network."""

    def __init__(self, model: nn.Module, deadline: float) -> None:
        super().__init__(model)
        self._deadline = deadline
        self._marks: Any = WeakTensorKeyDictionary()
        self._names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        self._inside = 0

    def end(self, outputs: Sequence[Tensor]) -> None:
        for output in outputs:
            self._freeze(self._mark(output).labels, "its channels are the network's output")
        self.flow.outputs = frozenset(_memory(output) for output in outputs)

    def hooks(self, name: str, module: nn.Module) -> Iterator[Any]:
        layer = layer_of(module)

        def enter(_: nn.Module, __: Any) -> None:
            self._path.append(name)
            self._inside += layer is not None

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            self._path.pop()
            self._inside -= layer is not None
            if layer is not None and not self._inside:
                with _disable_current_modes():  # what is done with labels is not the network's doing
                    self._layer(name, module, layer, next(iter((*args, *kwargs.values()))), output)

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave, with_kwargs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        check(self._deadline)
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(output)
        self._remember(inputs, outputs)
        if not self._inside:
            if func.overloadpacket in flop_registry:
                macs = int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=output)) // 2
                self.flow.macs[self._path[-1]] = self.flow.macs.get(self._path[-1], 0) + macs
            self._follow(func, args, kwargs, inputs, outputs)
        return output

    # Labels

    def _mark(self, tensor: Tensor) -> Mark:
        mark: Mark | None = self._marks.get(tensor)
        if mark is not None:
            return mark
        labels = torch.zeros((), dtype=torch.int64).expand(tensor.shape)
        name = self._names.get(id(tensor))
        if name is not None and 1 < tensor.numel() <= _LARGEST_PARAMETER:
            if name not in self.flow.loose:
                self.flow.loose[name] = (self.flow.size, tuple(tensor.shape))
                self.flow.size += tensor.numel()
            first = self.flow.loose[name][0] + 1
            labels = torch.arange(first, first + tensor.numel()).reshape(tensor.shape)
        return Mark(labels, labels)

    def _set(self, tensor: Tensor, mark: Mark) -> None:
        self._marks[tensor] = mark
        value = self.flow.values.get(_memory(tensor))
        if value is not None and value.bytes == 4 * tensor.numel():
            value.labels = mark.labels

    def _freeze(self, labels: Tensor, reason: str) -> None:
        found: Indices = torch.unique(once(labels)).numpy()
        found = found[found > 0] - 1
        if len(found):
            self.flow.reasons.append((found, reason))

    def _tie(self, pairs: list[tuple[Indices, Indices]], ones: Tensor, others: Tensor) -> None:
        """Where both are channels, they are added to `pairs`."""
        both = torch.stack([ones.reshape(-1), others.reshape(-1)])
        both = both[:, (both[0] != both[1]) & (both > 0).all(0)]
        if both.numel():
            one, other = torch.unique(both, dim=1).numpy() - 1
            pairs.append((one, other))

    def _follow(self, func: Any, args: Any, kwargs: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        name = func.overloadpacket.__name__
        plain = name.rstrip("_") if name.endswith("_") else name
        if plain == "copy":
            self._set(outputs[0], self._matched(inputs[1:], outputs[0]))
        elif plain in SAME and inputs[0].shape == outputs[0].shape:
            self._set(outputs[0], self._mark(inputs[0]))
        elif plain in MOVES:
            self._move(func, plain, args, kwargs, outputs)
        elif plain == "native_channel_shuffle":
            self._shuffle(inputs[0], args[1], outputs[0])
        elif plain in FLAT:
            self._flat(inputs[0], outputs[0], name)
        elif plain == "roi_align":
            self._pooled(inputs[0], inputs[1], outputs[0])
        elif plain in REDUCTIONS:
            self._reduce(func, args, kwargs, outputs)
        elif is_pointwise(func, plain):
            self._set(outputs[0], self._matched(inputs, outputs[0]))
        elif not name.startswith(FRESH):
            for tensor in inputs:
                if tensor in self._marks:
                    self._freeze(self._marks[tensor].labels, f"it goes through `{name}`, which is not understood")

    def _matched(self, inputs: Sequence[Tensor], output: Tensor) -> Mark:
        """Of an operation element by element: the channels that meet are one channel."""
        result = Mark(*(torch.zeros((1,) * output.dim(), dtype=torch.int64),) * 2)
        for tensor in inputs:
            if tensor.dim():
                shape = (1,) * (output.dim() - tensor.dim()) + tuple(tensor.shape)
                mark = self._mark(tensor)
                result = self._met(result, Mark(with_rank(mark.labels, shape), with_rank(mark.lanes, shape)))
        return Mark(result.labels.expand(output.shape), result.lanes.expand(output.shape))

    def _met(self, one: Mark, other: Mark) -> Mark:
        """Two operands of one operation. Along a dimension of size 1 an operand is spread and says nothing."""
        shape = np.broadcast_shapes(one.labels.shape, other.labels.shape)
        for narrow, wide in ((one, other), (other, one)):
            if any(narrow.labels.shape[dim] == 1 for dim in changes(wide.lanes)):
                self._freeze(narrow.labels, "it is spread over other channels")
                return Mark(wide.labels.expand(shape), wide.lanes.expand(shape))
        ones, others = one.labels.expand(shape), other.labels.expand(shape)
        small, smaller = once(ones, others), once(others, ones)
        self._tie(self.flow.edges, small, smaller)
        lonely = (small > 0) != (smaller > 0)
        for labels in (small, smaller):
            self._freeze(labels[lonely], "its channels are combined with numbers that are no channels")
        first = one if bool((small > 0).any()) else other
        return Mark(first.labels.expand(shape), first.lanes.expand(shape))

    def _move(self, func: Any, name: str, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> None:
        if name in ("cat", "stack"):
            marks = [self._mark(tensor) for tensor in args[0]]
            rest = args[1:]
            labels = func([mark.labels for mark in marks], *rest, **kwargs)
            lanes = func([mark.lanes for mark in marks], *rest, **kwargs)
            return self._checked(outputs[0], labels, lanes)
        mark, rest = self._mark(args[0]), args[1:]
        if name == "constant_pad_nd":
            rest = (rest[0], 0)
        if name in RESHAPES:
            shape = tuple(outputs[0].shape)
            return self._checked(outputs[0], mark.labels.reshape(shape), mark.lanes.reshape(shape))
        changing = changes(mark.lanes)
        if changing and not self._movable(name, rest, kwargs, mark, changing[0], outputs):
            self._freeze(mark.labels, "its channels are picked by fixed numbers")
        labels, lanes = func(mark.labels, *rest, **kwargs), func(mark.lanes, *rest, **kwargs)
        pieces = zip(tree_leaves(labels), tree_leaves(lanes), strict=True)
        for output, (label, lane) in zip(outputs, pieces, strict=True):
            self._checked(output, label, lane)
        return None

    def _movable(self, name: str, rest: Any, kwargs: Any, mark: Mark, lane: int, outputs: Sequence[Tensor]) -> bool:
        """Whether the operation does to a cut tensor what it does to the whole; `lane` is where the channels are."""
        rank = mark.labels.dim()
        if name in ("split", "split_with_sizes"):
            dim = (rest[1] if len(rest) > 1 else kwargs.get("dim", 0)) % rank
            if dim != lane:
                return True
            sizes = {output.shape[dim] for output in outputs}
            if len(sizes) > 1:
                return False
            parts = torch.split(mark.labels, sizes.pop(), dim)
            for part in parts[1:]:
                self._tie(self.flow.bonds, once(parts[0], part), once(part, parts[0]))
            return True
        if name in ("select", "slice", "unbind"):
            dim = (rest[0] if rest else kwargs.get("dim", 0)) % rank
            return dim != lane or (name == "slice" and outputs[0].shape[dim] == mark.labels.shape[dim])
        if name in ("flip", "roll"):
            dims = rest[-1] if name == "flip" else (rest[1] if len(rest) > 1 else ())
            return bool(dims) and lane not in [dim % rank for dim in dims]
        return True

    def _checked(self, output: Tensor, labels: Tensor, lanes: Tensor) -> None:
        """Where channels are laid out along several dimensions, all but the last of these are kept whole."""
        lanes = compact(lanes)
        for dim in changes(lanes)[:-1]:
            first = labels.narrow(dim, 0, 1).expand(labels.shape)
            self._tie(self.flow.bonds, once(first, labels), once(labels, first))
            lanes = lanes.narrow(dim, 0, 1).expand(lanes.shape)
        self._set(output, Mark(compact(labels), lanes))

    def _shuffle(self, tensor: Tensor, groups: int, output: Tensor) -> None:
        mark, (n, c, *picture) = self._mark(tensor), tensor.shape
        shape = (n, groups, c // groups, *picture)
        grouped = torch.empty(shape, device="meta")
        self._checked(grouped, mark.labels.reshape(shape), mark.lanes.reshape(shape))
        found: Mark = self._marks[grouped]
        turned = (moved.transpose(1, 2).reshape(output.shape) for moved in (found.labels, found.lanes))
        self._checked(output, *turned)

    def _flat(self, tensor: Tensor, output: Tensor, name: str) -> None:
        mark = self._mark(tensor)
        if any(dim >= tensor.dim() - 2 for dim in changes(mark.labels)):
            return self._freeze(mark.labels, f"its channels lie across the picture in `{name}`")
        shape = output.shape
        labels, lanes = (one[..., :1, :1].expand(shape) for one in (mark.labels, mark.lanes))
        return self._set(output, Mark(labels, lanes))

    def _pooled(self, tensor: Tensor, regions: Tensor, output: Tensor) -> None:
        """Regions `[r, c, ...]` of pictures `[n, c, h, w]`: of every picture the channels are the same ones."""
        mark = self._mark(tensor)
        self._freeze(self._mark(regions).labels, "regions are read from it")
        if any(dim != 1 for dim in changes(mark.labels)):
            return self._freeze(mark.labels, "its channels lie across the picture in `roi_align`")
        labels, lanes = (one[:1, :, :1, :1].expand(output.shape) for one in (mark.labels, mark.lanes))
        return self._set(output, Mark(labels, lanes))

    def _reduce(self, func: Any, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> None:
        mark = self._mark(args[0])
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        dims, keep = given.get("dim"), given.get("keepdim", False)
        if dims is None or dims == []:
            return
        rank = mark.labels.dim()
        dims = sorted({dim % rank for dim in ([dims] if isinstance(dims, int) else dims)}, reverse=True)
        labels, lanes = mark.labels, mark.lanes
        for dim in dims:
            gone = dim in changes(labels)
            labels, lanes = (
                (torch.zeros_like(one.narrow(dim, 0, 1)) if gone else one.narrow(dim, 0, 1)) for one in (labels, lanes)
            )
            if not keep:
                labels, lanes = labels.squeeze(dim), lanes.squeeze(dim)
        for output in outputs:
            if output.shape == labels.shape:
                self._set(output, Mark(labels, lanes))

    # Layers

    def _layer(self, name: str, module: nn.Module, layer: Layer, tensor: Tensor, output: Tensor) -> None:
        if name not in self.flow.layers:
            self.flow.layers[name] = layer
            for side, size in layer.channels.items():
                self.flow.axes[name, side] = Axis(name, side, self.flow.size, size)
                self.flow.size += size
        self.flow.positions[name] = self.flow.positions.get(name, 0) + multiplications(module, output)
        mark = self._mark(tensor)
        if "in" not in layer.channels:
            self._read(mark, self.flow.axes[name, "out"], None)
            return self._set(output, mark)
        dim = tensor.dim() - 1 - (len(module.kernel_size) if isinstance(module, _ConvNd) else 0)
        self._read(mark, self.flow.axes[name, "in"], dim)
        axis = self.flow.axes[name, "out"]
        labels = torch.arange(axis.start + 1, axis.start + axis.size + 1)
        labels = labels.reshape(-1, *(1,) * (output.dim() - 1 - dim)).expand(output.shape)
        return self._set(output, Mark(labels, labels))

    def _read(self, mark: Mark, axis: Axis, dim: int | None) -> None:
        """A layer reads the channels along `dim`; along the one where there are any when it is None."""
        changing = changes(mark.lanes)
        if dim is None:
            dim = changing[0] if changing else 1
        if changing not in ([], [dim]):
            return self._freeze(mark.labels, f"{axis.layer} reads it along another dimension than its channels")
        labels = mark.labels[tuple(slice(None) if at == dim else slice(1) for at in range(mark.labels.dim()))]
        first = labels.expand(mark.labels.shape)
        self._tie(self.flow.edges, once(first, mark.labels), once(mark.labels, first))
        labels = labels.flatten()
        if labels.numel() != axis.size:
            return self._freeze(mark.labels, f"how it is read by {axis.layer} is not understood")
        return self._tie(self.flow.edges, labels, torch.arange(axis.start + 1, axis.start + axis.size + 1))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
