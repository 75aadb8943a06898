"""What of a classification network a detector can use: its layers one after the other, and the feature maps between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search.errors import Unsupported

_COARSER = 1.5
"""A map is of another scale when its side is this much smaller."""


@dataclass(frozen=True, slots=True)
class Tap:
    """The last of the maps of one scale: the layer that makes it, its channels and its side in pixels."""

    layer: str
    channels: int
    side: int


class Trunk(nn.Module):
    """The layers of a network up to the last tap, under their own names, none of them copied."""

    def __init__(self, network: nn.Module, layers: Sequence[str], taps: Sequence[Tap]) -> None:
        super().__init__()
        self._taps = tuple(tap.layer for tap in taps)
        self._layers = tuple(layers[: layers.index(self._taps[-1]) + 1])
        for name in self._layers:
            _owner(self, name).add_module(name.rpartition(".")[2], network.get_submodule(name))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps by number, from fine to coarse."""
        found, x = [], images
        for name in self._layers:
            x = self.get_submodule(name)(x)
            if name in self._taps:
                found.append(x)
        return {str(number): one for number, one in enumerate(found)}


def trunk_of(network: nn.Module, shape: tuple[int, int, int], stride: int, most: int) -> tuple[Trunk, list[Tap]]:
    """
    The trunk of a network of images `shape`, and its taps: maps from `stride` on, at most so many, the finest ones.

    The network is asked once what follows on what. Where the next layer reads something else than the one before has
    made, the chain ends; so does it where the picture does.

    Raises:
        Unsupported: the chain ends before there is such a map.
    """
    layers, sides = [], []
    for name, output in _chain(network, torch.zeros(1, *shape)):
        layers.append(name)
        sides.append(Tap(name, output.shape[1], output.shape[2]))
    taps: list[Tap] = []
    for tap in sides:
        if taps and tap.side * _COARSER > taps[-1].side:
            taps[-1] = tap
        else:
            taps.append(tap)
    taps = [tap for tap in taps if tap.side * stride < shape[-1] * _COARSER][:most]
    if not taps or len(layers) == 1:  # one convolution that cuts the image into patches is no trunk
        raise Unsupported(
            f"a {type(network).__name__} has no layers one after the other that make its {shape[-1]} pixels {stride} "
            "times smaller; choose another backbone, such as a ResNet or a MobileNet, or a smaller stride"
        )
    return Trunk(network, layers, taps), taps


def _chain(network: nn.Module, image: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The layers that follow on each other, and what they make of the image."""
    calls: dict[nn.Module, list[tuple[Any, Any]]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.setdefault(module, []).append((args[0] if args else None, output))

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(image)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    at: Any = image

    def walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
        nonlocal at
        for name, child in module.named_children():
            (read, made), *more = calls.get(child, [(None, None)])
            classifies = isinstance(child, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d | nn.Dropout)
            if read is not at or more or classifies or not _is_picture(made):
                return
            if _is_chain(child) and made.shape[2] * 2 * _COARSER < read.shape[2]:
                yield from walk(child, f"{prefix}{name}.")
                if at is not made:
                    return
            else:
                at = made
                yield f"{prefix}{name}", made

    yield from walk(network, "")


def _is_picture(value: Any) -> bool:
    """Whether it is `[n, channels, side, side]`."""
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] == value.shape[3]


def _is_chain(module: nn.Module) -> bool:
    """Whether a module calls its children in order and does nothing else."""
    return type(module).forward is nn.Sequential.forward


def _owner(root: nn.Module, path: str) -> nn.Module:
    for name in path.split(".")[:-1]:
        if name not in dict(root.named_children()):
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root
