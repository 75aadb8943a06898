"""
One door to torchvision's detectors.

A `Detector` takes over the parts of a network of torchvision under their own names, and with them its anchors,
matching, sampling and losses. What it leaves behind is the resizing and normalising: images come as batches of one
size, normalised already. Labels are those of `search.boxes`; where torchvision counts a background among the classes,
nobody outside of here has to know.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision import ops
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.ssd import SSD
from torchvision.ops import roi_align

from search.suppression import Candidates, Suppression, best, decoded, numbers, picked, reached, top
from search.targets import Target, inside, targets_of, told

Shape = tuple[int, int, int]
Losses = dict[str, Tensor]

fx.wrap("roi_align")

_CERTAIN = 1e4
"""A logit after which there is nothing left to lose."""
_MOST = 1000
"""Answers of all regions of an image that are looked at, the best ones."""
_LEAST_SIDE = 1e-2
"""Pixels; torchvision's."""


@dataclass(frozen=True, slots=True)
class Studied:
    """
    What one forward pass of a batch tells a trainer: the detector's own losses by name, scalars, and the feature maps
    that its heads read. Of two stages also the sampled regions: `boxes`, `[r_i, 4]` of every image in pixels; their
    RoI-aligned features `[sum of r_i, channels, 7, 7]`; and the box head's embedding of them `[sum of r_i, width]`.
    """

    losses: Losses
    pyramid: list[Tensor]
    boxes: list[Tensor] | None = None
    regions: Tensor | None = None
    embedding: Tensor | None = None


