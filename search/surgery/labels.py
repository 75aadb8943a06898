"""
Labels: what goes beside a tensor, says of every element which channel it belongs to, and moves with it.

Labels are whole numbers: 0 for what is no channel (constants, the image), else the address of a channel plus one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SAME = frozenset(
    ["_log_softmax", "_softmax", "_to_copy", "alias", "as_strided", "clone", "contiguous", "detach", "lift_fresh"]
)
"""One tensor in, one of the same shape out; what happens along channels does not depend on their order."""
POINTWISE = frozenset(
    ["_prelu_kernel", "copy", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "softplus"]
)
"""Operations element by element that torch does not tag so."""
FRESH = ("empty", "full", "new_", "ones", "rand", "zeros")
MOVES = frozenset(
    [
        "_reshape_alias",
        "_unsafe_view",
        "cat",
        "constant_pad_nd",
        "expand",
        "flip",
        "permute",
        "repeat",
        "roll",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "t",
        "transpose",
        "unbind",
        "unsqueeze",
        "view",
    ]
)
RESHAPES = frozenset({"_reshape_alias", "_unsafe_view", "view"})
FLAT = frozenset(
    [
        "_adaptive_avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "avg_pool2d",
        "max_pool2d",
        "max_pool2d_with_indices",
        "reflection_pad2d",
        "replication_pad2d",
        "upsample_bicubic2d",
        "upsample_bilinear2d",
        "upsample_nearest2d",
        "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa",
        "_upsample_nearest_exact2d",
    ]
)
"""Every channel of the output follows from that channel of the input; the last two dimensions are the picture."""
REDUCTIONS = frozenset(
    [
        "amax",
        "amin",
        "linalg_vector_norm",
        "logsumexp",
        "max",
        "mean",
        "min",
        "norm",
        "prod",
        "std",
        "sum",
        "var",
        "var_mean",
    ]
)


@dataclass(frozen=True, slots=True)
class Mark:
    """
    The labels of a tensor's elements, of its shape. Along dimensions where they do not change they have stride 0.

    In `lanes` labels that must be kept or cut together are equal, so that it changes along one dimension at most.
    """

    labels: Tensor
    lanes: Tensor


def is_pointwise(func: Any, plain: str) -> bool:
    """Whether an operation, `plain` its name without the mark of working in place, goes element by element."""
    return torch.Tag.pointwise in func.tags or plain in POINTWISE


def with_rank(labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """With further dimensions of size 1 in front."""
    return labels[(None,) * (len(shape) - labels.dim())]


def changes(labels: Tensor) -> list[int]:
    """The dimensions along which labels change."""
    return [
        dim
        for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True))
        if size > 1 and stride and not _constant(labels, dim)
    ]


def _constant(labels: Tensor, dim: int) -> bool:
    small = once(labels)
    return bool((small == small.narrow(dim, 0, 1)).all())


def compact(labels: Tensor) -> Tensor:
    """The same labels, with stride 0 along every dimension where they do not change."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride and _constant(labels, dim):
            labels = labels.narrow(dim, 0, 1).expand(labels.shape)
    return labels


def once(labels: Tensor, *others: Tensor) -> Tensor:
    """`labels` once along every dimension where neither they nor `others` of the same shape change."""
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and not any(one.stride(dim) for one in (labels, *others)):
            labels = labels.narrow(dim, 0, 1)
    return labels
