"""Networks that others wrote: one of every family of torchvision's zoo, backbones of its detectors, and timm's."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torchvision import models
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG
from torchvision.models.resnet import Bottleneck
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from search.costs.measure import count
from search.spec import SpaceSpec
from search.surgery import Survey, survey
from tests.needs import missing

pytestmark = pytest.mark.timeout(60)

FULL_INDEX = 1 << 24
"""Whole numbers below it are exact in float32."""


def image_of(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def randomised(model: nn.Module) -> nn.Module:
    """As it was built, but with no channel normalised like another and no layer that begins at zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in module.state_dict().values():
                    if tensor.dim():
                        tensor += 0.2 * torch.rand(tensor.shape, generator=generator)
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    return model.eval()


def surveyed(model: nn.Module, image: Tensor, options: SpaceSpec | None = None) -> Survey:
    """The survey of a network, after all that it promises was looked at."""
    randomised(model)
    found = survey(model, image, options)
    rng = np.random.default_rng(0)
    candidates = [found.space.least(), *(found.space.sample(rng) for _ in range(2))]
    costs = found.costs(candidates)
    for at, candidate in enumerate(candidates):
        assert count(found.graft(candidate), image) == {metric: int(values[at]) for metric, values in costs.items()}
    assert costs["macs"][0] < found.cost["macs"]
    for finding in found.report:
        assert (finding.site is None) == bool(finding.reason), finding
    with torch.no_grad():
        expected, form = tree_flatten(model(image))
        same, same_form = tree_flatten(found.graft(found.space.full())(image))
        cut, cut_form = tree_flatten(found.graft(candidates[-1])(image))
    assert form == same_form == cut_form
    for ours, theirs, less in zip(same, expected, cut, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        assert less.shape == theirs.shape
    assert_students_are_slices(found)
    return found


def assert_students_are_slices(found: Survey) -> None:
    """Every number of the teacher is told where it stands; a student's then say that they stood in rows and columns."""
    whole = dict(found.teacher.state_dict())
    for tensor in whole.values():
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    student = found.graft(found.space.sample(np.random.default_rng(1)))
    smaller = 0
    for name, tensor in student.state_dict().items():
        if not whole[name].dim() > 0 or whole[name].numel() > FULL_INDEX:
            continue
        smaller += tensor.numel() < whole[name].numel()
        places = torch.unravel_index(tensor.long(), whole[name].shape)
        for dim, place in enumerate(places):
            rows = place[tuple(slice(None) if other == dim else slice(1) for other in range(place.dim()))]
            assert bool((place == rows).all()), name
            assert bool((rows.diff(dim=dim) > 0).all()), name
    assert smaller


# torchvision, classification


def zoo(name: str, **options: object) -> Callable[[], nn.Module]:
    return partial(models.get_model, name, weights=None, num_classes=10, **options)


def short_headed(model: nn.Module, features: int) -> nn.Module:
    """AlexNet and VGG have tens of millions of weights in their classifiers, which say nothing new."""
    model.classifier = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    return model


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (lambda: short_headed(models.alexnet(), 256 * 6 * 6), 64),
    "vgg11_bn": (lambda: short_headed(models.vgg11_bn(init_weights=False), 512 * 7 * 7), 64),
    "resnet18": (zoo("resnet18"), 64),
    "resnext50_32x4d": (zoo("resnext50_32x4d"), 64),
    "wide_resnet": (partial(models.ResNet, Bottleneck, [1, 2, 1, 1], width_per_group=128, num_classes=10), 32),
    "densenet": (partial(models.DenseNet, 32, (3, 6, 4, 2), num_classes=10), 64),
    "googlenet": (zoo("googlenet", init_weights=False), 64),
    "inception_v3": (zoo("inception_v3", init_weights=False), 75),
    "squeezenet1_1": (zoo("squeezenet1_1"), 64),
    "mobilenet_v2": (zoo("mobilenet_v2"), 64),
    "mobilenet_v3_small": (zoo("mobilenet_v3_small"), 64),
    "mnasnet0_5": (zoo("mnasnet0_5"), 64),
    "shufflenet_v2_x0_5": (zoo("shufflenet_v2_x0_5"), 64),
    "efficientnet_b0": (zoo("efficientnet_b0"), 64),
    "efficientnet_v2_s": (zoo("efficientnet_v2_s"), 64),
    "regnet_x_400mf": (zoo("regnet_x_400mf"), 64),
    "regnet_y_400mf": (zoo("regnet_y_400mf"), 64),
    "convnext_tiny": (zoo("convnext_tiny"), 64),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_of_torchvision_survey_exactly(family: str) -> None:
    build, size = FAMILIES[family]
    found = surveyed(build(), image_of(size))
    assert share_of_layers(found) > (0.35 if family == "shufflenet_v2_x0_5" else 0.85)


def share_of_layers(found: Survey) -> float:
    """Of the layers that write channels, how many may be made narrower."""
    layers = [finding for finding in found.report if finding.status in ("searchable", "frozen")]
    return sum(finding.status == "searchable" for finding in layers) / len(layers)


ATTENTION: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vit": (partial(models.VisionTransformer, 32, 8, 2, 4, 32, 64, num_classes=10), r"encoder\..*\.mlp\.0"),
    "swin": (partial(models.SwinTransformer, [4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10), r".*\.mlp\.0"),
    "maxvit": (partial(models.MaxVit, (64, 64), 16, 4, [16, 32], [1, 1], 8, 0.1, num_classes=10), r".*"),
}


@pytest.mark.parametrize("family", ATTENTION)
def test_around_attention_what_can_be_is_searched_and_the_rest_says_why_not(family: str) -> None:
    build, pattern = ATTENTION[family]
    model = build()
    found = surveyed(model, image_of(32 if family == "vit" else 64))
    widths = [site.name for site in found.space.sites if site.kind == "width"]
    assert widths
    assert all(re.fullmatch(pattern, name) for name in widths)
    told = {finding.module for finding in found.report}
    assert told >= {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert any("not understood" in finding.reason for finding in found.report)


# torchvision, detection: backbones answer with a dictionary of feature maps

UNTRAINED = {"weights": None, "weights_backbone": None}


def pyramid(**options: object) -> nn.Module:
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5, **options)


BACKBONES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "fasterrcnn": (pyramid, 64),
    "fasterrcnn_mobilenet": (lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(**UNTRAINED).backbone, 64),
    "retinanet, fcos": (partial(pyramid, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)), 64),
    "ssd_vgg": (lambda: SSDFeatureExtractorVGG(models.vgg11(init_weights=False).features, highres=False), 272),
    "ssdlite320_mobilenet": (lambda: detection.ssdlite320_mobilenet_v3_large(**UNTRAINED).backbone, 64),
}


