"""The classification networks of torchvision, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn
from torch.func import functional_call
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from search.errors import Unsupported, did_you_mean
from search.part import Name, Part

Shape = tuple[int, int, int]

_LARGEST = 512
"""Largest image tried when the smallest workable one is looked for, in pixels a side."""
_RESNETS: dict[str, tuple[type[nn.Module], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}
"""Block and depths of those that can be made of any width."""
_MOBILENETS = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")


@cache
def builders() -> tuple[str, ...]:
    """torchvision's classification networks by name; not the quantized, detection, segmentation and video ones."""
    return tuple(models.list_models(module=models))


class Torchvision:
    """
    Any classification network of torchvision, untrained, for any number of classes.

    Where images do not have three channels the first convolution is made anew for theirs; networks that are built for
    one size of image (vision transformers, MaxViT) are built for the dataset's. Auxiliary classifiers are left out.
    Weights come from the job's safetensors file; nothing is downloaded.
    """

    class Options(Part):
        builder: Name = Field(json_schema_extra=lambda schema: schema.update(enum=list(builders())))
        """torchvision's name of the network, for example `resnet18` or `mobilenet_v3_small`."""

        width: float = Field(1.0, ge=0.05, le=4)
        """Multiplies the channels of ResNets and MobileNets, to multiples of 8; other networks have one width."""

        @field_validator("builder")
        @classmethod
        def _known(cls, builder: str) -> str:
            if builder not in builders():
                hint = did_you_mean(builder, builders())
                raise ValueError(f"torchvision has no classification network called `{builder}`{hint}")
            return builder

        @model_validator(mode="after")
        def _has_widths(self) -> Torchvision.Options:
            able = (*_RESNETS, *_MOBILENETS)
            if self.width != 1 and self.builder not in able:
                raise ValueError(f"`{self.builder}` has one width; leave `width` out, or take one of {', '.join(able)}")
            return self

    def __init__(self, options: Options) -> None:
        self._name, self._width = options.builder, options.width
        self._workable: set[Shape] = set()

    def build(self, shape: Shape, classes: int, seed: int = 0) -> nn.Module:
        """
        From images `[n, *shape]` to logits `[n, classes]`, checked by a forward pass without arithmetic.

        Raises:
            Unsupported: the network does not work on images of that shape; says which size does, if one is found.
        """
        model: nn.Module | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                model = _made(self._name, shape, classes, self._width)
            except ValueError:  # built for one size of image, and not for this one
                works = False
            else:
                works = shape in self._workable or _answers(model, shape, classes)
        if model is None or not works:
            raise Unsupported(self._advice(model, shape, classes), pointer="/teacher/options/builder")
        self._workable.add(shape)
        return model

    def _advice(self, model: nn.Module | None, shape: Shape, classes: int) -> str:
        channels, size, _ = shape
        refusal = f"`{self._name}` does not work on {channels}x{size}x{size} images"
        workable = self._next_size(model, shape, classes)
        if workable is None:
            return f"{refusal}; choose another network"
        return (
            f"{refusal}; the next size it takes is {workable}: give the dataset that `size`, or choose another network"
        )

    def _next_size(self, model: nn.Module | None, shape: Shape, classes: int) -> int | None:
        channels, size, _ = shape
        if _is_sized(self._name):
            for larger in range(size + 1, _LARGEST + 1):
                at = (channels, larger, larger)
                try:
                    with torch.device("meta"):
                        candidate = _made(self._name, at, classes)
                except ValueError:
                    continue
                if _answers(candidate, at, classes):
                    return larger
            return None
        if model is None or not _answers(model, (channels, _LARGEST, _LARGEST), classes):
            return None
        low, high = size, _LARGEST  # what works at one size works at every larger one
        while high - low > 1:
            middle = (low + high) // 2
            if _answers(model, (channels, middle, middle), classes):
                high = middle
            else:
                low = middle
        return high


def _is_sized(name: str) -> bool:
    return name.startswith(("vit_", "maxvit_"))


class _Narrow(ResNet):  # type: ignore[misc]
    """A ResNet whose every width is multiplied."""

    inplanes: int

    def __init__(self, name: str, width: float, classes: int) -> None:
        block, depths = _RESNETS[name]
        self._width = width
        super().__init__(block, depths)
        self.fc = nn.Linear(self.inplanes, classes)

    def _make_layer(self, block: Any, planes: int, *rest: Any, **options: Any) -> nn.Sequential:
        if planes == self.inplanes == 64:  # the first stage: nothing is built on the stem yet
            self.inplanes = self._scaled(64)
            self.conv1 = nn.Conv2d(3, self.inplanes, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.inplanes)
        layer: nn.Sequential = super()._make_layer(block, self._scaled(planes), *rest, **options)
        return layer

    def _scaled(self, channels: int) -> int:
        return max(8, round(channels * self._width / 8) * 8)


def _made(name: str, shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    channels, size, _ = shape
    if width != 1 and name in _RESNETS:
        narrow = _Narrow(name, width, classes)
        if channels != 3:
            _take_channels(narrow, channels)
        return narrow
    builder: Callable[..., nn.Module] = models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    elif width != 1:
        options["width_mult"] = width
    elif name.startswith("vit_"):
        if size % int(name.rsplit("_", 1)[1]):
            raise ValueError("images are not a multiple of the patch")
        options["image_size"] = size
    elif name.startswith("maxvit_"):
        options["input_size"] = (size, size)
    model = builder(**options)
    if channels != 3:
        _take_channels(model, channels)
    return model


def _take_channels(model: nn.Module, channels: int) -> None:
    """Makes the first convolution anew for images of so many channels."""
    name, old = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    model.set_submodule(name, new)


def _answers(model: nn.Module, shape: Shape, classes: int) -> bool:
    """Whether two images become logits `[2, classes]`; on the meta device, which works out shapes only."""
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.state_dict(keep_vars=True).items()}
    state |= {name: torch.empty_like(buffer, device="meta") for name, buffer in model.named_buffers()}
    try:
        logits = functional_call(model, state, (torch.empty(2, *shape, device="meta"),))
    except (RuntimeError, ValueError, AssertionError, TypeError):
        return False
    return bool(logits.shape == (2, classes))
