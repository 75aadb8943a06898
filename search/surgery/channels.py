"""Which channels of a network are the same channel, which stand and fall together, and which must stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from search.surgery.flow import Axis, Flow, Indices
from search.surgery.layers import Cut, Layer, Side


@dataclass(frozen=True)
class Channels:
    """
    All channels of a network.

    `layers` are in order of execution; a parameter or buffer used outside of any layer (a layer scale) is one of its
    own, called by its name. `labels [addresses]` are equal where channels are one; `bonds` are pairs of labels that
    can only be kept or cut together; `frozen` says of a label why its channels must all stay.
    """

    layers: Mapping[str, Layer]
    axes: Mapping[tuple[str, Side], Axis]
    labels: Indices
    bonds: tuple[Indices, Indices]
    frozen: Mapping[int, str]


def channels_of(flow: Flow) -> Channels:
    labels = connected(flow.size, flow.edges)
    frozen: dict[int, str] = {}
    for addresses, reason in flow.reasons:
        for label in np.unique(labels[addresses]):
            frozen.setdefault(int(label), reason)
    layers, axes = dict(flow.layers), dict(flow.axes)
    parts = [labels]
    size = flow.size
    for name, (start, shape) in flow.loose.items():
        own = labels[start : start + int(np.prod(shape))].reshape(shape)
        dim = _dimension(own)
        if dim is None:
            for label in np.unique(own):
                frozen.setdefault(int(label), f"how it is coupled to {name} is not understood")
            continue
        layers[name] = Layer({"out": shape[dim]}, (Cut("", dim, "out"),))
        axes[name, "out"] = Axis(name, "out", size, shape[dim])
        parts.append(np.moveaxis(own, dim, 0).reshape(shape[dim], -1)[:, 0])
        size += shape[dim]
    ones, others = (
        np.concatenate([labels[bond[side]] for bond in flow.bonds] or [np.zeros(0, np.int64)]) for side in (0, 1)
    )
    return Channels(layers, axes, np.concatenate(parts), (ones, others), frozen)


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


def _dimension(labels: Indices) -> int | None:
    """The only dimension along which the labels of a parameter change."""
    changing = [dim for dim in range(labels.ndim) if (labels != labels.take([0], axis=dim)).any()]
    return changing[0] if len(changing) == 1 else None