@pytest.mark.parametrize("detector", BACKBONES)
def test_backbones_of_detectors_survey_exactly_and_keep_their_feature_maps(detector: str) -> None:
    build, size = BACKBONES[detector]
    model = build()
    found = surveyed(model, image_of(size))
    with torch.no_grad():
        maps, cut = model(image_of(size)), found.graft(found.space.least())(image_of(size))
    assert isinstance(maps, Mapping)
    assert {name: one.shape for name, one in cut.items()} == {name: one.shape for name, one in maps.items()}
    assert share_of_layers(found) > 0.6


# timm

TIMM = {
    "convnextv2_atto": 0.9,
    "dla46_c": 0.9,
    "dpn68": 0.5,
    "efficientnet_lite0": 0.9,
    "efficientvit_b0": 0.6,
    "ese_vovnet19b_slim_dw": 0.9,
    "fastvit_t8": 0.9,
    "focalnet_tiny_srf": 0.5,
    "gernet_s": 0.9,
    "ghostnet_050": 0.8,
    "hardcorenas_a": 0.9,
    "hrnet_w18_small": 0.9,
    "lcnet_035": 0.8,
    "mixnet_s": 0.3,
    "mobilenetv4_conv_small_050": 0.9,
    "regnetz_b16": 0.9,
    "repvgg_a0": 0.9,
    "res2net50_26w_4s": 0.5,
    "resnest14d": 0.5,
    "resnetv2_50": 0.9,
    "rexnet_100": 0.7,
    "selecsls42": 0.9,
    "seresnet18": 0.8,
    "tinynet_e": 0.8,
}
"""Of the layers that write channels, the share that may be made narrower: less where code splits by fixed numbers."""


@pytest.mark.parametrize("name", TIMM)
def test_the_families_of_timm_survey_exactly(name: str) -> None:
    if importlib.util.find_spec("timm") is None:
        missing("timm", "install the extra `timm`")
    timm = importlib.import_module("timm")
    found = surveyed(timm.create_model(name, pretrained=False, num_classes=10), image_of(64))
    assert share_of_layers(found) >= TIMM[name]
