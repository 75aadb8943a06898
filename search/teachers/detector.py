"""The detectors of torchvision, with any backbone, as thin as one likes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation

from search.catalog import Catalog
from search.detector import Detector, detector
from search.errors import FieldError, InvalidSpec, Unsupported
from search.part import Part
from search.plugins import tasks_of
from search.spec import Pick, Task
from search.teachers.trunk import Tap, trunk_of

Shape = tuple[int, int, int]
Family = Literal["faster_rcnn", "retinanet", "fcos", "ssdlite"]

_RATIOS = (0.5, 1.0, 2.0)
_RESOLUTION = 7
"""Cells along a side of a pooled region."""
_GROUP = 8
"""Channels that heads normalise together: 32 groups of 256, as torchvision has."""
_CANONICAL = 7
"""Side of a region that is pooled two levels above the finest, in sides of the smallest anchor (224 in 32 pixels)."""
_LEVELS = 6
"""Feature maps of ssdlite."""
_EXTRAS = (512, 256, 256, 128)
"""Channels of the maps that ssdlite adds, per 960 of its backbone's last."""


class TorchvisionDetector:
    """
    A detector of torchvision, untrained: Faster R-CNN, RetinaNet or FCOS on a pyramid of features, or SSDlite.

    Everything learns, batch norms included. Anchors grow with the images. Names of weights are torchvision's, those
    of the backbone are its own below `backbone.body`. Weights come from the job's safetensors file; nothing is
    downloaded.
    """

    tasks: ClassVar[tuple[Task, ...]] = ("detection",)

    class Options(Part):
        family: Family = "faster_rcnn"
        backbone: Pick = Pick(name="torchvision", options={"builder": "resnet18"})
        """A teacher of classification whose layers follow one after the other, without its classifier."""
        stride: Literal[2, 4, 8, 16] = 4
        """Pixels of the image to one of the finest feature map; 8 makes retinanet and fcos much cheaper than 4."""
        channels: int = Field(64, ge=8, le=1024, multiple_of=_GROUP)
        """Of every map of the pyramid, and of the heads on it; ssdlite has no pyramid."""
        convolutions: int = Field(2, ge=1, le=4)
        """In each of the two branches of the heads of retinanet and fcos; torchvision's have 4."""
        embedding: int = Field(256, ge=8, le=8192)
        """Width of the two layers of faster_rcnn's box head; torchvision's has 1024."""
        anchor: float = Field(0.08, ge=0.02, le=0.5)
        """Side of the smallest anchors, as a share of the image's; it doubles from level to level. fcos has none."""
        proposals: int = Field(100, ge=1, le=2000)
        """Regions of an image that faster_rcnn's box head looks at; it is counted with so many."""
        samples: int = Field(64, ge=4, le=2000)
        """Regions of an image that faster_rcnn's box head learns from, in each step."""
        found: int = Field(100, ge=1, le=2000)
        """Boxes that an image is answered with at most."""
        candidates: int = Field(200, ge=1, le=10_000)
        """The best answers of a level of the pyramid (ssdlite: of a class) that overlapping ones are dropped from."""
        least_score: float = Field(0.05, ge=0, lt=1)
        """Boxes of a lower score are left out."""
        overlap: float = Field(0.5, gt=0, le=1)
        """Of two boxes of a class that overlap by more, as intersection over union, the better one is kept."""

    def __init__(self, options: Options) -> None:
        """Raises `InvalidSpec`, pointing below `/options`, where there is no such backbone."""
        self._options = options
        try:
            self._backbone = Catalog().make("teachers", options.backbone)
        except InvalidSpec as error:
            raise InvalidSpec([found.under("/options/backbone") for found in error.errors]) from None
        if "classification" not in tasks_of(self._backbone):
            raise InvalidSpec(
                [FieldError("/options/backbone/name", "INVALID_VALUE", "must be a teacher of classification")]
            )

    def build(self, shape: Shape, classes: int, seed: int = 0) -> Detector:
        """
        A detector of images `[n, *shape]`.

        Raises:
            Unsupported: the backbone does not work on images of that shape, or has no feature maps to offer.
        """
        try:
            network = self._backbone.build(shape, 1, seed)
        except Unsupported as error:
            raise Unsupported(error.message, pointer="/teacher/options/backbone") from None
        options = self._options
        try:
            body, taps = trunk_of(network, shape, options.stride, 2 if options.family == "ssdlite" else 4)
        except Unsupported as error:
            raise Unsupported(error.message, pointer="/teacher/options/backbone") from None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = _MADE[options.family](options, body, taps, shape[-1], classes)
            return detector(made, shape, classes).train()


