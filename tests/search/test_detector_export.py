"""What a detector is exported as finds the boxes that it finds, or is not handed out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from search.errors import VerificationFailed, WeightsError
from search.export import load
from search.export.architecture import describe
from search.export.bundle import read_bundle, write_bundle
from search.export.detecting import ALONE, Detecting, difference, provoked, restless
from search.export.onnx import answers
from search.spec import SpaceSpec
from search.suppression import top
from search.surgery import survey
from tests.search.detectors import FAMILIES, images, small


def loaded(document: dict[str, object], tensors: dict[str, Tensor], folder: Path) -> load.Student:
    (folder / "architecture.json").write_text(json.dumps(document))
    save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, folder / "weights.safetensors")
    return load.load(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_written_down_as_data(family: str, tmp_path: Path) -> None:
    detector = small(family).eval()
    reloaded = loaded(*describe(Detecting(detector)), tmp_path)
    with torch.no_grad():
        for n in (1, 3):
            torch.testing.assert_close(reloaded(images(n)), detector.detect(images(n)), atol=1e-3, rtol=1e-3)


@pytest.mark.timeout(120)
def test_a_cut_detector_is_exported_verified_and_read_back(tmp_path: Path) -> None:
    found = survey(small("faster_rcnn").eval(), images(1), SpaceSpec(divisor=2))
    student = found.graft(found.space.candidate({site.name: site.choices[-2] for site in found.space.sites}))
    named = {"classes": ("digit", "person"), "mean": [0.5] * 3, "std": [0.25] * 3}
    deviations = write_bundle(student, images(2), tmp_path, onnx=True, **named)
    assert deviations.keys() == {"bundle", "onnx"}
    assert max(deviations.values()) < 1e-4
    bundle = read_bundle(tmp_path)
    assert bundle.classes == ("digit", "person")
    assert json.loads((tmp_path / "architecture.json").read_text())["output"]["answer"] == "detections"
    with torch.no_grad():
        expected = {"three": student.detect(images(3))}
        assert difference("bundle", expected, {"three": bundle.student(images(3))}) < 1e-4
    assert (expected["three"][..., 4] > 0).any()
    assert difference("onnx", expected, answers(tmp_path / "student.onnx", {"three": images(3)})) < 1e-4

    weights = load_file(tmp_path / "weights.safetensors")
    weights["detector.backbone.stages.0.0.weight"][0] *= 1.1
    save_file(weights, tmp_path / "weights.safetensors")
    with torch.no_grad(), pytest.raises(VerificationFailed, match="no counterpart"):
        difference("bundle", expected, {"three": read_bundle(tmp_path).student(images(3))})
    (tmp_path / "weights.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-9])
    with pytest.raises(WeightsError):
        read_bundle(tmp_path)


def rows(*boxes: list[float]) -> dict[str, Tensor]:
    return {"one": torch.tensor([[*boxes, [0.0] * 6]])}


ONE, OTHER = [4, 4, 20, 30, 0.9, 1], [40, 4, 60, 30, 0.7, 0]


def test_boxes_are_matched_whatever_their_order() -> None:
    nearly = [4.001, 4, 20, 30, 0.8999, 1]
    assert difference("onnx", rows(ONE, OTHER), rows(OTHER, nearly)) == pytest.approx(1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "other", [[4, 4, 20, 30, 0.9, 0], [4, 4, 20, 29, 0.9, 1], [4, 4, 20, 30, 0.89, 1], [0.0] * 6, OTHER]
)
def test_a_box_of_another_class_place_or_score_is_another(other: list[float]) -> None:
    with pytest.raises(VerificationFailed, match="no counterpart"):
        difference("onnx", rows(ONE, OTHER), rows(other, OTHER))


def test_of_many_boxes_a_few_may_be_alone() -> None:
    many = [[x, 0, x + 5.0, 5, 0.5, 0] for x in range(0, 600, 6)]
    assert difference("onnx", rows(*many), rows(*many[:-2], [0.0] * 6, [0.0] * 6)) == 0
    with pytest.raises(VerificationFailed, match="5 of 195"):
        difference("onnx", rows(*many), rows(*many[:-5], *[[0.0] * 6] * 5))


def test_of_equal_scores_the_first_come_first() -> None:
    """As ONNX has it, and `torch.topk` has not."""
    scores = torch.tensor([[0.5, 0.7, 0.5, 0.7, 0.5] * 40])
    values, at = top(scores, 82)
    assert values.tolist() == [[*[scores[0, 1].item()] * 80, 0.5, 0.5]]
    assert at[0].tolist() == [*[5 * row + place for row in range(40) for place in (1, 3)], 0, 2]


def test_where_rounding_decides_what_is_found_more_boxes_may_be_alone() -> None:
    """Of a head without weights all scores are equal, and any box is as good as another."""
    questions, allowed = {"three": images(3)}, []
    for weights in (1, 0):
        detector = small("retinanet").eval()
        with torch.no_grad():
            detector.head.classification_head.cls_logits.weight.mul_(weights)
            student = Detecting(detector)
            allowed.append(restless(student, questions, {"three": student(images(3))}))
    assert allowed[0] == ALONE
    assert allowed[1] > 0.5
    two = [[4, 4, 20, 30, 0.5, 1], [40, 4, 60, 30, 0.5, 0]]
    assert difference("onnx", rows(*two), rows([50, 50, 60, 60, 0.5, 1], two[1]), alone=0.5) == 0


def test_boxes_without_area_are_matched_where_they_lie() -> None:
    point = [8.0, 8, 8, 9, 0.5, 0]
    assert difference("onnx", rows(point), rows(point)) == 0
    with pytest.raises(VerificationFailed, match="no counterpart"):
        difference("onnx", rows(point), rows([8.1, *point[1:]]))


def test_a_detector_that_finds_nothing_is_verified_by_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answered(folder: Path, questions: dict[str, Tensor]) -> dict[str, Tensor]:
        student = load.load(folder)
        asked.append({name: student(images).detach() for name, images in questions.items()})
        return {name: answer + wrong for name, answer in asked[-1].items()}

    monkeypatch.setattr("search.export.bundle.bundle_answers", answered)
    detector, wrong = small("ssdlite").eval(), 0.0
    detector.least_score = 1.0
    named = {"classes": ("digit", "person"), "mean": [0.5] * 3, "std": [0.25] * 3}
    write_bundle(detector, images(1), tmp_path / "right", onnx=False, **named)
    first, second = asked
    assert all(answer.any() for answer in first.values())
    assert not any(answer.any() for answer in second.values())
    assert not read_bundle(tmp_path / "right").student(images(1)).any()
    wrong = 0.1
    with pytest.raises(VerificationFailed, match="no counterpart"):
        write_bundle(detector, images(1), tmp_path / "wrong", onnx=False, **named)
    assert not (tmp_path / "wrong" / "load.py").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_changed_until_something_is_found(family: str) -> None:
    detector, noise = small(family).eval(), 0.1 * images(2)
    detector.least_score = detector.detect(noise)[..., 4].max().item() * 1.05
    assert not detector.detect(noise).any()
    assert (detector.detect(provoked(detector, noise))[..., 4] > 0).any(1).all()