class Detector(nn.Module, ABC):
    """
    A detector of `classes` classes in images `[n, *shape]`, which are square.

    `forward` answers with all that the heads say, in fixed shapes: it is what a survey looks at, what is counted and
    cut. A trainer calls `losses` or `study`, whoever wants boxes `detect`.
    """

    anchors: Tensor
    """
    `[anchors, 4]`, from the finest map to the coarsest. They follow from the network's options, are no part of its
    state, and so are not among its `weight_bytes`.
    """
    found: int
    """Rows that `detect` answers an image with."""
    least_score: float
    """Boxes whose score is not above it are left out."""

    def __init__(self, network: Any, generator: Any, shape: Shape, classes: int) -> None:
        super().__init__()
        self.backbone: nn.Module = network.backbone
        self.size, self.classes = shape[-1], classes
        training = self.backbone.training
        with torch.no_grad():
            features = self.backbone.eval()(torch.zeros(1, *shape))
        self.backbone.train(training)
        self.levels, pyramid = tuple(features), list(features.values())
        self.maps = tuple((feature.shape[-2], feature.shape[-1]) for feature in pyramid)
        counts = [h * w * each for (h, w), each in zip(self.maps, generator.num_anchors_per_location(), strict=True)]
        self.spans = tuple((sum(counts[:at]), sum(counts[: at + 1])) for at in range(len(counts)))
        found: Tensor = generator(ImageList(torch.zeros(1, *shape), [(self.size, self.size)]), pyramid)[0]
        self.register_buffer("anchors", found, persistent=False)

    @abstractmethod
    def forward(self, images: Tensor) -> Any:
        """All that the heads say of images `[n, c, size, size]`: tensors, nested."""

    @abstractmethod
    def study(self, images: Tensor, labels: Tensor, step: int = 0) -> Studied:
        """
        One forward pass for a trainer. `labels` are `[n, most, 7]`, see `search.boxes`. Sampling is a function of
        `step`, and leaves torch's random numbers as they were.
        """

    def losses(self, images: Tensor, labels: Tensor, step: int = 0) -> Losses:
        """The detector's own losses by name, scalars to be added; see `study`."""
        return self.study(images, labels, step).losses

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The feature maps `[n, channels, h, w]` that the heads read, from fine to coarse."""
        return list(self.backbone(images).values())

    @abstractmethod
    def detect(self, images: Tensor, *, at_once: bool = False) -> Tensor:
        """
        `[n, found, 6]`: x1, y1, x2, y2 in pixels, score and class of what is found, by falling score; rows that say
        nothing are zeros. Not to be differentiated. `at_once`: see `Suppression`.
        """

    def _sides(self) -> tuple[Tensor, Tensor]:
        """Sides and middles of anchors, `[anchors, 2]`."""
        sides = self.anchors[:, 2:] - self.anchors[:, :2]
        return sides, self.anchors[:, :2] + 0.5 * sides

    def _seen(self, boxes: Tensor) -> Tensor:
        """Their parts within the image."""
        return boxes.clamp(0, self.size)

    def _anchors(self, images: Tensor) -> list[Tensor]:
        """Those of every image."""
        return [self.anchors] * len(images)


def detector(network: nn.Module, shape: Shape, classes: int) -> Detector:
    """
    A network of torchvision as a `Detector`.

    Raises:
        TypeError: it is none of torchvision's detectors that are known here.
    """
    match network:
        case GeneralizedRCNN():
            return TwoStage(network, shape, classes)
        case RetinaNet():
            return Retina(network, shape, classes)
        case FCOS():
            return Fcos(network, shape, classes)
        case SSD():
            return Ssd(network, shape, classes)
        case _:
            raise TypeError(f"{type(network).__name__} is no detector that is known here")


class OneStage(Detector):
    """A detector whose head answers for every anchor."""

    background = 0
    """Classes that torchvision counts before ours."""

    def __init__(self, network: Any, shape: Shape, classes: int) -> None:
        super().__init__(network, network.anchor_generator, shape, classes)
        self.head: Any = network.head
        self.found, self.most = network.detections_per_img, network.topk_candidates
        self.least_score, self.overlap = network.score_thresh, network.nms_thresh

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`cls_logits` `[n, anchors, classes]`, `bbox_regression` `[n, anchors, 4]`, and what else the head says."""
        answers: dict[str, Tensor] = self.head(self.pyramid(images))
        return answers

    def study(self, images: Tensor, labels: Tensor, step: int = 0) -> Studied:
        """The same at every `step`: nothing is sampled."""
        pyramid = self.pyramid(images)
        targets = targets_of(labels, self.background)
        silent = torch.stack([~target.background(self._seen(self.anchors)) for target in targets])
        answers: dict[str, Tensor] = self.head(pyramid)
        return Studied(self._losses(answers, targets, silent), pyramid)

    def detect(self, images: Tensor, *, at_once: bool = False) -> Tensor:
        found = self._candidates(self.head(self.pyramid(images))).within(self.size, score=self.least_score)
        return best(Suppression(self.overlap, self.size, self.classes, at_once)(found), self.found)

    @abstractmethod
    def _candidates(self, answers: dict[str, Tensor]) -> Candidates:
        """The best of what the head says, by its class."""

    def _each_level(self, scores: Tensor, boxes: Tensor) -> Candidates:
        """The best scores `[n, anchors, classes]` of every level of the pyramid."""
        parts = []
        for start, stop in self.spans:
            count = min(self.most, (stop - start) * self.classes)
            values, at = top(scores[:, start:stop].flatten(1), count)
            chosen = picked(boxes[:, start:stop], at // self.classes)
            parts.append(Candidates(chosen, values, (at % self.classes).float(), count))
        return Candidates.of(parts)

    @abstractmethod
    def _losses(self, answers: dict[str, Tensor], targets: Sequence[Target], silent: Tensor) -> Losses:
        """`silent` `[n, anchors]` are those of which background says nothing."""

    def _matched(self, matcher: Any, targets: Sequence[Target]) -> list[Tensor]:
        """Of every image, the object that each anchor is to answer with, `[anchors]`; negative where it is none."""
        nothing = torch.full(self.anchors.shape[:1], matcher.BELOW_LOW_THRESHOLD, device=self.anchors.device)
        return [
            matcher(ops.box_iou(target.boxes, self.anchors)) if len(target.boxes) else nothing for target in targets
        ]


class Retina(OneStage):
    """RetinaNet: Lin et al., "Focal Loss for Dense Object Detection", 2017."""

    def __init__(self, network: RetinaNet, shape: Shape, classes: int) -> None:
        super().__init__(network, shape, classes)
        self.matcher, self.box_coder = network.proposal_matcher, network.box_coder

    def _candidates(self, answers: dict[str, Tensor]) -> Candidates:
        coder = self.box_coder
        boxes = decoded(answers["bbox_regression"], *self._sides(), coder.weights, coder.bbox_xform_clip)
        return self._each_level(torch.sigmoid(answers["cls_logits"]), boxes)

    def _losses(self, answers: dict[str, Tensor], targets: Sequence[Target], silent: Tensor) -> Losses:
        matched = self._matched(self.matcher, targets)
        for match, hushed in zip(matched, silent, strict=True):
            match[hushed & (match == self.matcher.BELOW_LOW_THRESHOLD)] = self.matcher.BETWEEN_THRESHOLDS
        found: Losses = self.head.compute_loss(told(targets), answers, self._anchors(silent), matched)
        return found


class Fcos(OneStage):
    """FCOS: Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", 2019."""

    def __init__(self, network: FCOS, shape: Shape, classes: int) -> None:
        super().__init__(network, shape, classes)
        self.center_sampling_radius = network.center_sampling_radius

    def _candidates(self, answers: dict[str, Tensor]) -> Candidates:
        scores = torch.sqrt(torch.sigmoid(answers["cls_logits"]) * torch.sigmoid(answers["bbox_ctrness"]))
        return self._each_level(scores, reached(answers["bbox_regression"], *self._sides()))

    def _losses(self, answers: dict[str, Tensor], targets: Sequence[Target], silent: Tensor) -> Losses:
        # Its loss has no third state beside object and background: where background is not to be learned, a "no" that
        # is certain stands for what the head says. Anchors that answer with an object have their middle in it.
        hushed = silent & ~inside(self.anchors, targets)
        answers = {**answers, "cls_logits": answers["cls_logits"].masked_fill(hushed[..., None], -_CERTAIN)}
        sizes = [height * width for height, width in self.maps]
        # torchvision's own method, which asks of its network no more than `head` and `center_sampling_radius`
        found: Losses = FCOS.compute_loss(self, told(targets), answers, self._anchors(silent), sizes)
        return found


class Ssd(OneStage):
    """SSD and SSDlite: Liu et al., "SSD: Single Shot MultiBox Detector", 2016."""

    background = 1

    def __init__(self, network: SSD, shape: Shape, classes: int) -> None:
        super().__init__(network, shape, classes)
        self.matcher, self.box_coder = network.proposal_matcher, network.box_coder
        self.neg_to_pos_ratio = network.neg_to_pos_ratio

    def _candidates(self, answers: dict[str, Tensor]) -> Candidates:
        coder = self.box_coder
        boxes = decoded(answers["bbox_regression"], *self._sides(), coder.weights, coder.bbox_xform_clip)
        scores = torch.softmax(answers["cls_logits"], -1)[..., 1:].transpose(1, 2)
        count = min(self.most, len(self.anchors))
        scores, at = top(scores, count)
        classes = torch.cumsum(torch.ones_like(scores), 1) - 1
        return Candidates(picked(boxes, at.flatten(1)), scores.flatten(1), classes.flatten(1), count * self.classes)

    def _losses(self, answers: dict[str, Tensor], targets: Sequence[Target], silent: Tensor) -> Losses:
        matched = self._matched(self.matcher, targets)
        hushed = silent & (torch.stack(matched) < 0)
        certain = torch.full((self.classes + 1,), -_CERTAIN, device=silent.device)
        certain[0] = _CERTAIN
        answers = {**answers, "cls_logits": torch.where(hushed[..., None], certain, answers["cls_logits"])}
        # torchvision's own method, which asks of its network no more than `box_coder` and `neg_to_pos_ratio`
        found: Losses = SSD.compute_loss(self, told(targets), answers, self._anchors(silent), matched)
        return found


class TwoStage(Detector):
    """
    Faster R-CNN: Ren et al., "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", 2015,
    on a pyramid of features (Lin et al., "Feature Pyramid Networks for Object Detection", 2017).

    The box head's part in `forward` is that of as many regions as there are proposals when it is asked. They are always
    the same ones, spread over the image, so that what is counted depends on no image.
    """

    def __init__(self, network: GeneralizedRCNN, shape: Shape, classes: int) -> None:
        super().__init__(network, network.rpn.anchor_generator, shape, classes)
        self.rpn: Any = network.rpn
        self.roi_heads: Any = network.roi_heads
        self.proposals, self.most = (int(of["testing"]) for of in (self.rpn._post_nms_top_n, self.rpn._pre_nms_top_n))
        self.found, self.least_score = self.roi_heads.detections_per_img, self.roi_heads.score_thresh
        pool = self.roi_heads.box_roi_pool
        self.pooled = tuple(at for at, name in enumerate(self.levels) if name in pool.featmap_names)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """
        `objectness` and `deltas` of every anchor, a map `[n, ...]` for each level of the pyramid; `scores` and `boxes`
        of every one of the fixed regions, `[n * proposals, ...]`.
        """
        pyramid = self.pyramid(images)
        objectness, deltas = self.rpn.head(pyramid)
        regions = self._pool(pyramid, self._fixed(images))
        scores, boxes = self._told(self.embedding(regions))
        return {"objectness": objectness, "deltas": deltas, "scores": scores, "boxes": boxes}

    def study(self, images: Tensor, labels: Tensor, step: int = 0) -> Studied:
        pyramid, targets = self.pyramid(images), targets_of(labels, 1)
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(step)
            losses, proposals = self._proposed(pyramid, targets)
            boxes, _, classes, deltas = self.roi_heads.select_training_samples(proposals, told(targets))
        regions = self.regions(pyramid, boxes)
        embedding = self.embedding(regions)
        scores, found = self._told(embedding)
        losses |= {"loss_classifier": 0 * scores.sum(), "loss_box_reg": 0 * found.sum()}
        if len(scores):  # everything may lie in regions to be ignored
            losses["loss_classifier"], losses["loss_box_reg"] = fastrcnn_loss(scores, found, classes, deltas)
        return Studied(losses, pyramid, boxes, regions, embedding)

    def regions(self, pyramid: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """
        RoI-aligned features `[sum of r_i, channels, 7, 7]` of any boxes, `[r_i, 4]` of every image in pixels, each from
        the level of the pyramid that suits its size.
        """
        pool = self.roi_heads.box_roi_pool
        named = dict(zip(pool.featmap_names, (pyramid[at] for at in self.pooled), strict=True))
        found: Tensor = pool(named, list(boxes), [(self.size, self.size)] * len(boxes))
        return found

    def embedding(self, regions: Tensor) -> Tensor:
        """What the box head makes of `regions`' features, `[regions, width]`."""
        found: Tensor = self.roi_heads.box_head(regions)
        return found

    def detect(self, images: Tensor, *, at_once: bool = False) -> Tensor:
        pyramid, heads = self.pyramid(images), self.roi_heads
        proposals = best(self._proposals(pyramid, at_once), self.proposals)
        there, boxes = proposals[..., 4:5], proposals[..., :4]
        regions = torch.cat([numbers(boxes[..., 0])[..., None].expand_as(there), boxes], -1).flatten(0, 1)
        scores, codes = self._told(self.embedding(self._pool(pyramid, regions)))
        # Of every region a score for each class, and a box of each class; the first is background.
        scores = torch.softmax(scores, -1)[:, 1:].view(-1, self.proposals, self.classes) * (there > 0)
        codes = codes.view(-1, self.proposals, self.classes + 1, 4)[:, :, 1:]
        sides = (boxes[..., 2:] - boxes[..., :2])[:, :, None]
        middles = boxes[:, :, None, :2] + sides * 0.5
        found = decoded(codes, sides, middles, heads.box_coder.weights, heads.box_coder.bbox_xform_clip)
        count = min(_MOST, self.proposals * self.classes)
        values, at = top(scores.flatten(1), count)
        chosen = Candidates(picked(found.flatten(1, 2), at), values, (at % self.classes).float(), count)
        chosen = chosen.within(self.size, score=self.least_score, side=_LEAST_SIDE)
        return best(Suppression(heads.nms_thresh, self.size, self.classes, at_once)(chosen), self.found)

    def _proposals(self, pyramid: list[Tensor], at_once: bool) -> Candidates:
        """By level of the pyramid."""
        rpn, parts = self.rpn, []
        sides, middles = self._sides()
        for level, ((start, stop), objectness, deltas) in enumerate(zip(self.spans, *rpn.head(pyramid), strict=True)):
            codes = deltas.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
            here = (sides[start:stop], middles[start:stop])
            boxes = decoded(codes, *here, rpn.box_coder.weights, rpn.box_coder.bbox_xform_clip)
            count = min(self.most, stop - start)
            logits, at = top(objectness.permute(0, 2, 3, 1).flatten(1), count)
            scores = torch.sigmoid(logits)
            parts.append(Candidates(picked(boxes, at), scores, torch.zeros_like(scores) + level, count))
        found = Candidates.of(parts).within(self.size, score=rpn.score_thresh, side=rpn.min_size)
        return Suppression(rpn.nms_thresh, self.size, len(self.spans), at_once)(found)

    def _told(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `[regions, 1 + classes]`, background first, and codes of boxes `[regions, 4 * (1 + classes)]`."""
        predictor = self.roi_heads.box_predictor
        return predictor.cls_score(embedding), predictor.bbox_pred(embedding)

    def _proposed(self, pyramid: list[Tensor], targets: Sequence[Target]) -> tuple[Losses, list[Tensor]]:
        """The losses of the first stage, and its proposals without those that lie in regions to be ignored."""
        rpn, anchors = self.rpn, self._anchors(pyramid[0])
        objectness, deltas = rpn.head(pyramid)
        counts = [level[0].numel() for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        wanted, matched = rpn.assign_targets_to_anchors(anchors, told(targets))
        seen = self._seen(self.anchors)
        for want, target in zip(wanted, targets, strict=True):
            want[(want == 0) & ~target.background(seen)] = -1  # neither of both: it is not sampled
        codes = rpn.box_coder.encode(matched, anchors)
        nothing = 0 * (objectness.sum() + deltas.sum())
        losses = {"loss_objectness": nothing, "loss_rpn_box_reg": nothing}
        if any(bool((want >= 0).any()) for want in wanted):
            losses["loss_objectness"], losses["loss_rpn_box_reg"] = rpn.compute_loss(objectness, deltas, wanted, codes)
        boxes = rpn.box_coder.decode(deltas.detach(), anchors).view(len(targets), -1, 4)
        sizes = [(self.size, self.size)] * len(targets)
        proposals, _ = rpn.filter_proposals(boxes, objectness, sizes, counts)
        return losses, [self._learned_from(one, target) for one, target in zip(proposals, targets, strict=True)]

    def _learned_from(self, proposals: Tensor, target: Target) -> Tensor:
        stays = target.background(proposals)
        if len(target.boxes):
            near = ops.box_iou(proposals, target.boxes).amax(1)
            stays |= near >= self.roi_heads.proposal_matcher.high_threshold
        return proposals[stays]

    def _fixed(self, images: Tensor) -> Tensor:
        """The regions of `forward`, `[n * proposals, 5]`: the image's number and a box, of four sizes in turn."""
        n, across = len(images), math.isqrt(self.proposals - 1) + 1
        at = torch.arange(self.proposals, device=images.device)
        sides = self.size / 2.0 ** (at % 4)[:, None]
        corner = torch.stack([at % across, at // across], 1) * (self.size - sides) / across
        boxes = torch.cat([corner, corner + sides], 1).repeat(n, 1)
        index = torch.arange(n, device=images.device).repeat_interleave(self.proposals)
        return torch.cat([index[:, None], boxes], 1)

    def _pool(self, pyramid: Sequence[Tensor], regions: Tensor) -> Tensor:
        """
        The same as `regions`, of boxes `[r, 5]` with the image's number before them, without looking at where they are:
        every box is pooled from every level, and all but one of the results are multiplied by zero.
        """
        pool = self.roi_heads.box_roi_pool
        sides = torch.sqrt((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2]))
        scales = [2.0 ** round(math.log2(self.maps[at][0] / self.size)) for at in self.pooled]
        finest = -math.log2(scales[0])
        levels = torch.floor(pool.canonical_level + torch.log2(sides / pool.canonical_scale) + 1e-6)
        levels = torch.clamp(levels, finest, finest + len(scales) - 1) - finest
        found = torch.zeros(())
        for level, (at, scale) in enumerate(zip(self.pooled, scales, strict=True)):
            here = roi_align(pyramid[at], regions, pool.output_size, scale, pool.sampling_ratio)
            here = here * (1 - torch.clamp(torch.abs(levels - level), 0, 1))[:, None, None, None]
            found = here if level == 0 else found + here
        return found
