"""Small detectors of every family, as torchvision makes them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from search.boxes import packed
from search.detector import Detector, detector

SHAPE, CLASSES = (3, 64, 64), 2
FAMILIES = ("faster_rcnn", "retinanet", "fcos", "ssdlite")
_WIDTHS = (8, 12, 16)


class Backbone(nn.Module):
    """Feature maps of strides 4, 8 and 16, and on a pyramid one more of 32."""

    def __init__(self, channels: int | None) -> None:
        super().__init__()
        inputs, stages = 3, []
        for width in _WIDTHS:
            stages.append(nn.Sequential(nn.Conv2d(inputs, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()))
            inputs = width
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU())
        self.stages = nn.ModuleList(stages)
        self.fpn = channels and FeaturePyramidNetwork(list(_WIDTHS), channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found, x = {}, self.stem(images)
        for at, stage in enumerate(self.stages):
            found[str(at)] = x = stage(x)
        return self.fpn(found) if self.fpn else found


def network(family: str, *, score: float = 0.05, found: int = 20, candidates: int = 60) -> nn.Module:
    """In training mode, of random weights larger than usual, so that something is found. Leaves images as they are."""
    torch.manual_seed(0)
    options = {"_skip_resize": True, "image_mean": [0] * 3, "image_std": [1] * 3}
    options |= {} if family == "ssdlite" else {"min_size": SHAPE[1], "max_size": SHAPE[1]}
    limits = {"score_thresh": score, "nms_thresh": 0.5, "detections_per_img": found, "topk_candidates": candidates}
    sizes, ratios = ((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4
    if family == "faster_rcnn":
        made = FasterRCNN(
            Backbone(8),
            rpn_anchor_generator=AnchorGenerator(sizes, ratios),
            box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=40),
            box_head=TwoMLPHead(8 * 49, 24),
            box_predictor=FastRCNNPredictor(24, CLASSES + 1),
            rpn_pre_nms_top_n_test=candidates,
            rpn_post_nms_top_n_test=30,
            rpn_pre_nms_top_n_train=candidates,
            rpn_post_nms_top_n_train=40,
            rpn_batch_size_per_image=32,
            box_batch_size_per_image=16,
            box_score_thresh=score,
            box_nms_thresh=0.5,
            box_detections_per_img=found,
            **options,
        )
    elif family == "retinanet":
        made = RetinaNet(Backbone(8), CLASSES, anchor_generator=AnchorGenerator(sizes, ratios), **limits, **options)
    elif family == "fcos":
        norm = partial(nn.GroupNorm, 2)
        head = FCOSHead(32, 1, CLASSES, 1)
        head.classification_head = FCOSClassificationHead(8, 1, CLASSES, 1, norm_layer=norm)
        head.regression_head = FCOSRegressionHead(8, 1, 1, norm_layer=norm)
        points = AnchorGenerator(((4,), (8,), (16,), (32,)), ((1.0,),) * 4)
        made = FCOS(Backbone(8), CLASSES, anchor_generator=points, head=head, **limits, **options)
    else:
        boxes = DefaultBoxGenerator([[2], [2], [2]], 0.1, 0.8)
        head = SSDLiteHead(list(_WIDTHS), boxes.num_anchors_per_location(), CLASSES + 1, nn.BatchNorm2d)
        made = SSD(Backbone(None), boxes, SHAPE[1:], CLASSES + 1, head=head, **limits, **options)
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return made


def small(family: str, **options: float) -> Detector:
    return detector(network(family, **options), SHAPE, CLASSES)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def labels() -> Tensor:
    """Of three images: two objects and a region to be ignored, one object, none."""
    rows = [
        [[4, 4, 20, 24, 0, 1, 1], [30, 30, 58, 60, 1, 1, 0.7], [0, 40, 24, 64, 0, 2, 1]],
        [[10, 8, 40, 50, 1, 1, 1]],
        [],
    ]
    return torch.from_numpy(packed(rows))
