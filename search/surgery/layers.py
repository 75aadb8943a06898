"""
The layers whose channels can be cut, and which dimension of which tensor follows their inputs or outputs.

A layer that is not here keeps all its channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

Side = Literal["in", "out"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Dimension `dim` of `tensor` (a parameter or buffer of the layer) has one entry per channel of `side`."""

    tensor: str
    dim: int
    side: Side


@dataclass(frozen=True, slots=True)
class Layer:
    """
    What a layer's tensors have to do with its channels.

    `bundle` is how many channels of a side can only be kept or cut together; bundles of both sides correspond (grouped
    convolutions). `mixes` says that every output depends on every input, so that outputs are channels of their own;
    only such layers give widths. `weighs` marks the tensor by which the importance of channels is judged.
    """

    channels: Mapping[Side, int]
    cuts: tuple[Cut, ...]
    bundle: Mapping[Side, int] | None = None
    mixes: bool = False
    weighs: str | None = None


def layer_of(module: nn.Module) -> Layer | None:
    """None when the module has no channels that could be cut, or is of a kind that is not understood."""
    match module:
        case _ConvTransposeNd():
            return None
        case _ConvNd():
            return _convolution(module)
        case nn.Linear():
            cuts: tuple[Cut, ...] = (Cut("weight", 0, "out"), Cut("bias", 0, "out"), Cut("weight", 1, "in"))
            sides: dict[Side, int] = {"in": module.in_features, "out": module.out_features}
            return Layer(sides, _present(module, cuts), mixes=True, weighs="weight")
        case _BatchNorm() | _InstanceNorm():
            names = ("weight", "bias", "running_mean", "running_var")
            return Layer({"out": module.num_features}, _present(module, tuple(Cut(n, 0, "out") for n in names)))
        case nn.LayerNorm() if len(module.normalized_shape) == 1:
            cuts = (Cut("weight", 0, "out"), Cut("bias", 0, "out"))
            return Layer({"out": module.normalized_shape[0]}, _present(module, cuts))
        case nn.GroupNorm():
            cuts = (Cut("weight", 0, "out"), Cut("bias", 0, "out"))
            bundle: dict[Side, int] = {"out": module.num_channels // module.num_groups}
            return Layer({"out": module.num_channels}, _present(module, cuts), bundle)
        case nn.PReLU() if module.num_parameters > 1:
            return Layer({"out": module.num_parameters}, (Cut("weight", 0, "out"),))
        case _:
            return None


def _convolution(module: _ConvNd) -> Layer:
    sides: dict[Side, int] = {"in": module.in_channels, "out": module.out_channels}
    outputs = (Cut("weight", 0, "out"), Cut("bias", 0, "out"))
    if module.groups == 1:
        return Layer(sides, _present(module, (*outputs, Cut("weight", 1, "in"))), mixes=True, weighs="weight")
    bundle: dict[Side, int] = {side: channels // module.groups for side, channels in sides.items()}
    return Layer(sides, _present(module, outputs), bundle, weighs="weight")


def _present(module: nn.Module, cuts: tuple[Cut, ...]) -> tuple[Cut, ...]:
    return tuple(cut for cut in cuts if getattr(module, cut.tensor) is not None)


def resize(module: nn.Module, channels: Mapping[Side, int], groups: int) -> None:
    """Writes the new numbers of channels and groups where a layer keeps them. Its tensors are cut elsewhere."""
    told: Any = module  # torch's stubs declare some of these as final
    match module:
        case _ConvNd():
            told.groups, told.in_channels, told.out_channels = groups, channels["in"], channels["out"]
        case nn.Linear():
            told.in_features, told.out_features = channels["in"], channels["out"]
        case _BatchNorm() | _InstanceNorm():
            told.num_features = channels["out"]
        case nn.LayerNorm():
            told.normalized_shape = (channels["out"],)
        case nn.GroupNorm():
            told.num_groups, told.num_channels = groups, channels["out"]
        case nn.PReLU():
            told.num_parameters = channels["out"]


def multiplications(module: nn.Module, output: Any) -> int:
    """
    Multiply-accumulates of one call per pair of a kept output channel and a kept input channel of its group.

    `output` is what the call returned, for one image. 0 for layers whose arithmetic is not counted.
    """
    match module:
        case _ConvNd():
            positions = output.numel() // module.out_channels
            for size in module.kernel_size:
                positions *= size
            return int(positions)
        case nn.Linear():
            return int(output.numel() // module.out_features)
        case _:
            return 0
