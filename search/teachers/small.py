"""
Small residual networks for small images, made to be compressed.

Both are plain: no control flow depends on data, so torch.fx can trace them, every convolution is followed by a batch
norm, and each residual block is a named module (`layer2.0`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from search.part import Part

Shape = tuple[int, int, int]
Blocks = Annotated[int, Field(ge=1, le=64)]


def _for_each_stage(depth: Any) -> Any:
    return (depth, depth, depth) if isinstance(depth, int) and not isinstance(depth, bool) else depth


class SmallResNet:
    """
    ResNet with a stem for small images and three stages of basic blocks.

    The default has 0.61 M parameters (weights, biases and batch-norm scales; no running statistics) and, for a 3x32x32
    image and 10 classes, 22.9 M multiply-accumulates (convolutions and the classifier; nothing else is counted).
    He et al., "Deep Residual Learning for Image Recognition", section 4.2, with projections (option B).
    """

    class Options(Part):
        depth: Annotated[
            tuple[Blocks, Blocks, Blocks],
            BeforeValidator(_for_each_stage, json_schema_input_type=int | tuple[int, int, int]),
        ] = (3, 3, 3)
        """Blocks in each of the three stages; one number stands for all three."""
        width: int = Field(24, ge=1, le=1024)
        """Channels of the first stage; the second has twice, the third four times as many."""
        stem_stride: Literal[1, 2] = 2
        """2 halves the image at once, which makes the network four times cheaper."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def build(self, shape: Shape, classes: int, seed: int = 0) -> nn.Module:
        """From images `[n, *shape]` to logits `[n, classes]`; any size from 1 pixel."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _ResNet(self._options, shape[0], classes)


class SmallMobileNet:
    """
    MobileNetV2 with a stem for small images and three stages of inverted residuals.

    The default has 0.18 M parameters and, for a 3x32x32 image and 10 classes, 5.2 M multiply-accumulates, counted as
    in `small_resnet`. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table 1.
    """

    class Options(Part):
        width: float = Field(1.0, ge=0.25, le=8)
        """Multiplies every channel count; the result is rounded to a multiple of 4."""
        depth: float = Field(1.0, ge=0.25, le=8)
        """Multiplies the blocks of every stage; at least one stays."""
        expansion: int = Field(3, ge=1, le=16)
        """Channels inside a block per channel at its entrance."""
        stem_stride: Literal[1, 2] = 2
        """2 halves the image at once, which makes the network four times cheaper."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def build(self, shape: Shape, classes: int, seed: int = 0) -> nn.Module:
        """From images `[n, *shape]` to logits `[n, classes]`; any size from 1 pixel."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _MobileNet(self._options, shape[0], classes)


class _ResNet(nn.Module):
    def __init__(self, options: SmallResNet.Options, channels: int, classes: int) -> None:
        super().__init__()
        width = options.width
        self.conv1 = _conv(channels, width, 3, options.stem_stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(width, width, 1, options.depth[0])
        self.layer2 = _stage(width, 2 * width, 2, options.depth[1])
        self.layer3 = _stage(2 * width, 4 * width, 2, options.depth[2])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(outputs, outputs, 3, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(inner + self.downsample(x))
        return out


def _stage(inputs: int, outputs: int, stride: int, depth: int) -> nn.Sequential:
    rest = [_BasicBlock(outputs, outputs, 1) for _ in range(depth - 1)]
    return nn.Sequential(_BasicBlock(inputs, outputs, stride), *rest)


_STAGES = ((16, 2, 1), (40, 3, 2), (96, 3, 2))
"""Channels, blocks and stride of the three stages at width and depth 1."""
_STEM, _HEAD = 12, 128


class _MobileNet(nn.Module):
    def __init__(self, options: SmallMobileNet.Options, channels: int, classes: int) -> None:
        super().__init__()

        def scaled(width: int) -> int:
            return max(4, round(width * options.width / 4) * 4)

        self.stem = _ConvNorm(channels, scaled(_STEM), 3, options.stem_stride, act=True)
        inputs = scaled(_STEM)
        stages = []
        for width, depth, stride in _STAGES:
            blocks = []
            for index in range(max(1, round(depth * options.depth))):
                blocks.append(_InvertedResidual(inputs, scaled(width), stride if index == 0 else 1, options.expansion))
                inputs = scaled(width)
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.head = _ConvNorm(inputs, scaled(_HEAD), 1, 1, act=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(scaled(_HEAD), classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(images))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(self.head(x)), 1))
        return logits


class _InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without activation; add the input where it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = _ConvNorm(inputs, hidden, 1, 1, act=True)
        self.filter = _ConvNorm(hidden, hidden, 3, stride, groups=hidden, act=True)
        self.project = _ConvNorm(hidden, outputs, 1, 1, act=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.project(self.filter(self.expand(x)))
        return x + inner if self.residual else inner


class _ConvNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, *, groups: int = 1, act: bool) -> None:
        layers: list[nn.Module] = [_conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs)]
        if act:
            layers.append(nn.ReLU6())
        super().__init__(*layers)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _initialise(model: nn.Module) -> None:
    """Convolutions as in He et al., "Delving Deep into Rectifiers", equation 14; the rest as torch makes it."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
