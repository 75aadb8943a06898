"""
Cheaper operators for a convolution, with weights that come from its own.

- a smaller kernel: the centre of the kernel (as in Once-for-All, Cai et al., 2020);
- low rank: k x k to r channels, then 1 x 1, the best such pair by the singular values of the kernel written as a
  matrix `[out, in * k * k]` (Denton et al., 2014);
- depthwise separable: one k x k filter per input channel, then 1 x 1, for every input channel the best rank one of
  its `[out, k * k]` slice (Guo et al., 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from search.surgery.flow import Indices

SEPARABLE = 0
DENSE = 8
"""The choice that leaves a convolution as it is; between lies a rank in eighths of the channels it writes."""
RANKS = (2, 4)


def rank_of(choice: int, channels: int) -> int:
    """
    The rank that an operator's choice means for a convolution that writes `channels`; 0 when it means none.

    Of however few channels, two choices are two ranks, so that one network has one spelling.
    """
    return max(choice // 2, channels * choice // DENSE) if choice in RANKS else 0


def is_replaceable(module: nn.Module) -> bool:
    """Whether the module is a plain convolution that a cheaper operator could stand for."""
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.out_channels >= RANKS[-1]
        and module.kernel_size[0] * module.kernel_size[1] > 1
        and module.padding_mode == "zeros"
    )


def kernels_of(module: nn.Module, least: int) -> tuple[int, ...]:
    """Odd kernel sizes, at least `least`, to which the kernel can be cropped; rising, its own the last."""
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return ()
    size = module.kernel_size[0]
    if module.kernel_size != (size, size) or size % 2 == 0:
        return ()
    return tuple(smaller for smaller in range(least | 1, size + 1, 2) if min(_padding(module, smaller)) >= 0)


def _padding(conv: nn.Conv2d, size: int) -> tuple[int, int]:
    """What keeps the positions of a kernel that is cropped to `size`."""
    less = [
        dilation * (own - size) // 2 if own > 1 else 0
        for own, dilation in zip(conv.kernel_size, conv.dilation, strict=True)
    ]
    if isinstance(conv.padding, str):
        raise TypeError("padding given by name follows the kernel of itself")
    return conv.padding[0] - less[0], conv.padding[1] - less[1]


def cropped(weight: Tensor, size: int | None) -> Tensor:
    """The centre of a kernel `[..., k, k]`."""
    if size is None or size == weight.shape[-1]:
        return weight
    edge = (weight.shape[-1] - size) // 2
    return weight[..., edge : edge + size, edge : edge + size]


def crop(conv: nn.Conv2d, size: int) -> None:
    """Tells a convolution, whose weight is cropped elsewhere, of its new size."""
    told: Any = conv
    told.padding = _padding(conv, size)
    told.kernel_size = (size, size)


FactorKey = tuple[str, int | None, bool]
"""A layer, the size its kernel is cropped to, and whether the factors are those of a separable convolution."""


@dataclass(frozen=True)
class Factors:
    """
    Factors of the kernels of one network, worked out when first asked for, but for those that are `known`. The
    network's weights must not change.
    """

    model: nn.Module
    known: Mapping[FactorKey, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _worked_out: dict[FactorKey, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, layer: str, size: int | None, *, separable: bool) -> tuple[Tensor, Tensor]:
        """
        Of the kernel of `layer`, cropped to `size`: `[ranks, in, k, k]` and `[out, ranks]`, by falling singular value;
        of a separable one `[in, 1, k, k]` and `[out, in]`.
        """
        key = (layer, size, separable)
        if key in self.known:
            return self.known[key]
        if key not in self._worked_out:
            weight = cropped(self.model.get_parameter(f"{layer}.weight").detach(), size)
            self._worked_out[key] = _separable(weight) if separable else _low_rank(weight)
        return self._worked_out[key]


def _low_rank(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The singular vectors by way of the smaller Gram matrix, which is many times faster than of the kernel itself."""
    out, *shape = weight.shape
    matrix = weight.reshape(out, -1).double()
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    vectors = vectors.flip(1)
    scale = values.flip(0).clamp_min(1e-30).sqrt().sqrt()
    first = (vectors.T @ matrix) / scale[:, None]
    return first.reshape(out, *shape).to(weight.dtype), (vectors * scale).to(weight.dtype)


def _separable(weight: Tensor) -> tuple[Tensor, Tensor]:
    out, inputs, *shape = weight.shape
    slices = weight.double().permute(1, 0, 2, 3).reshape(inputs, out, -1)
    values, vectors = torch.linalg.eigh(slices.mT @ slices)
    kernel = vectors[:, :, -1]
    scale = values[:, -1].clamp_min(1e-30).sqrt().sqrt()
    point = (slices @ kernel[:, :, None]).squeeze(2) / scale[:, None]
    return (kernel * scale[:, None]).reshape(inputs, 1, *shape).to(weight.dtype), point.T.to(weight.dtype)


def pair(
    choice: int, factors: tuple[Tensor, Tensor], inputs: Indices | None, outputs: Indices | None
) -> tuple[Tensor, Tensor]:
    """
    The weights `[ranks, in, k, k]` and `[out, ranks]` of the two convolutions that stand for one, whose channels are
    cut to `inputs` and `outputs` (None: all); of a separable one `[in, 1, k, k]` and `[out, in]`.
    """
    first, second = factors
    if outputs is not None:
        second = second[torch.from_numpy(outputs)]
    columns = slice(None) if inputs is None else torch.from_numpy(inputs)
    if choice == SEPARABLE:
        return first[columns], second[:, columns]
    rank = rank_of(choice, second.shape[0])
    return first[:rank][:, columns], second[:, :rank]


def replacement(
    conv: nn.Conv2d, choice: int, first: Tensor, second: Tensor, bias: Tensor | None, size: int | None
) -> nn.Sequential:
    """
    What stands for `conv`, its kernel cropped to `size`, when its operator is `choice` and `pair` gives its weights.

    Its children are `spatial`, which has the convolution's stride, padding and dilation, and `channels`, 1 x 1.
    """
    groups = first.shape[0] if choice == SEPARABLE else 1
    placed: Mapping[str, Any] = {
        "stride": conv.stride,
        "padding": conv.padding if size is None else _padding(conv, size),
        "dilation": conv.dilation,
    }
    kernel = (int(first.shape[2]), int(first.shape[3]))
    with torch.device("meta"):  # weights are given below
        spatial = nn.Conv2d(first.shape[1] * groups, first.shape[0], kernel, groups=groups, bias=False, **placed)
        channels = nn.Conv2d(first.shape[0], second.shape[0], 1, bias=bias is not None)
    spatial.weight = nn.Parameter(first.detach().clone(memory_format=torch.contiguous_format))
    channels.weight = nn.Parameter(second.detach()[:, :, None, None].clone(memory_format=torch.contiguous_format))
    if bias is not None:
        channels.bias = nn.Parameter(bias.detach().clone())
    sequence = nn.Sequential()
    sequence.add_module("spatial", spatial)
    sequence.add_module("channels", channels)
    return sequence.train(conv.training)


class Resized(nn.Module):
    """A network that looks at its images in another size, `[n, c, size, size]`."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.resize = nn.Upsample(size=(size, size), mode="bilinear", align_corners=False)
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(self.resize(images))