class Pyramid(nn.Module):
    """A trunk and a pyramid of features on its maps."""

    def __init__(self, body: nn.Module, taps: list[Tap], channels: int, extra: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork([tap.channels for tap in taps], channels, extra)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.fpn(self.body(images))
        return found


class Chain(nn.Module):
    """A trunk and further maps, each half as large as the one before (Sandler et al., "MobileNetV2", section 6.2)."""

    def __init__(self, body: nn.Module, taps: list[Tap]) -> None:
        super().__init__()
        self.body = body
        self.extra = nn.ModuleList()
        self.channels, side = [tap.channels for tap in taps], taps[-1].side
        scale = min(1.0, taps[-1].channels / 960)
        for width in _EXTRAS:
            if side > 1 and len(self.channels) < _LEVELS:
                width = max(16, round(width * scale / 8) * 8)
                self.extra.append(_halved(self.channels[-1], width))
                self.channels.append(width)
                side = (side + 1) // 2

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = list(self.body(images).values())
        for layer in self.extra:
            found.append(layer(found[-1]))
        return {str(number): one for number, one in enumerate(found)}


def _halved(inputs: int, outputs: int) -> nn.Sequential:
    """A map half as large: narrow, filter each channel, widen."""
    inner, layer = outputs // 2, partial(Conv2dNormActivation, activation_layer=nn.ReLU6)
    return nn.Sequential(
        layer(inputs, inner, kernel_size=1),
        layer(inner, inner, kernel_size=3, stride=2, groups=inner),
        layer(inner, outputs, kernel_size=1),
    )


def _normed(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _GROUP, channels)


def _anchors(options: TorchvisionDetector.Options, size: int, levels: int, scales: int) -> AnchorGenerator:
    """Of every level, anchors of `scales` sizes, evenly between its own and the next level's."""
    smallest = [options.anchor * size * 2**level for level in range(levels)]
    sizes = tuple(tuple(one * 2 ** (part / scales) for part in range(scales)) for one in smallest)
    return AnchorGenerator(sizes, (_RATIOS,) * levels)


def _faster_rcnn(options: Any, body: nn.Module, taps: list[Tap], size: int, classes: int) -> nn.Module:
    backbone = Pyramid(body, taps, options.channels, LastLevelMaxPool())
    canonical = _CANONICAL * options.anchor * size
    level = round(math.log2(size / taps[0].side)) + 2
    pool = MultiScaleRoIAlign(
        [str(at) for at in range(len(taps))], _RESOLUTION, 2, canonical_scale=canonical, canonical_level=level
    )
    made: nn.Module = FasterRCNN(
        backbone,
        rpn_anchor_generator=_anchors(options, size, len(taps) + 1, 1),
        box_roi_pool=pool,
        box_head=TwoMLPHead(options.channels * _RESOLUTION**2, options.embedding),
        box_predictor=FastRCNNPredictor(options.embedding, classes + 1),
        rpn_pre_nms_top_n_train=2 * options.candidates,
        rpn_pre_nms_top_n_test=options.candidates,
        rpn_post_nms_top_n_train=2 * options.proposals,
        rpn_post_nms_top_n_test=options.proposals,
        box_batch_size_per_image=options.samples,
        box_score_thresh=options.least_score,
        box_nms_thresh=options.overlap,
        box_detections_per_img=options.found,
    )
    return made


def _limits(options: Any) -> dict[str, Any]:
    return {
        "score_thresh": options.least_score,
        "nms_thresh": options.overlap,
        "detections_per_img": options.found,
        "topk_candidates": options.candidates,
    }


def _retinanet(options: Any, body: nn.Module, taps: list[Tap], size: int, classes: int) -> nn.Module:
    channels = options.channels
    backbone = Pyramid(body, taps, channels, LastLevelP6P7(channels, channels))
    anchors = _anchors(options, size, len(taps) + 2, 3)
    head = RetinaNetHead(channels, anchors.num_anchors_per_location()[0], classes, norm_layer=_normed)
    for branch in (head.classification_head, head.regression_head):
        branch.conv = branch.conv[: options.convolutions]
    made: nn.Module = RetinaNet(backbone, classes, anchor_generator=anchors, head=head, **_limits(options))
    return made


def _fcos(options: Any, body: nn.Module, taps: list[Tap], size: int, classes: int) -> nn.Module:
    channels, count = options.channels, options.convolutions
    backbone = Pyramid(body, taps, channels, LastLevelP6P7(channels, channels))
    sides = [tap.side for tap in taps]
    for _ in range(2):
        sides.append((sides[-1] + 1) // 2)
    points = AnchorGenerator(tuple((size // side,) for side in sides), ((1.0,),) * len(sides))
    head = FCOSHead(32, 1, classes, 1)  # its own branches want 32 groups
    head.classification_head = FCOSClassificationHead(channels, 1, classes, count, norm_layer=_normed)
    head.regression_head = FCOSRegressionHead(channels, 1, count, norm_layer=_normed)
    made: nn.Module = FCOS(backbone, classes, anchor_generator=points, head=head, **_limits(options))
    return made


def _ssdlite(options: Any, body: nn.Module, taps: list[Tap], size: int, classes: int) -> nn.Module:
    backbone = Chain(body, taps)
    boxes = DefaultBoxGenerator([[2, 3] for _ in backbone.channels], options.anchor, 0.95)
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    head = SSDLiteHead(backbone.channels, boxes.num_anchors_per_location(), classes + 1, norm)
    made: nn.Module = SSD(backbone, boxes, (size, size), classes + 1, head=head, **_limits(options))
    return made


_MADE = {"faster_rcnn": _faster_rcnn, "retinanet": _retinanet, "fcos": _fcos, "ssdlite": _ssdlite}
